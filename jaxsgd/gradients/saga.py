"""SAGA: a gradient whose variance vanishes at the optimum, by a table of the rows' gradients."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from jaxsgd.core.part import field, part
from jaxsgd.core.records import Batch, Estimate
from jaxsgd.core.trees import accumulate, accumulator_of, like
from jaxsgd.data.arrays import as_rows, take
from jaxsgd.gradients.base import Gradient, GradientState, check_size, refuse_model_state
from jaxsgd.gradients.minibatch import MinibatchGradient
from jaxsgd.gradients.svrg import as_fixed_loss
from jaxsgd.losses import Loss, RowLoss, weigh
from jaxsgd.models import Linear, ModelLoss


class SAGAState(NamedTuple):
    """The last gradient seen of each row, and the mean of these gradients."""

    table: PyTree  # (n, ...) of each leaf of params; of a linear ModelLoss the errors, float[n, k]
    mean: PyTree
    rest: PyTree  # the mean's rounding error, without which small changes would be lost
    position: Int[Array, " n"]  # scratch: which position of a batch counts for a row
    model_state: PyTree = None


def _as_fixed_row_loss(loss: Loss | Callable[..., PyTree], name: str = "loss") -> RowLoss:
    """A loss of one row whose gradient at given params is always the same."""
    loss = as_fixed_loss(loss, name)
    if not isinstance(loss, RowLoss):
        raise TypeError(
            f"{name} is {loss!r}, expected a function of (params, row) or a RowLoss: a table keeps "
            "the gradient of each row"
        )
    return loss


@part
class SAGA(Gradient):
    """SAGA: how a batch's gradients changed since last seen, plus the mean of those last seen.

    `sum_i weight[i] (g_i - seen_i) + 1/n sum_j seen_j`; then `seen_i = g_i` for the rows of the
    batch. All seen_i are 0 at first. It is unbiased if the batch is, and its variance goes to 0 as
    the g_i stop changing: with a constant rate (`Smoothness.rate`) it converges linearly where the
    objective is strongly convex. With `Proximal` it solves L1 problems. A row updates the table
    once, even if it has several positions in the batch; positions of weight 0 update nothing.

    The table holds n gradients, or n outputs for `ModelLoss(Linear(...), fn)`, where a row's
    gradient is its error times its input. A step writes it in place, except in `run_until`, which
    may discard a step and so copies the table. The state given to `run` stays alive, so there are
    two tables, as in `fit`; a `chunks` loop holds three. If only one fits, donate the state:
    `jax.jit(lambda solver, state: jaxsgd.run(solver, state, data, 1000), donate_argnums=1)`.

    Args:
      loss: a function of `(params, row)`, `ModelLoss`, or a `RowLoss`, without key or model state.

    Raises:
      TypeError: another loss, or rows on a mesh.

    Defazio, Bach and Lacoste-Julien, "SAGA: a fast incremental gradient method with support for
    non-strongly convex composite objectives" (2014).

    >>> y = jnp.array([1.0, 3.0, 5.0, 7.0])
    >>> gradient = jaxsgd.SAGA(lambda theta, y: (theta - y) ** 2 / 2)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(1), jaxsgd.SGD(0.3))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> round(float(jaxsgd.run(solver, state, y, 80)[0].params), 3)  # the mean, not around it
    4.0
    """

    loss: RowLoss = field(converter=_as_fixed_row_loss)

    sample_weight_refusal = "averages all rows by itself"
    needs_row_index = True

    @property
    def _linear_model(self) -> ModelLoss | None:
        fn = self.loss.fn
        if isinstance(fn, ModelLoss) and isinstance(fn.model, Linear) and not self.loss.has_aux:
            return fn
        return None

    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> SAGAState:
        """The state before the first step: no gradient has been seen."""
        refuse_model_state(model_state, self)
        n = as_rows(data).size
        mean = jax.tree.map(jnp.zeros_like, accumulate(params))
        one = mean
        if (linear := self._linear_model) is not None:
            one = linear.model.layers(mean)[0]["bias"].astype(accumulator_of(params))
        table = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), one)
        rest = jax.tree.map(jnp.zeros_like, mean)
        return SAGAState(table, mean, rest, jnp.zeros(n, jnp.int32))

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: SAGAState
    ) -> tuple[Estimate, SAGAState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        check_size(len(state.position), as_rows(data).size, self)
        # The table is written in place, by an addition at the batch's rows. `position`, a scratch
        # array, says which position of the batch counts for a row that is in it more than once.
        index, weight = batch.index, batch.weight.astype(accumulator_of(params))
        rows, position, n = take(data, index), state.position, len(state.position)
        if len(index) > 1:
            place = jnp.arange(len(index), dtype=jnp.int32)
            position = position.at[jnp.where(weight != 0, index, n)].set(place, mode="drop")
            counts = (take(position, index) == place) & (weight != 0)
        else:  # twice: XLA would fuse the read of a single row with its write, and copy the table
            index, weight = jnp.repeat(index, 2), jnp.pad(weight, (0, 1))
            rows = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), rows)
            counts = weight != 0

        losses, aux, now, summed = self._seen(params, rows)
        change = jax.tree.map(jnp.subtract, now, take(state.table, index))
        once = jax.tree.map(lambda x: jnp.where(_along(counts, x), x, 0), change)
        step = summed(jax.tree.map(lambda x: x * _along(weight, x).astype(x.dtype), change))
        grads = jax.tree.map(jnp.add, step, state.mean)
        more = jax.tree.map(lambda x, rest: x / n + rest, summed(once), state.rest)
        mean = jax.tree.map(jnp.add, state.mean, more)
        rest = jax.tree.map(lambda x, new, old: x - (new - old), more, mean, state.mean)
        table = jax.tree.map(partial(_added, index, len(batch.index)), state.table, once)
        estimate = Estimate(weigh(weight, losses), grads, weigh(weight, aux))
        return estimate, SAGAState(table, mean, rest, position)

    def _seen(
        self, params: PyTree, rows: PyTree
    ) -> tuple[Float[Array, " B"], PyTree, PyTree, Callable[[PyTree], PyTree]]:
        """The losses, aux and table entries of rows; a function that sums entries to a gradient."""
        wide = accumulate(params)
        if (linear := self._linear_model) is not None:
            dtype = accumulator_of(params)
            values = linear.errors(like(wide, params), rows)
            losses, (error,), inputs = jax.tree.map(lambda x: x.astype(dtype), values)
            return losses, None, error, lambda e: like(linear.summed((e,), inputs), wide)

        def one(wide: PyTree, row: PyTree) -> tuple[Float[Array, ""], PyTree]:
            return self.loss.one(like(wide, params), row, None, None)[:2]

        each = jax.vmap(jax.value_and_grad(one, has_aux=True), (None, 0))
        (losses, aux), grads = each(wide, rows)
        return losses, aux, grads, lambda g: jax.tree.map(lambda x: x.sum(0), g)

    def value(self, params: PyTree, data: PyTree, batch: Batch, state: PyTree) -> Float[Array, ""]:
        """The plain loss of the same batch at other params."""
        return MinibatchGradient(self.loss).value(params, data, batch, GradientState())


def _added(
    index: Int[Array, " B"], count: int, table: Float[Array, "n ..."], change: Float[Array, "B ..."]
) -> Float[Array, "n ..."]:
    """The table with changes added to its rows: an addition is in place, and faster than a set."""
    if count > 1:
        return table.at[index].add(change, mode="promise_in_bounds")
    row = take(table, index)[0] + change[0]  # no scatter, which no kernel can do
    return lax.dynamic_update_index_in_dim(table, row, index[0], 0)


def _along(
    x: Bool[Array, " B"] | Float[Array, " B"], like: Float[Array, "B ..."]
) -> Bool[Array, "B ..."] | Float[Array, "B ..."]:
    """An array of length B with axes of length 1, to be broadcast with float[B, ...]."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))
