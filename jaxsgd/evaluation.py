"""The exact mean over all rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsgd import checks
from jaxsgd.gradients import take
from jaxsgd.losses import BatchLoss, RowLoss, RowsLoss
from jaxsgd.pairs import PyTree, State, accumulator_of, as_arguments, as_callable, part, static
from jaxsgd.samplers import Sequential


def evaluate(
    metrics: Any, params: PyTree, data: PyTree, *, batch_size: int = 1024, carry: PyTree = None
) -> Any:
    """The exact mean over all rows of one function, or of each of a dict of functions.

    `1/n sum_i metric(params, row[i])`, in chunks of `batch_size` rows, the short last one weighted
    right. Compiled once for each set of functions and shapes.

    Args:
      metrics: a function of `(params, row)` to a number or array (bools and ints are averaged as
        floats), a `RowLoss` or `RowsLoss`, or a dict of those.
      params: the parameters.
      data: the rows.
      batch_size: rows in a chunk; it bounds the memory.
      carry: a model state, given to each function as a third argument where it is not None.

    Returns:
      The mean (float32, float64 for float64 parameters), or a dict of means.

    Raises:
      TypeError: a `BatchLoss`, which is no mean over rows, or a `keyed` loss.

    >>> y = jnp.array([1.0, 3.0, 8.0])
    >>> jaxsgd.evaluate({"above": lambda theta, y: y > theta}, jnp.array(2.0), y, batch_size=2)
    {'above': Array(0.6666667, dtype=float32)}
    """
    batch_size = checks.integer(batch_size, "evaluate's batch_size", 1)
    n = checks.rows(data)
    named = metrics if isinstance(metrics, dict) else {"": metrics}
    forms = {name: _metric(metric, name) for name, metric in named.items()}
    args = as_arguments((forms, params, data, carry))
    means = _evaluate(*args, batch_size=min(batch_size, n))
    return means if isinstance(metrics, dict) else means[""]


@partial(jax.jit, static_argnames="batch_size")
def _evaluate(forms: Any, params: PyTree, data: PyTree, carry: PyTree, *, batch_size: int) -> Any:
    n = checks.rows(data)
    sampler = Sequential(batch_size, size=n)
    dtype = accumulator_of(params)

    def chunk(step: jax.Array) -> Any:
        index, weight = sampler.batch(None, step)  # type: ignore[arg-type]
        rows = take(data, index)

        def total(values: jax.Array) -> jax.Array:
            valid = (weight > 0).reshape(-1, *(1,) * (values.ndim - 1))
            return jnp.sum(jnp.where(valid, values.astype(dtype), 0), axis=0)

        return jax.tree.map(total, {k: f(params, rows, carry) for k, f in forms.items()})

    def add(step: jax.Array, sums: Any) -> Any:
        """Kahan's sum (1965): what rounding loses of a chunk is carried to the next."""
        total, lost = sums
        term = jax.tree.map(jnp.subtract, chunk(step), lost)
        after = jax.tree.map(jnp.add, total, term)
        lost = jax.tree.map(lambda new, old, x: (new - old) - x, after, total, term)
        # an infinite sum has no remainder
        return after, jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), lost)

    shapes = jax.eval_shape(chunk, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = lax.fori_loop(0, sampler.steps_per_epoch, add, (zeros, zeros))
    return jax.tree.map(lambda x: x / n, sums)


@part
class Metric:
    """A metric's values of each row of a chunk."""

    form: Any

    def __call__(self, params: PyTree, rows: PyTree, carry: PyTree) -> PyTree:
        if isinstance(self.form, RowLoss | RowsLoss):
            return self.form.each(params, rows, None, carry)[0]
        extra = () if carry is None else (carry,)
        return jax.vmap(lambda row: self.form(params, row, *extra))(rows)


def _metric(metric: Any, name: str) -> Metric:
    where = f"metric {name!r}" if name else "the metric"
    if isinstance(metric, BatchLoss) or getattr(metric, "keyed", False):
        kind = "a BatchLoss" if isinstance(metric, BatchLoss) else "keyed"
        raise TypeError(
            f"{where} is {kind}, expected a function of (params, row): a mean over rows"
        )
    if isinstance(metric, RowLoss | RowsLoss):
        return Metric(metric)
    return Metric(as_callable(metric, where))


@part
class Objective:
    """A state's exact mean of a metric over all rows, plus a penalty: what `run_until` watches.

    `1/n sum_i metric(params, row[i]) + penalty(params)`. The rows are leaves, arguments of the
    compiled run: the training rows for the full objective, others for a held-out metric.

    Args:
      metric: as in `evaluate`, one of them: a loss, say.
      data: the rows.
      penalty: None, or a function `params -> scalar`.
      at: which parameters of a state; None for its own. `averaged` fits.
      batch_size: rows in a chunk.

    >>> y = jnp.array([1.0, 3.0])
    >>> loss = lambda theta, y: (theta - y) ** 2
    >>> solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> float(jaxsgd.Objective(loss, y)(state))
    5.0
    """

    metric: Any
    data: PyTree
    penalty: Any = None
    at: Callable[[State], PyTree] | None = static(default=None, kw_only=True)
    batch_size: int = static(default=1024, kw_only=True)

    def __post_init__(self) -> None:
        checks.rows(self.data)
        form = _metric(self.metric, "Objective").form
        object.__setattr__(self, "metric", form)
        if self.penalty is not None:
            object.__setattr__(self, "penalty", as_callable(self.penalty, "penalty"))

    def __call__(self, state: State) -> jax.Array:
        """The objective (float[])."""
        params = state.params if self.at is None else self.at(state)
        mean = evaluate(
            self.metric, params, self.data, batch_size=self.batch_size, carry=state.carry
        )
        return mean if self.penalty is None else mean + self.penalty(params)
