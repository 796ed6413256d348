"""The gradient of a batch in parts, one after the other."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsgd import checks
from jaxsgd.gradients import Gathered, GradientState, Minibatch
from jaxsgd.pairs import Batch, Estimate, PyTree, part, static


@part
class Accumulated:
    """Another gradient of the same batch, in `chunks` sequential parts that need less memory.

    `sum_c gradient(part c of the batch)`: the same estimate to rounding, as a gradient that is
    linear in the weights is the sum of its parts. Any batch size does: the last part is filled up
    with rows of weight 0. A `keyed` loss draws other numbers in each part.

    Args:
      gradient: a gradient, or a loss, which becomes `Minibatch(loss)`.
      chunks: how many parts, at least 1; of a batch with fewer rows than that, a row each.

    Raises:
      TypeError: a gradient that is no sum over rows (`BatchLoss`, a `RowsLoss` with a carry).

    >>> y = jnp.array([1.0, 3.0])
    >>> gradient = jaxsgd.Accumulated(lambda theta, y: (theta - y) ** 2, chunks=2)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.FullBatch(), jaxsgd.SGD(0.5))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> float(jaxsgd.run(solver, state, y, 1)[0].params)
    2.0
    """

    gradient: Any
    chunks: int = static()

    def __post_init__(self) -> None:
        object.__setattr__(self, "gradient", linear(self.gradient, "Accumulated"))
        object.__setattr__(self, "chunks", checks.integer(self.chunks, "Accumulated's chunks", 1))

    @property
    def is_linear(self) -> bool:
        """Whether it is a sum over rows: yes."""
        return True

    @property
    def is_keyed(self) -> bool:
        """Whether it draws numbers for its rows."""
        return getattr(self.gradient, "is_keyed", False)

    def init(self, params: PyTree, data: PyTree, key: jax.Array, carry: PyTree = None) -> Any:
        """The state before the first step, the gradient's own."""
        return self.gradient.init(params, data, key, carry)

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: Any
    ) -> tuple[Estimate, Any]:
        """The estimate from a batch of rows of `data`, and the state after it."""

        def of_part(data: PyTree, batch: Batch, own: Any) -> Any:
            estimate, after = self.gradient.update(params, data, batch, own)
            change = jax.tree.map(jnp.subtract, after.carry, state.carry)
            return (estimate, change), after

        (estimate, change), after = self._sum(of_part, data, batch, state)
        if isinstance(state, GradientState):
            after = after._replace(key=state.key)
        if jax.tree.leaves(change):
            after = after._replace(carry=jax.tree.map(jnp.add, state.carry, change))
        return estimate, after

    def value(self, params: PyTree, data: PyTree, batch: Batch, state: Any) -> jax.Array:
        """The loss (float[]) of the same batch, under the same key and carry, at other params."""
        of_part = lambda data, batch, own: (self.gradient.value(params, data, batch, own), own)  # noqa: E731
        return self._sum(of_part, data, batch, state)[0]

    def _sum(self, of_part: Any, data: PyTree, batch: Batch, state: Any) -> tuple[Any, Any]:
        """The sum over parts of `of_part(data, batch, state)[0]`, and the state of the last."""
        size = batch.index.shape[0]
        length = -(-size // self.chunks)
        count = -(-size // length)

        def cut(x: jax.Array, **how: Any) -> jax.Array:
            x = jnp.pad(x, [(0, count * length - size)] + [(0, 0)] * (x.ndim - 1), **how)
            return x.reshape(count, length, *x.shape[1:])

        parts = Batch(cut(batch.index, mode="edge"), cut(batch.weight))
        is_gathered = isinstance(data, Gathered)
        rows = jax.tree.map(lambda x: cut(x, mode="edge"), data.rows) if is_gathered else None

        def take_part(number: jax.Array, rows: PyTree, batch: Batch) -> tuple[Any, Any]:
            part = Gathered(rows) if is_gathered else data
            return of_part(part, batch, for_part(state, number))

        def add(total: Any, piece: Any) -> tuple[Any, None]:
            term, after = take_part(*piece)
            return (jax.tree.map(jnp.add, total[0], term), after), None

        pieces = jnp.arange(count, dtype=jnp.int32), rows, parts
        shapes = jax.eval_shape(take_part, *jax.tree.map(lambda x: x[0], pieces))[0]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.scan(add, (zeros, state), pieces)[0]


def linear(gradient: Any, name: str) -> Any:
    """A gradient (a loss becomes one) that parts of a batch add up to, or a refusal."""
    gradient = gradient if hasattr(gradient, "update") else Minibatch(gradient)
    if not getattr(gradient, "is_linear", False):
        raise TypeError(
            f"{name}'s gradient is {gradient!r}, expected one that is a sum over rows: a RowLoss, "
            "or a RowsLoss without a carry, around which noise and its scale are told once a batch"
        )
    return gradient


def for_part(state: Any, number: Any) -> Any:
    """A gradient's state for a part of a batch: its key draws numbers of its own."""
    if not isinstance(state, GradientState) or state.key is None:
        return state
    return state._replace(key=jax.random.fold_in(state.key, number))
