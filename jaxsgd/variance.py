"""Gradients whose variance vanishes at the optimum: SVRG and SAGA."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsgd import checks
from jaxsgd.accumulation import Accumulated
from jaxsgd.gradients import Gathered, GradientState, Minibatch, like, take
from jaxsgd.losses import RowLoss, RowsLoss, as_loss, weigh
from jaxsgd.models import Linear, ModelLoss
from jaxsgd.pairs import Batch, Estimate, PyTree, accumulate, accumulator_of, part, static

ROWS = 4096  # of a part of a full gradient: it bounds the memory


def _checked(loss: Any, name: str, forms: Any) -> Any:
    """A loss whose gradient at some params is always the same, row by row."""
    loss = as_loss(loss)
    if not isinstance(loss, forms) or loss.stateful or loss.keyed:
        raise TypeError(
            f"{name}'s loss is {loss!r}, expected a function of (params, row)"
            f"{' or a RowLoss' if forms is RowLoss else ', a RowLoss or a RowsLoss'} without a key "
            "or a carry: it is compared with itself at other params"
        )
    return loss


def _value(self: Any, params: PyTree, data: PyTree, batch: Batch, state: Any) -> jax.Array:
    """The loss (float[]) of the same batch at other params: the plain one."""
    return Minibatch(self.loss).value(params, data, batch, GradientState())


class SVRGState(NamedTuple):
    """Where the last full gradient was taken, the gradient, and the steps taken."""

    params: PyTree
    grads: PyTree
    step: jax.Array  # int32[]
    carry: PyTree = None


@part
class SVRG:
    """Stochastic variance reduced gradient: a batch's change since a full gradient, and that.

    `sum_i weight[i] (g_i(params) - g_i(before)) + 1/n sum_j g_j(before)`, `before` the params at a
    multiple of `every` steps, where the gradient of all rows is taken, in parts of 4,096.
    Unbiased, as the batch is, and its variance goes to 0 as params and `before` meet: with a
    constant rate (`Smoothness.rate`) it converges linearly where the objective is strongly convex.
    Costs two gradients of the batch, and that of all rows every so often; under `vmap` over the
    number of steps, which is what `run_until` maps, it would be taken in each.

    Args:
      loss: a function of `(params, row)`, a `RowLoss` or a `RowsLoss`, without key or carry.
      every: steps between full gradients, at least 1: those of one or two epochs, say.

    Raises:
      TypeError: another loss, or rows that stay on the host or lie on a mesh.

    Johnson and Zhang, "Accelerating stochastic gradient descent using predictive variance
    reduction" (2013).

    >>> y = jnp.array([1.0, 3.0, 5.0, 7.0])
    >>> gradient = jaxsgd.SVRG(lambda theta, y: (theta - y) ** 2 / 2, every=4)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(1), jaxsgd.SGD(0.5))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> round(float(jaxsgd.run(solver, state, y, 40)[0].params), 3)  # the mean, not around it
    4.0
    """

    loss: Any
    every: int = static()

    no_row_weight = "averages all rows by itself"
    needs_row_numbers = True
    value = _value

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", _checked(self.loss, "SVRG", RowLoss | RowsLoss))
        object.__setattr__(self, "every", checks.integer(self.every, "SVRG's every", 1))

    def init(self, params: PyTree, data: PyTree, key: Any, carry: PyTree = None) -> SVRGState:
        """The state before the first step, which takes the first full gradient."""
        if hasattr(data, "row_shapes"):
            raise TypeError(f"SVRG's data are {data!r}, expected arrays; SAGA takes HostRows")
        wide = accumulate(params)
        zeros = jax.tree.map(jnp.zeros_like, wide)
        return SVRGState(jax.tree.map(jnp.copy, params), zeros, jnp.zeros((), jnp.int32))

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: SVRGState
    ) -> tuple[Estimate, SVRGState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        plain, none = Minibatch(self.loss), GradientState()
        before, full = lax.cond(
            state.step % self.every == 0,
            lambda: (params, full_gradient(self.loss, params, data)),
            lambda: (state.params, state.grads),
        )
        rows = Gathered(take(data, batch.index))
        estimate, _ = plain.update(params, rows, batch, none)
        old, _ = plain.update(before, rows, batch, none)
        grads = jax.tree.map(lambda g, o, f: g - o + f, estimate.grads, old.grads, full)
        return estimate._replace(grads=grads), SVRGState(before, full, state.step + 1)


def full_gradient(loss: Any, params: PyTree, data: PyTree, key: Any = None) -> PyTree:
    """The gradient of the mean loss over all rows, in parts."""
    n = checks.rows(data)
    parts = Accumulated(Minibatch(loss), -(-n // ROWS))
    batch = Batch(jnp.arange(n, dtype=jnp.int32), jnp.full(n, 1 / n, float))
    state = parts.init(params, data, key)
    return parts.update(params, data, batch, state)[0].grads


class SAGAState(NamedTuple):
    """The last gradient that was seen of each row, and their mean."""

    table: PyTree  # (n, ...) of each leaf of params; of a linear ModelLoss the errors, float[n, k]
    mean: PyTree
    rest: PyTree  # what rounding kept from the mean: without it small changes would be lost
    slot: jax.Array  # int32[n], scratch: which slot of a batch speaks for a row
    carry: PyTree = None


@part
class SAGA:
    """A batch's change since each row was seen last, and the mean of what was seen.

    `sum_i weight[i] (g_i - seen_i) + 1/n sum_j seen_j`; then `seen_i = g_i` for the rows of the
    batch. All are 0 at first. Unbiased, as the batch is, and its variance goes to 0 where g_i stand
    still: with a constant rate (`Smoothness.rate`) it converges linearly where the objective is
    strongly convex. With `Proximal` it solves L1 problems. A row counts once, whether it has
    several slots or one of weight 0 beside.

    The table holds n gradients, and of `ModelLoss(Linear(...), fn)` n outputs: a row's gradient is
    its error times its input. It is written in place, but `run_until`, which looks at each step
    before it counts, copies it: prefer `run`, `chunks` or `fit` where n is large.

    Args:
      loss: a function of `(params, row)`, `ModelLoss`, or a `RowLoss`, without key or carry.

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

    loss: Any

    no_row_weight = "averages all rows by itself"
    needs_row_numbers = True
    value = _value

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", _checked(self.loss, "SAGA", RowLoss))

    @property
    def _is_linear_model(self) -> bool:
        fn = self.loss.fn
        is_model = isinstance(fn, ModelLoss) and isinstance(fn.model, Linear)
        return is_model and not self.loss.has_aux

    def init(self, params: PyTree, data: PyTree, key: Any, carry: PyTree = None) -> SAGAState:
        """The state before the first step: nothing was seen."""
        n = checks.rows(data)
        mean = jax.tree.map(jnp.zeros_like, accumulate(params))
        one = mean
        if self._is_linear_model:
            one = self.loss.fn.model.layers(mean)[0]["bias"].astype(accumulator_of(params))
        table = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), one)
        rest = jax.tree.map(jnp.zeros_like, mean)
        return SAGAState(table, mean, rest, jnp.zeros(n, jnp.int32))

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: SAGAState
    ) -> tuple[Estimate, SAGAState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        if not isinstance(data, Gathered) and checks.rows(data) != len(state.slot):
            raise ValueError(
                f"SAGA's state is of {len(state.slot)} rows, but the data have {checks.rows(data)}"
            )
        index, weight = batch.index, batch.weight.astype(accumulator_of(params))
        rows, slot, n = take(data, index), state.slot, len(state.slot)
        if len(index) > 1:
            lane = jnp.arange(len(index), dtype=jnp.int32)
            slot = slot.at[jnp.where(weight != 0, index, n)].set(lane, mode="drop")
            speaks = (take(slot, index) == lane) & (weight != 0)
        else:  # twice: the read of a single row XLA fuses with its write, and copies the table
            index, weight = jnp.repeat(index, 2), jnp.pad(weight, (0, 1))
            rows = jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), rows)
            speaks = weight != 0

        losses, aux, now, summed = self._seen(params, rows)
        change = jax.tree.map(jnp.subtract, now, take(state.table, index))
        once = jax.tree.map(lambda x: jnp.where(_along(speaks, x), x, 0), change)
        step = summed(jax.tree.map(lambda x: x * _along(weight, x), change))
        grads = jax.tree.map(jnp.add, step, state.mean)
        more = jax.tree.map(lambda x, rest: x / n + rest, summed(once), state.rest)
        mean = jax.tree.map(jnp.add, state.mean, more)
        rest = jax.tree.map(lambda x, new, old: x - (new - old), more, mean, state.mean)
        table = jax.tree.map(partial(_added, index, len(batch.index)), state.table, once)
        estimate = Estimate(weigh(weight, losses), grads, weigh(weight, aux))
        return estimate, SAGAState(table, mean, rest, slot)

    def _seen(self, params: PyTree, rows: PyTree) -> Any:
        """Of each row the loss, aux and what the table keeps; and what sums such to a gradient."""
        wide = accumulate(params)
        if self._is_linear_model:
            loss = self.loss.fn
            dtype = accumulator_of(params)
            told = loss.errors(like(wide, params), rows)
            losses, (error,), inputs = jax.tree.map(lambda x: x.astype(dtype), told)
            return losses, None, error, lambda e: like(loss.summed((e,), inputs), wide)

        def one(wide: PyTree, row: PyTree) -> tuple[jax.Array, Any]:
            return self.loss.one(like(wide, params), row, None, None)[:2]

        each = jax.vmap(jax.value_and_grad(one, has_aux=True), (None, 0))
        (losses, aux), grads = each(wide, rows)
        return losses, aux, grads, lambda g: jax.tree.map(lambda x: x.sum(0), g)


def _added(index: jax.Array, count: int, table: jax.Array, change: jax.Array) -> jax.Array:
    """The table with changes added to its rows: an addition is in place, and faster than a set."""
    if count > 1:
        return table.at[index].add(change, mode="promise_in_bounds")
    row = take(table, index)[0] + change[0]  # no scatter, which no kernel can do
    return lax.dynamic_update_index_in_dim(table, row, index[0], 0)


def _along(x: jax.Array, like: jax.Array) -> jax.Array:
    """An array of length B with axes of length 1, to be broadcast with float[B, ...]."""
    return x.reshape(-1, *(1,) * (like.ndim - 1))
