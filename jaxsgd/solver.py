"""The training step: which rows, their gradient, the update."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxsgd import contracts
from jaxsgd.core import programs, validation
from jaxsgd.core.part import as_contract, as_optional_callable, field, part
from jaxsgd.core.records import Batch, Estimate, Info, State, described
from jaxsgd.core.trees import accumulate, accumulator_of, gather, is_finite, strong
from jaxsgd.core.validation import SampleWeight
from jaxsgd.data.arrays import BatchRows, as_rows
from jaxsgd.gradients.base import Gradient
from jaxsgd.gradients.minibatch import MinibatchGradient, as_gradient, as_linear_gradient
from jaxsgd.gradients.partial_sums import update_in_parts, value_in_parts
from jaxsgd.rules.base import Rule
from jaxsgd.rules.from_optax import as_rule
from jaxsgd.rules.proximal import check_penalty
from jaxsgd.samplers.base import Sampler
from jaxsgd.samplers.epochs import FullBatch


def as_sampler(sampler: Sampler, name: str = "sampler") -> Sampler:
    """A sampler as it is; anything else is refused."""
    return as_contract(sampler, Sampler, name, "jaxsgd.Shuffled(64)")


def _as_sample_weight(
    weight: SampleWeight | None, name: str = "sample_weight"
) -> Float[Array, "..."] | None:
    """Sample weights scaled to a mean of 1, or as they are where that is their mean already."""
    if weight is None:
        return None
    validation.weights(weight, "sample_weight")
    default = jax.dtypes.canonicalize_dtype(float)
    if isinstance(weight, Tracer):
        wide = jnp.asarray(weight, default)
        return wide / wide.mean(-1, keepdims=True)
    wide = np.asarray(weight, np.float64)
    mean = wide.mean(-1, keepdims=True)
    # a solver made from another's parts keeps its weights, bit for bit
    return jnp.asarray(wide / np.where(abs(mean - 1) < 1e-6, 1, mean), default)


@part
class Solver:
    """A training step made of parts, an ordinary argument of a jitted function.

    `params' = params + rule(grad(loss on batch + penalty))`. The numbers of its parts (rates,
    momenta, penalties) are leaves: they are changed, vmapped and differentiated without another
    compilation.

    Args:
      gradient: a gradient such as `MinibatchGradient(loss)`, or a loss, which becomes one.
      sampler: which rows a step takes; its size is filled in from the data.
      rule: a rule, or any Optax transformation.
      penalty: None, or a function `params -> scalar`, such as `L2(1e-3)`, added once per step.
      sample_weight: None, or an array v of length n, at least 0: class weights, sample weights, a
        fold's rows. The objective is then the weighted mean `sum_i v[i] loss_i / sum_i v[i]`: each
        batch's weights are multiplied by `v[i] n / sum v`. Kept scaled to a mean of 1.

    Raises:
      TypeError: an argument that is not such a part.
      ValueError: sample weights that are negative, not finite, or all 0; `L1` with `LineSearch`, or
        the penalty of a `Proximal` rule a second time.

    >>> solver = jaxsgd.Solver(lambda w, row: (row[0] * w - row[1]) ** 2,
    ...                        jaxsgd.Shuffled(2), jaxsgd.SGD(0.1))
    >>> data = jnp.arange(4.0), 3 * jnp.arange(4.0)
    >>> state = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    >>> state, trace = jaxsgd.run(solver, state, data, steps=20)
    >>> round(float(state.params), 3), trace.loss.shape
    (3.0, (20,))
    """

    gradient: Gradient = field(converter=as_gradient)
    sampler: Sampler = field(converter=as_sampler)
    rule: Rule = field(converter=as_rule)
    penalty: Callable[[PyTree], Float[Array, ""]] | None = field(
        default=None, converter=as_optional_callable
    )
    sample_weight: Float[Array, "..."] | None = field(default=None, converter=_as_sample_weight)

    def __repr__(self) -> str:
        names = ("gradient", "sampler", "rule", "penalty")
        lines = [f"  {name:15}{getattr(self, name)!r}" for name in names]
        if self.sample_weight is not None:
            lines += described({"sample_weight": self.sample_weight})
        return "\n".join(("Solver", *lines))

    def __post_init__(self) -> None:
        reason = self.gradient.sample_weight_refusal
        if self.sample_weight is not None and reason is not None:
            raise ValueError(
                f"the solver has a sample_weight, but {type(self.gradient).__name__} {reason}; "
                "make the weights a part of the data, of mean 1, and multiply the loss by them"
            )
        check_penalty(self.penalty, self.rule)

    def sampler_for(self, data: PyTree) -> Sampler:
        """The sampler, its size filled in from the data (static)."""
        rows = as_rows(data)
        validation.one_a_row(self.sample_weight, rows.size, "the solver's sample_weight")
        return rows.sampler(self.sampler)

    def init(
        self, params: PyTree, data: PyTree, *, key: PRNGKeyArray, model_state: PyTree = None
    ) -> State:
        """The state before the first step. It owns its buffers: params, data and key stay alive.

        Args:
          params: a pytree of float arrays.
          data: a pytree of arrays that share their leading axis, or `Rows`; only shapes and dtypes
            are read.
          key: a typed key, or a legacy `PRNGKey`; folded with a different constant for each part.
          model_state: the model state that a loss with `has_model_state` starts from.

        Raises:
          TypeError: a params leaf that is not a float array, data that are not arrays, no key; a
            custom part that breaks its contract.
          ValueError: data of different lengths or without rows, a batch size above the rows.
        """
        validation.params(params)
        validation.numbers_held(self, accumulator_of(params), "the solver")
        contracts.check_rows(data)
        sampler = self.sampler_for(data)
        key = validation.key(key)
        params, model_state = jax.tree.map(_copy, (params, model_state))
        gradient_key = jax.random.fold_in(key, 1)
        gradient = self.gradient.init(params, data, gradient_key, model_state)
        contracts.check_gradient_state(self.gradient, gradient)
        state = State(
            params=params,
            step=jnp.zeros((), jnp.int32),
            rule=jax.tree.map(_copy, self.rule.init(params)),
            sampler=sampler.init(jax.random.fold_in(key, 0)),
            gradient=gradient,
        )
        if contracts.is_custom(sampler) or contracts.is_custom(self.gradient):
            # their states may hold a leaf of the part, or params, which a loop would donate
            state = jax.tree.map(_copy, state)
        contracts.check_custom_parts(self.gradient, sampler, self.rule, state, data)
        return as_rows(data).placed(state)

    def batches(self, state: State, data: PyTree, steps: int) -> Batch:
        """The batches of the next steps of a run: which rows, with which weights.

        Args:
          state: from `init` or a run.
          data: the rows, as given to `init`; only their number is read.
          steps: the number of steps; static.

        Returns:
          `Batch(index, weight)`: int32[steps, B] and float[steps, B].

        Raises:
          TypeError, ValueError: `state` is not a `State`, steps below 1, data of another size.

        >>> solver = jaxsgd.Solver(lambda w, y: (w - y) ** 2, jaxsgd.Sequential(2), jaxsgd.SGD(0.1))
        >>> y = jnp.ones(6)
        >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
        >>> solver.batches(state, y, 4).index.tolist()
        [[0, 1], [2, 3], [4, 5], [0, 1]]
        """
        if not isinstance(state, State):
            raise TypeError(
                f"state is of type {type(state).__name__}, expected the State of init or a run"
            )
        steps = validation.integer(steps, "steps", 1)
        return _batches(self.sampler_for(data), state.sampler, steps=steps)

    def step(self, state: State, data: PyTree) -> tuple[State, Info]:
        """One step on the sampler's next batch: the new state, and the `Info` of the step."""
        batch, sampler = self.sampler_for(data).update(state.sampler)
        return self.step_at(state._replace(sampler=sampler), self.rows_of(data), batch)

    def rows_of(self, data: PyTree) -> PyTree:
        """The data for `step_at` in a loop: for a full batch the rows themselves, not gathered."""
        is_plain = isinstance(self.gradient, MinibatchGradient)
        return (
            as_rows(data).as_batch() if is_plain and isinstance(self.sampler, FullBatch) else data
        )

    def step_on(
        self, state: State, rows: PyTree, weight: Float[Array, " B"] | None = None
    ) -> tuple[State, Info]:
        """One step on rows that another loader gathered. The sampler's state does not change.

        Args:
          rows: a pytree of arrays of shape (B, ...).
          weight: float[B], as in a `Batch`: weights that sum to 1, and are 0 on padding; for a
            mask, `mask / mask.sum()`. The default is 1/B each.

        Raises:
          ValueError: the solver has a `sample_weight`, which is looked up by the index of a row.
          TypeError: the gradient is `SAGA` or `SVRG`, which remember rows by their index.
        """
        size = as_rows(rows, "rows").size
        if self.sample_weight is not None:
            raise ValueError(
                "the solver has a sample_weight, but rows from another loader have no index to "
                "look it up by; multiply it into weight"
            )
        if self.gradient.needs_row_index:
            raise TypeError(
                f"the gradient is {type(self.gradient).__name__}, which remembers rows by their "
                "index, but rows from another loader have none; give HostRows or arrays to a run"
            )
        weight = jnp.full(size, 1 / size) if weight is None else jnp.asarray(weight)
        validation.one_a_row(weight, size, "weight")
        index = jnp.arange(size, dtype=jnp.int32)
        return self.step_at(state, BatchRows(rows), Batch(index, weight))

    def step_at(self, state: State, data: PyTree, batch: Batch) -> tuple[State, Info]:
        """One step on a given batch of rows of `data`. The sampler's state does not change."""
        after, estimate, updates = self.update(state, data, batch)
        return after, self.info(state, after, estimate, updates)

    def update(self, state: State, data: PyTree, batch: Batch) -> tuple[State, Estimate, PyTree]:
        """`step_at` without the `Info`, which `info` computes from the results.

        Returns:
          The state after the step; the estimate, whose `grads` are those of loss + penalty, and
          whose `loss` is that of the batch; and the updates, like params.
        """
        params = state.params
        if self.sample_weight is not None:
            batch = batch._replace(weight=batch.weight * gather(self.sample_weight, batch.index))
        estimate, gradient, loss_fn = self._estimate(params, data, batch, state.gradient)
        value, grads = estimate.loss, estimate.grads
        if self.penalty is not None:
            penalty, slope = jax.value_and_grad(self._penalty)(accumulate(params))
            value, grads = value + penalty, jax.tree.map(jnp.add, grads, slope)

        def value_fn(params: PyTree) -> Float[Array, ""]:
            return (
                loss_fn(params) if self.penalty is None else loss_fn(params) + self._penalty(params)
            )

        updates, rule = self.rule.update(
            grads, state.rule, params, value=value, grad=grads, value_fn=value_fn
        )
        contracts.check_updates(self.rule, updates, params)
        after = optax.apply_updates(params, updates)
        after = State(after, state.step + 1, rule, state.sampler, gradient)
        return after, estimate._replace(grads=grads), updates

    def info(self, before: State, after: State, estimate: Estimate, updates: PyTree) -> Info:
        """The `Info` of a step, from the states around it and what `update` returned."""
        penalty = jnp.zeros((), estimate.loss.dtype)
        if self.penalty is not None:
            penalty = self._penalty(accumulate(before.params))
        if self.rule.proximal_penalty is not None:
            penalty = penalty + self.rule.proximal_penalty(before.params)
        return Info(
            step=before.step,
            loss=estimate.loss,
            penalty=penalty,
            grad_norm=_norm(estimate.grads),
            update_norm=_norm(updates),
            aux=estimate.aux,
            learning_rate=self.rule.reported_learning_rate(before.rule, after.rule),
            noise=estimate.noise,
            finite=is_finite((estimate.loss, estimate.grads, after.params)),
        )

    def _estimate(
        self, params: PyTree, data: PyTree, batch: Batch, state: PyTree
    ) -> tuple[Estimate, PyTree, Callable[[PyTree], Float[Array, ""]]]:
        """The estimate, the gradient's new state, and the loss of the batch as a function."""
        rows = as_rows(data)
        reduction = rows.reduction(batch, self.gradient.is_keyed)
        if reduction is None:
            estimate, after = self.gradient.update(params, data, batch, state)
            return estimate, after, lambda p: self.gradient.value(p, data, batch, state)
        gradient = as_linear_gradient(self.gradient, "the gradient", f" on {type(rows).__name__}")
        estimate, after = update_in_parts(gradient, reduction, params, state)
        value_fn = partial(value_in_parts, gradient, reduction, reproducible=rows.reproducible)
        return estimate, after, lambda p: value_fn(p, state)

    def _penalty(self, params: PyTree) -> Float[Array, ""]:
        assert self.penalty is not None
        penalty = self.penalty(params)
        if jnp.shape(penalty) != ():
            raise TypeError(
                f"penalty {self.penalty!r} returned an array of shape "
                f"{jnp.shape(penalty)}, expected a scalar"
            )
        return penalty


