"""The axes of a sweep, and the values on each."""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.trees import by_words

Over = Mapping[str, PyTree] | Sequence[Mapping[str, PyTree]]  # as a user writes the axes
Axes = tuple[dict[str, PyTree], ...]  # the values by name of each axis
PlaceLike = int | np.integer | np.ndarray | jax.Array


def as_axes(over: Over) -> Axes:
    """The values by name of each axis: arrays whose leading axes have the same length."""
    if not isinstance(over, Mapping | list | tuple):
        raise TypeError(
            f"over is {over!r} of type {type(over).__name__}, expected values by name, "
            "{'learning_rate': [...]}, or a list of such dicts"
        )
    is_product = isinstance(over, Mapping)
    axes = [{name: values} for name, values in over.items()] if is_product else list(over)
    if not axes:
        raise ValueError("over holds no axis, expected values by name: {'learning_rate': [...]}")
    names: list[str] = []
    for axis in axes:
        if not isinstance(axis, Mapping) or not axis:
            raise TypeError(f"over holds {axis!r}, expected a dict of values by name for each axis")
        names += axis
    if len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"over names {names}, expected each argument of fn once")
    checked = tuple({name: _as_arrays(name, v) for name, v in axis.items()} for axis in axes)
    for axis in checked:
        length(axis)  # raises where lengths differ
    return checked


def _as_arrays(name: str, values: PyTree) -> PyTree:
    """A list of numbers as an array; a pytree of arrays as it is, once checked."""
    if isinstance(values, list | tuple | range) and all(
        isinstance(value, bool | int | float | np.number) for value in values
    ):
        values = np.asarray(values)
    for leaf in jax.tree.leaves(values):
        if not isinstance(leaf, np.ndarray | jax.Array) or leaf.ndim == 0:
            raise TypeError(
                f"over[{name!r}] holds {leaf!r}, expected a list of numbers, or arrays with one "
                "entry per value along their leading axis, such as jax.random.split(key, 8) or a "
                "jnp.stack of the values"
            )
        if isinstance(leaf, np.ndarray):
            validation.no_text(leaf, f"over[{name!r}]")
            validation.fits_32_bits(leaf, f"over[{name!r}]")
    return values


def length(axis: dict[str, PyTree]) -> int:
    """The number of values on an axis, which is the same for all of its names."""
    lengths = {name: {len(x) for x in jax.tree.leaves(v)} for name, v in axis.items()}
    found = set().union(*lengths.values())
    if len(found) != 1 or found == {0}:
        given = ", ".join(
            f"{name} has {' and '.join(map(str, sorted(n))) or 'no array'}"
            for name, n in lengths.items()
        )
        raise ValueError(
            "over: expected all names on an axis to have the same number of values, at least one; "
            f"{given}"
        )
    return found.pop()


def repeated(axes: Sequence[dict[str, PyTree]], mean_over: str | Sequence[str] | None) -> list[int]:
    """The axes of the names in `mean_over`: one name, several, or None.

    Raises:
      ValueError: a name is on no axis.
    """
    names = [] if mean_over is None else [mean_over] if isinstance(mean_over, str) else mean_over
    for name in names:
        if not any(name in axis for axis in axes):
            known = ", ".join(name for axis in axes for name in axis)
            raise ValueError(
                f"mean_over is {name!r}, expected names that the sweep is over: {known}"
            )
    return [i for i, axis in enumerate(axes) if any(name in axis for name in names)]


def vmap_order(axes: Sequence[dict[str, PyTree]]) -> tuple[int, ...]:
    """The order in which axes are vmapped, outermost first: axes of keys, then the others.

    The runs of one key share the rows of their minibatches. With keys outermost those runs lie next
    to each other in memory, which is up to 2 x faster on a CPU, and chunks are cut between keys
    before they are cut within one.
    """

    def has_keys(axis: dict[str, PyTree]) -> bool:
        leaves = jax.tree.leaves(axis)
        return any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves)

    return tuple(sorted(range(len(axes)), key=lambda i: not has_keys(axes[i])))


def value_at(values: PyTree, place: int) -> PyTree:
    """One of the values on an axis; a number as a Python number."""
    value = jax.tree.map(partial(take, places=place), values)
    return value.item() if is_number(values) else value


def take(x: jax.Array | np.ndarray, places: PlaceLike) -> jax.Array | np.ndarray | np.generic:
    """The entries of an array at some places of its leading axis."""
    if isinstance(x, np.ndarray):
        return x[places]
    return by_words(lambda x: x[places], x)  # to index a key itself would count as a use of it


def is_number(values: PyTree) -> bool:
    """Whether the values on an axis are numbers."""
    is_array = isinstance(values, jax.Array | np.ndarray) and values.ndim == 1
    return is_array and not jnp.issubdtype(values.dtype, jax.dtypes.extended)
