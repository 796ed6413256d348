"""The exact mean over all rows."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from jaxsgd.core import programs, validation
from jaxsgd.core.part import as_callable, as_optional_callable, field, part, static
from jaxsgd.core.records import State
from jaxsgd.core.trees import accumulator_of, as_arguments, gather
from jaxsgd.core.validation import SampleWeight
from jaxsgd.data.arrays import as_rows, take
from jaxsgd.losses import Loss, RowLoss, RowsLoss
from jaxsgd.samplers.epochs import Sequential

MetricLike = Loss | Callable[..., PyTree]  # of `RowLoss`, `RowsLoss`, or (params, row) -> number


def evaluate(
    metrics: MetricLike | Mapping[str, MetricLike],
    params: PyTree,
    data: PyTree,
    *,
    sample_weight: SampleWeight | None = None,
    batch_size: SupportsIndex = 1024,
    model_state: PyTree = None,
) -> PyTree[Float[Array, "..."]]:
    """The exact mean over all rows of one function, or of each of a dict of functions.

    `sum_i v[i] metric(params, row[i]) / sum_i v[i]`, v = 1 if not given, in chunks of `batch_size`
    rows, the short last one weighted right. Rows of weight 0 play no part, whatever their value.
    Compiled once for each set of functions and shapes.

    Args:
      metrics: a function of `(params, row)` to a number or array (bools and ints are averaged as
        floats), a `RowLoss` or `RowsLoss`, or a dict of those.
      params: the parameters.
      data: the rows: arrays, `HostRows` or `MeshRows`.
      sample_weight: None, or v, an array of length n, at least 0.
      batch_size: rows in a chunk; it bounds the memory.
      model_state: a model state, given to each function as a third argument where it is not None.

    Returns:
      The mean (float32, float64 for float64 parameters), or a dict of means.

    Raises:
      TypeError: a `BatchLoss`, which is no mean over rows, or a `keyed` loss.
      ValueError: sample weights of another length, below 0, not finite, or all 0.
      OSError: rows on the host could not be read.

    >>> y = jnp.array([1.0, 3.0, 8.0])
    >>> jaxsgd.evaluate({"above": lambda theta, y: y > theta}, jnp.array(2.0), y, batch_size=2)
    {'above': Array(0.6666667, dtype=float32)}
    """
    batch_size = validation.integer(batch_size, "evaluate's batch_size", 1)
    validation.no_mask_in(params, "params")
    n = as_rows(data).size
    if sample_weight is not None:
        validation.weights(sample_weight, "sample_weight")
        validation.one_a_row(sample_weight, n, "sample_weight")
    named = metrics if isinstance(metrics, Mapping) else {"": metrics}
    try:
        means = means_over(named, params, data, sample_weight, model_state, batch_size)
    except Exception as error:
        if isinstance(params, tuple) and hasattr(params, "params"):  # a State, a Result
            kind = type(params).__name__
            error.add_note(f"params is a {kind}, perhaps its attribute `params` was meant")
        raise
    return means if isinstance(metrics, Mapping) else means[""]


def means_over(
    metrics: Mapping[str, MetricLike],
    params: PyTree,
    data: PyTree,
    sample_weight: SampleWeight | None,
    model_state: PyTree,
    batch_size: int = 1024,
) -> dict[str, PyTree[Float[Array, "..."]]]:
    """`evaluate` without the check of the sample weights, which reads all of them."""
    forms = {name: _metric(metric, name) for name, metric in metrics.items()}
    rows = as_rows(data)
    batch_size = min(batch_size, rows.size)
    named = {"params": params, "model_state": model_state, "sample_weight": sample_weight}
    named = as_arguments({"metrics": forms, **named})  # by name, for the message of a refusal
    args, weight = [named[n] for n in ("metrics", "params", "model_state")], named["sample_weight"]
    if rows.is_streamed:
        add = partial(_add, batch_size=batch_size)
        return _means(rows.total(add, weight, batch_size, *args))
    return _evaluate(rows.as_arguments(), weight, *args, batch_size=batch_size)


@programs.jit()
def _evaluate(
    data: PyTree, sample_weight: Shaped[Array, " n"] | None, *args: PyTree, batch_size: int
) -> PyTree[Float[Array, "..."]]:
    def means(data: PyTree, sample_weight: Shaped[Array, " n"] | None, *args: PyTree) -> PyTree:
        add = partial(_add, batch_size=batch_size)
        return _means(as_rows(data).total(add, sample_weight, batch_size, *args))

    return as_rows(data).traced(means)(data, sample_weight, *args)


@jax.jit
def _means(sums: PyTree) -> PyTree[Float[Array, "..."]]:
    (totals, weight), _ = sums
    return jax.tree.map(lambda x: x / weight, totals)


@programs.jit()
def _add(
    data: PyTree,
    sample_weight: Shaped[Array, " n"] | None,
    sums: PyTree,
    forms: "dict[str, Metric]",
    params: PyTree,
    model_state: PyTree,
    *,
    batch_size: int,
) -> PyTree:
    """The weighted sums of the metrics, the sum of the weights, and what rounding lost of each."""
    n = as_rows(data).size
    sampler = Sequential(min(batch_size, n), size=n)
    dtype = accumulator_of(params)

    def chunk(step: Int[Array, ""]) -> tuple[dict[str, PyTree], Float[Array, ""]]:
        _, index, weight = sampler.epoch_positions(step)
        rows = take(data, index)
        weight = (weight > 0).astype(dtype)
        if sample_weight is not None:
            weight = weight * gather(sample_weight, index).astype(dtype)

        def total(values: Shaped[Array, "B ..."]) -> Float[Array, "..."]:
            factor = weight.reshape(-1, *(1,) * (values.ndim - 1))
            return jnp.sum(jnp.where(factor > 0, values.astype(dtype) * factor, 0), axis=0)

        values = {name: form(params, rows, model_state) for name, form in forms.items()}
        return jax.tree.map(total, values), jnp.sum(weight)

    def add(step: Int[Array, ""], sums: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        """Kahan's sum (1965): a plain float32 sum of 20 million rows stops growing."""
        total, lost = sums
        term = jax.tree.map(jnp.subtract, chunk(step), lost)
        after = jax.tree.map(jnp.add, total, term)
        lost = jax.tree.map(lambda new, old, x: (new - old) - x, after, total, term)
        # an infinite sum has no remainder
        return after, jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), lost)

    if sums is None:
        shapes = jax.eval_shape(chunk, jnp.zeros((), jnp.int32))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums = zeros, zeros
    return lax.fori_loop(0, sampler.steps_per_epoch, add, sums)


