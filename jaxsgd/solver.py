"""The training step: which rows, their gradient, the update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsgd import checks, meshes
from jaxsgd.gradients import Gathered, Minibatch, take
from jaxsgd.losses import BatchLoss, RowLoss, RowsLoss
from jaxsgd.pairs import (
    Batch,
    Info,
    PyTree,
    State,
    accumulate,
    as_callable,
    beside,
    is_finite,
    part,
    strong,
)
from jaxsgd.proximal import penalty_of
from jaxsgd.samplers import FullBatch
from jaxsgd.transformations import as_rule, rate_used


@part
class Solver:
    """A training step made of parts, an ordinary argument of a jitted function.

    `params' = params + rule(grad(loss on batch + penalty))`. Numbers of its parts (rates, momenta,
    penalties) are leaves, to be changed, vmapped and differentiated without another compilation.

    Args:
      gradient: a gradient such as `Minibatch(loss)`, or a loss, which becomes one.
      sampler: which rows a step takes; its size is filled in from the data.
      rule: a rule, or any Optax transformation.
      penalty: None, or a function `params -> scalar`, such as `L2(1e-3)`, added once a step.
      row_weight: None, or an array v of length n, at least 0: class weights, sample weights, a
        fold's rows. The objective is then the weighted mean `sum_i v[i] loss_i / sum_i v[i]`: each
        batch's weights are multiplied by `v[i] n / sum v`. Kept scaled to a mean of 1.

    Raises:
      TypeError: a part that is none.
      ValueError: row weights that are negative, not finite, or all 0.

    >>> solver = jaxsgd.Solver(lambda w, row: (row[0] * w - row[1]) ** 2,
    ...                        jaxsgd.Shuffled(2), jaxsgd.SGD(0.1))
    >>> data = jnp.arange(4.0), 3 * jnp.arange(4.0)
    >>> state = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    >>> state, trace = jaxsgd.run(solver, state, data, steps=20)
    >>> round(float(state.params), 3), trace.loss.shape
    (3.0, (20,))
    """

    gradient: Any
    sampler: Any
    rule: Any
    penalty: Any = None
    row_weight: Any = None

    def __post_init__(self) -> None:
        is_loss = isinstance(self.gradient, RowLoss | RowsLoss | BatchLoss)
        if is_loss or not hasattr(self.gradient, "update"):
            object.__setattr__(self, "gradient", Minibatch(self.gradient))
        if isinstance(self.sampler, type) or not hasattr(self.sampler, "batch"):
            raise TypeError(
                f"sampler is {self.sampler!r}, expected one such as jaxsgd.Shuffled(64)"
            )
        object.__setattr__(self, "rule", as_rule(self.rule))
        if self.penalty is not None:
            object.__setattr__(self, "penalty", as_callable(self.penalty, "penalty"))
        if self.row_weight is not None:
            reason = getattr(self.gradient, "no_row_weight", None)
            if reason is not None:
                raise ValueError(
                    f"the solver has a row_weight, but {type(self.gradient).__name__} {reason}; "
                    "make the weights a part of the data, of mean 1, and multiply the loss by them"
                )
            object.__setattr__(self, "row_weight", _of_mean_one(self.row_weight))

    def sampler_for(self, data: PyTree) -> Any:
        """The sampler, its size filled in from the data (static)."""
        n = checks.rows(data)
        checks.one_a_row(self.row_weight, n, "the solver's row_weight")
        return meshes.sampler_for(self.sampler, data, n)

    def init(self, params: PyTree, data: PyTree, *, key: jax.Array, carry: PyTree = None) -> State:
        """The state before the first step. It owns its buffers: params, data and key stay alive.

        Args:
          params: a pytree of float arrays.
          data: a pytree of arrays that share their leading axis; only shapes are read.
          key: a typed key, or a legacy `PRNGKey`; folded with a constant of its own for each part.
          carry: the model state that a `stateful` loss starts from.

        Raises:
          TypeError: a params leaf that is no float array, data that are no arrays, no key.
          ValueError: data of different lengths or without rows, a batch size above the rows.
        """
        checks.params(params)
        sampler = self.sampler_for(data)
        key = checks.key(key)
        params, carry = jax.tree.map(_copy, (params, carry))
        gradient_key = jax.random.fold_in(key, 1)
        state = State(
            params=params,
            step=jnp.zeros((), jnp.int32),
            rule=jax.tree.map(_copy, self.rule.init(params)),
            sampler=sampler.init(jax.random.fold_in(key, 0)),
            gradient=self.gradient.init(params, data, gradient_key, carry),
        )
        return beside(state, data)

    def step(self, state: State, data: PyTree) -> tuple[State, Info]:
        """One step on the sampler's next batch: the new state, and what there is to tell."""
        batch, sampler = self.sampler_for(data).update(state.sampler)
        return self.step_at(state._replace(sampler=sampler), self.rows_of(data), batch)

    def rows_of(self, data: PyTree) -> PyTree:
        """What `step_at` is given for the data: arrays that are a batch as a whole, as gathered."""
        is_whole = isinstance(self.sampler, FullBatch) and type(self.gradient) is Minibatch
        if not is_whole or isinstance(data, meshes.MeshRows | jax.ShapeDtypeStruct):
            return data  # of rows on the host only the shape is here
        return Gathered(jax.tree.map(jnp.asarray, data))

    def step_on(
        self, state: State, rows: PyTree, weight: jax.Array | None = None
    ) -> tuple[State, Info]:
        """One step on rows that another loader gathered. The sampler stands still.

        Args:
          rows: a pytree of arrays of shape (B, ...).
          weight: float[B], as in a `Batch`: they sum to 1, and are 0 on padding; of a mask it is
            `mask / mask.sum()`. 1/B each if not given.

        Raises:
          ValueError: the solver has a `row_weight`, which is of rows by their number.
          TypeError: the gradient is `SAGA` or `SVRG`, which remember rows by theirs.
        """
        size = checks.rows(rows, "rows")
        if self.row_weight is not None:
            raise ValueError(
                "the solver has a row_weight, but rows from elsewhere have no number to look it up "
                "by; multiply it into weight"
            )
        if getattr(self.gradient, "needs_row_numbers", False):
            raise TypeError(
                f"the gradient is {type(self.gradient).__name__}, which remembers rows by their "
                "number, but rows from elsewhere have none; give HostRows or arrays to a run"
            )
        weight = jnp.full(size, 1 / size) if weight is None else jnp.asarray(weight)
        checks.one_a_row(weight, size, "weight")
        index = jnp.arange(size, dtype=jnp.int32)
        return self.step_at(state, Gathered(rows), Batch(index, weight))

    def step_at(self, state: State, data: PyTree, batch: Batch) -> tuple[State, Info]:
        """One step on a batch of your own: weighted rows of `data`. The sampler stands still."""
        params = state.params
        if self.row_weight is not None:
            factor = take(self.row_weight, batch.index)
            batch = batch._replace(weight=batch.weight * factor)
        estimate, gradient = meshes.update(self.gradient, params, data, batch, state.gradient)
        penalty, grads = jnp.zeros((), estimate.loss.dtype), estimate.grads
        if self.penalty is not None:
            penalty, slope = jax.value_and_grad(self._penalty)(accumulate(params))
            grads = jax.tree.map(jnp.add, grads, slope)

        def value_fn(params: PyTree) -> jax.Array:
            loss = meshes.value(self.gradient, params, data, batch, state.gradient)
            return loss if self.penalty is None else loss + self._penalty(params)

        value = estimate.loss + penalty
        extra = {"value": value, "grad": grads, "value_fn": value_fn}
        updates, rule = self.rule.update(grads, state.rule, params, **extra)
        jax.tree.map(self._check_update, updates, params)
        after = optax.apply_updates(params, updates)
        proximal = penalty_of(self.rule)
        info = Info(
            step=state.step,
            loss=estimate.loss,
            penalty=penalty if proximal is None else penalty + proximal(params),
            grad_norm=_norm(grads),
            update_norm=_norm(updates),
            aux=estimate.aux,
            learning_rate=rate_used(self.rule, state.rule, rule),
            noise=estimate.noise,
            finite=is_finite((estimate.loss, grads, after)),
        )
        return State(after, state.step + 1, rule, state.sampler, gradient), info

    def _check_update(self, update: Any, param: Any) -> None:
        if jnp.shape(update) != jnp.shape(param):
            raise ValueError(
                f"the rule {self.rule!r} returned an update of shape {jnp.shape(update)} for a "
                f"parameter of shape {jnp.shape(param)}, expected the same shape"
            )

    def _penalty(self, params: PyTree) -> jax.Array:
        penalty = self.penalty(params)
        if jnp.shape(penalty) != ():
            raise TypeError(
                f"penalty {self.penalty!r} returned an array of shape "
                f"{jnp.shape(penalty)}, expected a scalar"
            )
        return penalty


def _of_mean_one(weight: Any) -> Any:
    """Row weights scaled to a mean of 1, or as they are where that is their mean already."""
    checks.weights(weight, "row_weight")
    xp = jnp if isinstance(weight, jax.core.Tracer) else np
    wide = xp.asarray(weight, jax.dtypes.canonicalize_dtype(float) if xp is jnp else np.float64)
    mean = wide.mean(-1, keepdims=True)
    if xp is np:  # a solver made from another's parts has its very weights
        mean = np.where(abs(mean - 1) < 1e-6, 1, mean)
    wide = wide / mean
    return jnp.asarray(wide, jax.dtypes.canonicalize_dtype(float))


def _copy(leaf: Any) -> jax.Array:
    """A strong-typed buffer of one's own, so that a state can be donated."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return jnp.copy(leaf)
    return strong(jnp.array(leaf, copy=True))


def _norm(tree: PyTree) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(accumulate(tree))))
