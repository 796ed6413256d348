"""Estimates that are computed in parts and added.

An estimate that is linear in the weights is the sum of the estimates of any parts of its batch.
Microbatches, halves of a batch, shards of a mesh and chunks of a full gradient are this one
operation; a `Reduction` says what the parts are, and in which order they are added. Each part draws
different random numbers (its number is folded into the key), and a model state changes by the sum
of its changes in the parts.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxsgd.core.records import Batch, Estimate
from jaxsgd.data.arrays import as_rows
from jaxsgd.data.base import OfPart, PartNumber, Reduction
from jaxsgd.gradients.base import Gradient

T = TypeVar("T")


def update_in_parts(
    gradient: Gradient, reduction: Reduction, params: PyTree, state: PyTree
) -> tuple[Estimate, PyTree]:
    """The sum of a gradient's estimates of all parts, and its state after them."""
    of_part = partial(estimate_of_part, gradient)
    (estimate, change), after = reduction(of_part, params, state)
    return estimate, joined(gradient, state, after, change)


def value_in_parts(
    gradient: Gradient,
    reduction: Reduction,
    params: PyTree,
    state: PyTree,
    reproducible: bool = False,
) -> Float[Array, ""]:
    """The sum of a gradient's values of all parts.

    With `reproducible` its derivative is added in the order of the reduction too. It is then the
    derivative by `params` alone: whatever else the gradient depends on cannot be differentiated.
    """

    def total(of: Callable[..., T], params: PyTree) -> T:
        def of_part(
            number: PartNumber, data: PyTree, batch: Batch, params: PyTree, state: PyTree
        ) -> tuple[T, PyTree]:
            return of(params, data, batch, for_part(gradient, state, number)), state

        return reduction(of_part, params, state)[0]

    if not reproducible:
        return total(gradient.value, params)

    @jax.custom_jvp  # JAX's derivative of the reduction adds up the parts in another order
    def value(params: PyTree) -> Float[Array, ""]:
        return total(gradient.value, params)

    @value.defjvp
    def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[Array, Array]:
        out, slope = total(jax.value_and_grad(gradient.value), *primals)
        return out, jnp.asarray(optax.tree.vdot(slope, *tangents))

    return value(params)


def estimate_of_part(
    gradient: Gradient,
    number: PartNumber,
    data: PyTree,
    batch: Batch,
    params: PyTree,
    state: PyTree,
) -> tuple[tuple[Estimate, PyTree], PyTree]:
    """The estimate of one part and its change of the model state, and the state after it.

    `number` (int32[]) is the number of the part, or None if there is only one.
    """
    own = for_part(gradient, state, number)
    estimate, after = gradient.update(params, data, batch, own)
    change = jax.tree.map(jnp.subtract, after.model_state, state.model_state)
    return (estimate, change), after


def joined(gradient: Gradient, state: PyTree, after: PyTree, change: PyTree) -> PyTree:
    """The state after all parts: that of one of them, with the key and the sum of all changes."""
    if gradient.is_keyed:
        after = after._replace(key=state.key)
    if jax.tree.leaves(change):
        after = after._replace(model_state=jax.tree.map(jnp.add, state.model_state, change))
    return after


def in_sequence(data: PyTree, batch: Batch, parts: int) -> Reduction:
    """Equal parts of a batch, one after another; the last is padded with rows of weight 0."""
    rows, size = as_rows(data), batch.index.shape[0]
    length = -(-size // parts)
    count = -(-size // length)

    def cut(x: Array, mode: str) -> Array:
        x = jnp.pad(x, [(0, count * length - size)] + [(0, 0)] * (x.ndim - 1), mode)
        return x.reshape(count, length, *x.shape[1:])

    arrays = jax.tree.map(lambda x: cut(x, "edge"), rows.batch_arrays)
    batches = Batch(cut(batch.index, "edge"), cut(batch.weight, "constant"))

    def reduce(of_part: OfPart, params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        def one(number: Int[Array, ""], arrays: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
            return of_part(number, rows.with_batch_arrays(arrays), batch, params, state)

        def add(total: PyTree, piece: PyTree) -> tuple[PyTree, None]:
            term, after = one(*piece)
            return (jax.tree.map(jnp.add, total[0], term), after), None

        pieces = jnp.arange(count, dtype=jnp.int32), arrays, batches
        shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], pieces))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[0])
        return lax.scan(add, (zeros, state), pieces)[0]

    return reduce


def halves(data: PyTree, batch: Batch) -> Iterator[tuple[int, PyTree, Batch]]:
    """The even and the odd positions of a batch: number, data and batch of each part.

    Even and odd, so that the classes of a stratified batch are in both halves. This is not a
    `Reduction`, because the two estimates are compared before they are added.
    """
    rows = as_rows(data)
    for i in range(2):
        cut = lambda x, i=i: x[i::2]  # noqa: E731
        half = rows.with_batch_arrays(jax.tree.map(cut, rows.batch_arrays))
        yield i, half, jax.tree.map(cut, batch)


def for_part(gradient: Gradient, state: PyTree, number: PartNumber) -> PyTree:
    """A state whose key draws the random numbers of one part; None if there is only one."""
    if not gradient.is_keyed or number is None:
        return state
    return state._replace(key=jax.random.fold_in(state.key, number))
