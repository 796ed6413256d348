"""The points of a sweep: its axes, and the values on each."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.trees import by_words


def as_axes(over: Any) -> tuple[dict[str, PyTree], ...]:
    """For each axis its values by name, arrays with a leading axis of one length."""
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
    found = tuple({name: _values(name, v) for name, v in axis.items()} for axis in axes)
    for axis in found:
        length(axis)  # for its refusal
    return found


def _values(name: str, values: Any) -> PyTree:
    if isinstance(values, list | tuple | range) and all(
        isinstance(value, bool | int | float | np.number) for value in values
    ):
        values = np.asarray(values)
    for leaf in jax.tree.leaves(values):
        if not isinstance(leaf, np.ndarray | jax.Array) or leaf.ndim == 0:
            raise TypeError(
                f"over[{name!r}] holds {leaf!r}, expected a list of numbers, or arrays whose "
                "leading axis counts the values: jax.random.split(key, 8), or stacked by jnp.stack"
            )
        if isinstance(leaf, np.ndarray):
            validation.no_text(leaf, f"over[{name!r}]")
            validation.fits_32_bits(leaf, f"over[{name!r}]")
    return values


def length(axis: dict[str, PyTree]) -> int:
    """How many values an axis has, the same for all that goes together."""
    lengths = {name: {len(x) for x in jax.tree.leaves(v)} for name, v in axis.items()}
    found = set().union(*lengths.values())
    if len(found) != 1 or found == {0}:
        told = ", ".join(f"{name} has {sorted(n) or 'none'}" for name, n in lengths.items())
        raise ValueError(f"the values of an axis of over differ in number, or are none: {told}")
    return found.pop()


def repeated(axes: Sequence[dict[str, PyTree]], mean_over: Any) -> list[int]:
    """The axes that a name, several names or None of `mean_over` are on.

    Raises:
      ValueError: no axis has a name.
    """
    names = [] if mean_over is None else [mean_over] if isinstance(mean_over, str) else mean_over
    for name in names:
        if not any(name in axis for axis in axes):
            known = ", ".join(name for axis in axes for name in axis)
            raise ValueError(
                f"mean_over is {name!r}, expected names that the sweep is over: {known}"
            )
    return [i for i, axis in enumerate(axes) if any(name in axis for name in names)]


def order(axes: Sequence[dict[str, PyTree]]) -> tuple[int, ...]:
    """Axes of keys outermost: so lanes that share rows lie side by side, and in one chunk."""

    def has_keys(axis: dict[str, PyTree]) -> bool:
        leaves = jax.tree.leaves(axis)
        return any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves)

    return tuple(sorted(range(len(axes)), key=lambda i: not has_keys(axes[i])))


def entry(values: PyTree, place: int) -> Any:
    """One value of an axis; a number as Python's own."""
    entry = jax.tree.map(partial(by_words, lambda x: x[place]), values)
    return entry.item() if is_number(values) else entry


def is_number(values: PyTree) -> bool:
    """Whether these are numbers."""
    is_array = isinstance(values, jax.Array | np.ndarray) and values.ndim == 1
    return is_array and not jnp.issubdtype(values.dtype, jax.dtypes.extended)
