"""The gradient of a weighted set of rows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsgd import checks
from jaxsgd.losses import RowLoss, RowsLoss, as_loss
from jaxsgd.pairs import Batch, Estimate, PyTree, accumulate, accumulator_of, part, strong


class GradientState(NamedTuple):
    """The key and step of a `keyed` loss, and the carry of a `stateful` one."""

    key: Any = None  # a key, only ever folded; None where the loss needs none
    step: Any = None  # int32[], or None with the key
    carry: PyTree = None


@part
class Minibatch:
    """The plain gradient of a batch: `sum_i weight[i] grad loss(params, row[index[i]])`.

    A loss given to a solver as its gradient is one.

    Args:
      loss: `RowLoss`, `RowsLoss`, `BatchLoss`, or a function, which is a `RowLoss`.

    >>> gradient = jaxsgd.Minibatch(lambda theta, y: (theta - y) ** 2)
    >>> y = jnp.array([1.0, 3.0])
    >>> batch = jaxsgd.Batch(index=jnp.array([0, 1]), weight=jnp.array([0.5, 0.5]))
    >>> state = gradient.init(jnp.zeros(()), y, jax.random.key(0))
    >>> estimate, state = gradient.update(jnp.zeros(()), y, batch, state)
    >>> float(estimate.loss), float(estimate.grads)
    (5.0, -4.0)
    """

    loss: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", as_loss(self.loss))

    @property
    def is_linear(self) -> bool:
        """Whether it is a sum over rows, which parts of a batch add up to."""
        return isinstance(self.loss, RowLoss) or (
            isinstance(self.loss, RowsLoss) and not self.loss.stateful
        )

    @property
    def is_keyed(self) -> bool:
        """Whether it draws numbers for its rows."""
        return self.loss.keyed

    def init(
        self, params: PyTree, data: PyTree, key: jax.Array, carry: PyTree = None
    ) -> GradientState:
        """The state before the first step. `carry` is the model state of a `stateful` loss."""
        if self.loss.stateful and carry is None:
            raise ValueError(
                "the loss is stateful, expected carry=, the model state it starts from"
            )
        if not self.loss.stateful and carry is not None:
            raise ValueError("a carry was given, but the loss is not stateful; give stateful=True")
        if not self.loss.keyed:
            return GradientState(carry=carry)
        return GradientState(checks.key(key), jnp.zeros((), jnp.int32), carry)

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> tuple[Estimate, GradientState]:
        """The estimate from a batch of rows of `data`, and the state after it."""

        def objective(accumulated: PyTree) -> tuple[jax.Array, Any]:
            return self._total(like(accumulated, params), data, batch, state)

        # differentiated in the accumulator's dtype, so that bfloat16 gradients are not summed twice
        (loss, (aux, carry)), grads = jax.value_and_grad(objective, has_aux=True)(
            accumulate(params)
        )
        step = None if state.step is None else state.step + 1
        if self.loss.stateful:
            carry = _carry_like(carry, state.carry)
        return Estimate(loss, grads, aux), GradientState(state.key, step, carry)

    def value(self, params: PyTree, data: PyTree, batch: Batch, state: GradientState) -> jax.Array:
        """The loss (float[]) of the same batch, under the same key and carry, at other params."""
        return self._total(params, data, batch, state)[0]

    def _total(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> tuple[jax.Array, Any]:
        key = None if state.key is None else jax.random.fold_in(state.key, state.step)
        weight = batch.weight.astype(accumulator_of(params))
        return self.loss.total(params, take(data, batch.index), weight, key, state.carry)


def _carry_like(carry: PyTree, before: PyTree) -> PyTree:
    """The new carry in the dtypes of the old one; another structure, shape or kind is refused."""
    if checks.form(carry) != checks.form(before):
        told = [jax.tree.map(jnp.shape, tree) for tree in (carry, before)]
        raise ValueError(f"the loss returned a carry of shapes {told[0]}, but was given {told[1]}")

    def cast(new: Any, old: jax.Array) -> jax.Array:
        new = jnp.asarray(new)
        if jnp.issubdtype(new.dtype, jnp.inexact) and not jnp.issubdtype(old.dtype, jnp.inexact):
            raise TypeError(f"the loss returned a carry of {new.dtype}, but was given {old.dtype}")
        return strong(new if new.dtype == old.dtype else new.astype(old.dtype))

    return jax.tree.map(cast, carry, before)


class Gathered:
    """The rows of one batch, gathered already: the `data` of a step whose rows came from elsewhere.

    No pytree, so that a gradient which does not read them by `take` fails instead of taking others.
    """

    def __init__(self, rows: PyTree):
        self.rows = rows

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(
            "the rows of this batch were gathered elsewhere, and are not indexed by the data's "
            "numbers; a gradient reads its rows by jaxsgd.take(data, batch.index)"
        )


def take(data: PyTree, index: jax.Array) -> PyTree:
    """The rows of `data` at `index`: how a gradient of one's own reads its batch.

    Rows that were gathered elsewhere (`HostRows`, `step_on`) are handed through. No bounds are
    checked: samplers keep inside them.

    Args:
      data: a pytree of arrays of shape (n, ...).
      index: int32[B].

    Returns:
      The same pytree with arrays of shape (B, ...).

    >>> jaxsgd.take({"y": jnp.array([1.0, 3.0, 8.0])}, jnp.array([2, 0]))
    {'y': Array([8., 1.], dtype=float32)}
    """
    if isinstance(data, Gathered):
        return data.rows
    return jax.tree.map(lambda x: jnp.asarray(x).at[index].get(mode="promise_in_bounds"), data)


def like(tree: PyTree, params: PyTree) -> PyTree:
    """The leaves of a tree in the dtypes of `params`."""
    return jax.tree.map(lambda x, p: x.astype(p.dtype), tree, params)