@programs.jit()
def _batches(sampler: Sampler, state: PyTree, *, steps: int) -> Batch:
    def draw(state: PyTree, _: None) -> tuple[PyTree, Batch]:
        batch, state = sampler.update(state)
        return state, batch

    return jax.lax.scan(draw, state, length=steps)[1]


def check(
    solver: Solver,
    params: PyTree,
    data: PyTree,
    *,
    key: PRNGKeyArray | None = None,
    model_state: PyTree = None,
) -> None:
    """Check the parts of a solver against their contracts: for tests of custom parts.

    One step is traced, and one batch is drawn, whose rows are compared with the number of rows.
    `fit` does the same for custom parts.

    Args:
      solver, params, data, model_state: as in `Solver.init`.
      key: `jax.random.key(0)` if not given.

    Raises:
      TypeError, ValueError: a method returned what its contract does not allow.
      IndexError: the sampler drew a row that the data do not have.

    >>> solver = jaxsgd.Solver(lambda w, y: (w - y) ** 2, jaxsgd.Shuffled(2), jaxsgd.SGD(0.1))
    >>> jaxsgd.check(solver, jnp.zeros(()), jnp.ones(4))
    """
    check_solver(solver)
    key = jax.random.key(0) if key is None else key
    state = solver.init(params, data, key=key, model_state=model_state)
    sampler = solver.sampler_for(data)
    contracts.check_parts(solver.gradient, sampler, solver.rule, state, data)
    batch, _ = sampler.update(state.sampler)
    contracts.check_drawn(sampler, batch, as_rows(data).size)


def check_solver(solver: object) -> None:
    """Refuse what is not a solver."""
    if not isinstance(solver, Solver):
        given = f"the class {solver.__name__}" if isinstance(solver, type) else repr(solver)
        raise TypeError(
            f"solver: expected jaxsgd.Solver(loss, sampler, rule), got {given} of type "
            f"{type(solver).__name__}"
        )


def _copy(leaf: ArrayLike) -> Array:
    """A strong-typed copy, so that a state can be donated."""
    if isinstance(leaf, Tracer) or not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable:
        return strong(jnp.array(leaf, copy=True))
    return strong(jax.device_put(leaf, may_alias=False))  # `jnp.copy` compiles for each shape


def _norm(tree: PyTree) -> Float[Array, ""]:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(accumulate(tree))))