@part
class Metric:
    """A metric's values of each row of a chunk."""

    form: RowLoss | RowsLoss | Callable[..., PyTree]

    def __call__(self, params: PyTree, rows: PyTree, model_state: PyTree) -> PyTree:
        form = self.form
        if isinstance(form, RowLoss | RowsLoss):
            return form.each(params, rows, None, model_state)[0]
        extra = () if model_state is None else (model_state,)
        return jax.vmap(lambda row: self._checked(form(params, row, *extra)))(rows)

    def _checked(self, value: PyTree) -> PyTree:
        """A row's value, refused where it is no number, or complex."""
        for leaf in jax.tree.leaves(value):
            is_number = isinstance(leaf, bool | int | float | complex | np.generic | jax.Array)
            if not is_number and not isinstance(leaf, np.ndarray):
                kind = f"{leaf!r} of type {type(leaf).__name__}"
            elif jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
                kind = str(jnp.result_type(leaf))
            else:
                continue
            raise TypeError(f"the metric {self.form!r} returned {kind}, expected real numbers")
        return value


def _metric(metric: MetricLike, name: str) -> Metric:
    where = f"metric {name!r}" if name else "the metric"
    if not isinstance(metric, Loss):
        return Metric(as_callable(metric, where))
    is_of_rows = isinstance(metric, RowLoss | RowsLoss)
    if not is_of_rows or metric.keyed:
        kind = "keyed" if is_of_rows else f"a {type(metric).__name__}"
        raise TypeError(
            f"{where} is {kind}, expected a function of (params, row): a mean over rows"
        )
    return Metric(metric)


def _as_metric(metric: MetricLike, name: str = "metric") -> MetricLike:
    return _metric(metric, name).form


@part
class Objective:
    """A state's exact mean of a metric over all rows, plus a penalty: what `run_until` watches.

    `1/n sum_i metric(params, row[i]) + penalty(params)`. The rows are leaves, arguments of the
    compiled run: the training rows for the full objective, others for a held-out metric.

    Args:
      metric: as in `evaluate`, one of them: a loss, say.
      data: the rows.
      penalty: None, or a function `params -> scalar`.
      sample_weight: None, or an array of length n, as in `evaluate`.
      at: which parameters of a state; None for its own. `averaged` fits.
      batch_size: rows in a chunk.

    >>> y = jnp.array([1.0, 3.0])
    >>> loss = lambda theta, y: (theta - y) ** 2
    >>> solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> float(jaxsgd.Objective(loss, y)(state))
    5.0
    """

    metric: MetricLike = field(converter=_as_metric)
    data: PyTree = field()
    penalty: Callable[[PyTree], Float[Array, ""]] | None = field(
        default=None, converter=as_optional_callable
    )
    sample_weight: SampleWeight | None = None
    at: Callable[[State], PyTree] | None = static(default=None, kw_only=True)
    batch_size: int = static(default=1024, kw_only=True)

    def __post_init__(self) -> None:
        rows = as_rows(self.data)
        if rows.is_streamed:
            raise TypeError("Objective's data stay on the host, expected arrays: use evaluate")
        if self.sample_weight is not None:
            validation.weights(self.sample_weight, "sample_weight")
            validation.one_a_row(self.sample_weight, rows.size, "sample_weight")

    def __call__(self, state: State) -> Float[Array, ""]:
        """The objective."""
        params = state.params if self.at is None else self.at(state)
        mean = evaluate(
            self.metric,
            params,
            self.data,
            sample_weight=self.sample_weight,
            batch_size=self.batch_size,
            model_state=state.model_state,
        )
        return mean if self.penalty is None else mean + self.penalty(params)
