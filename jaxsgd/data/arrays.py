"""Rows that are arrays on a device, and `as_rows`, which makes rows of what a user gives."""

from collections.abc import Callable, Generator, Iterable
from typing import NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PyTree, Shaped

from jaxsgd.core import validation
from jaxsgd.core.part import is_leaf
from jaxsgd.core.records import State
from jaxsgd.core.trees import as_arguments, gather, placed_like
from jaxsgd.data.base import Rows
from jaxsgd.samplers.base import Sampler


class ArrayRows(Rows):
    """A pytree of arrays that share their leading axis, or of their shapes.

    Raises:
      TypeError: a leaf is not an array of numbers.
      ValueError: no leaf, no row, or leaves of different length.
    """

    is_resident = True

    def __init__(self, arrays: PyTree, name: str = "data"):
        self.arrays = arrays
        lengths = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
            where = f"{name}{jax.tree_util.keystr(path)}"
            _check_leaf(leaf, where)
            lengths[where] = leaf.shape[0]
        if not lengths:
            raise ValueError(
                f"{name} holds no array, expected a pytree of arrays with one row each"
            )
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{where} has {length}" for where, length in lengths.items())
            raise ValueError(f"the leaves of {name} differ in their number of rows: {listed}")
        if 0 in lengths.values():
            raise ValueError(f"{name} has 0 rows, expected at least 1")

    @property
    def shapes(self) -> PyTree:
        """The arrays themselves, which have a shape and a dtype."""
        return self.arrays

    def take(self, index: Int[Array, " B"]) -> PyTree:
        """The rows at `index`: arrays of shape (B, ...)."""
        return gather(self.arrays, index)

    def with_batch_arrays(self, arrays: PyTree) -> PyTree:
        """The arrays: a part of a batch has its own index."""
        return self.arrays

    def as_batch(self) -> PyTree:
        """The arrays as rows that are gathered already."""
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(self.arrays)):
            return self.arrays  # of streamed rows only the shapes are here
        return BatchRows(jax.tree.map(jnp.asarray, self.arrays))

    def placed(self, tree: PyTree) -> PyTree:
        """The tree on the devices of the arrays, where those were chosen explicitly."""
        return placed_like(tree, self.arrays)

    def as_arguments(self) -> PyTree:
        """The arrays on a device.

        Raises:
          ValueError: 64-bit integers that a device would wrap to 32 bits.
        """
        self.check_values()
        return as_arguments(self.arrays)

    def check_values(self, name: str = "data") -> None:
        """Refuse 64-bit integers that JAX would wrap to 32 bits."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.arrays):
            if isinstance(leaf, np.ndarray):
                validation.fits_32_bits(leaf, f"{name}{jax.tree_util.keystr(path)}")

    def check_precision(self, name: str = "data") -> None:
        """Warn where float32 does not tell float64 numbers apart, refuse what it cannot hold."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.arrays):
            if isinstance(leaf, np.ndarray):
                validation.keeps_values(leaf, f"{name}{jax.tree_util.keystr(path)}")

    def total(
        self,
        add: Callable[..., PyTree],
        sample_weight: Shaped[Array, " n"] | None,
        batch_size: int,
        *args: PyTree,
    ) -> PyTree:
        """`add` of all rows."""
        return add(self.arrays, sample_weight, None, *args)


class BatchRows(Rows):
    """The rows of one batch, gathered already: the data of a step on rows from another loader.

    It is not a pytree: a gradient that does not read its rows by `take` fails, where it would
    otherwise train on other rows.

    Args:
      arrays: a pytree of arrays of shape (B, ...).
      size: n, the number of rows that the batch is from, where that is known.
    """

    def __init__(self, arrays: PyTree, size: int | None = None):
        self.arrays = arrays
        self._size = size

    @property
    def shapes(self) -> PyTree:
        """The shapes of all rows, of which these are some."""
        size = self.size
        shape = lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)  # noqa: E731
        return jax.tree.map(shape, self.arrays)

    @property
    def size(self) -> int:
        """n, the number of rows that the batch is from."""
        if self._size is None:
            return int(jax.tree.leaves(self.arrays)[0].shape[0])
        return self._size

    def take(self, index: Int[Array, " B"]) -> PyTree:
        """The rows of the batch, whatever their index."""
        return self.arrays

    def take_some(self, index: Int[Array, " B"], positions: Int[Array, " B"]) -> PyTree:
        """The rows of the batch at some positions in it."""
        return gather(self.arrays, positions)

    @property
    def batch_arrays(self) -> PyTree:
        """The rows, which are cut with the batch."""
        return self.arrays

    def with_batch_arrays(self, arrays: PyTree) -> Self:
        """The rows of a part of the batch."""
        return type(self)(arrays, self._size)

    def total(
        self,
        add: Callable[..., PyTree],
        sample_weight: Shaped[Array, " n"] | None,
        batch_size: int,
        *args: PyTree,
    ) -> PyTree:
        """`add` of the batch."""
        return add(self.arrays, sample_weight, None, *args)

    def feeds(
        self, sampler: Sampler, state: State, lengths: Iterable[int], total: int | None
    ) -> Generator[tuple[PyTree, int, int], None, None]:
        """Refused: a loop needs all rows, not one batch."""
        raise TypeError("data are one batch that was gathered already, expected all rows")

    def __getitem__(self, index: object) -> NoReturn:
        raise TypeError(
            "the rows of this batch were gathered elsewhere, and are not indexed by the data's "
            "numbers; a gradient reads its rows by jaxsgd.take(data, batch.index)"
        )


def as_rows(data: PyTree, name: str = "data") -> Rows:
    """`Rows` as they are, and a pytree of arrays as `Rows`. Only shapes and dtypes are read.

    For custom gradients, whose `data` may be either: `as_rows(data).size` is the number of rows.

    Args:
      data: a pytree of arrays of shape (n, ...), or `Rows`.
      name: what messages call the data.

    Raises:
      TypeError, ValueError: the pytree is not one of arrays with the same number of rows.

    >>> jaxsgd.as_rows({"x": jnp.ones((5, 2)), "y": jnp.ones(5)}).size
    5
    """
    if isinstance(data, Rows):
        if not type(data).__module__.startswith("jaxsgd."):
            _check_custom_rows(data)
        return data
    validation.no_iterator(data, name)
    return ArrayRows(data, name)


def _check_custom_rows(rows: Rows) -> None:
    """Refuse the shapes of a custom source that differ in length, or have a dtype JAX lacks."""
    if not rows.is_streamed and is_leaf(rows):
        raise TypeError(
            f"data: {type(rows).__name__} is not a pytree; did you forget @jaxsgd.part above its "
            "class?"
        )
    name = f"{type(rows).__name__}.shapes"
    ArrayRows(rows.shapes, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows.shapes):
        dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if dtype != leaf.dtype:
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is of {leaf.dtype}, expected {dtype}: JAX "
                "would cast it; enable jax_enable_x64, or cast in `read`"
            )


def take(data: PyTree, index: Int[Array, " B"]) -> PyTree:
    """The rows of `data` at `index`: how a custom gradient reads its batch.

    Rows that were gathered already (of `HostRows`, of `Solver.step_on`) are returned as they are.
    Bounds are not checked: samplers stay within them.

    Args:
      data: a pytree of arrays of shape (n, ...), or `Rows`.
      index: int32[B].

    Returns:
      The same pytree with arrays of shape (B, ...).

    >>> jaxsgd.take({"y": jnp.array([1.0, 3.0, 8.0])}, jnp.array([2, 0]))
    {'y': Array([8., 1.], dtype=float32)}
    """
    return data.take(index) if isinstance(data, Rows) else gather(data, index)


def require_resident(data: PyTree, name: str) -> Rows:
    """The rows, refused where they are not arrays on one device (or replicated).

    Raises:
      TypeError: the rows stay on the host, or are spread over a mesh.
    """
    rows = as_rows(data)
    if not rows.is_resident:
        raise TypeError(f"{name}'s data are {data!r}, expected arrays")
    return rows


def check_same_form(other: PyTree, data: PyTree, name: str) -> None:
    """Refuse rows that differ in structure or shape from the rows of `data`."""
    trees = [as_rows(other, name).shapes, as_rows(data).shapes]
    forms = [validation.form(tree) for tree in trees]
    if len({(structure, tuple(s[1:] for s in leaves)) for structure, leaves in forms}) > 1:
        shapes = [jax.tree.map(lambda x: x.shape[1:], tree) for tree in trees]
        raise ValueError(f"a row of {name} has shape {shapes[0]}, expected {shapes[1]} as in data")


def conversion(leaf: object) -> str | None:
    """How to make an array of another library's, whose rows are not read as an array's are."""
    library = type(leaf).__module__
    if library.startswith("torch"):
        return "convert it with its method numpy()" if hasattr(leaf, "numpy") else None
    is_frame = library.startswith(("pandas", "polars"))
    return "convert it with its method to_numpy(), as floats" if is_frame else None


def _check_leaf(leaf: object, where: str) -> None:
    if not isinstance(leaf, np.ndarray | jax.Array | jax.ShapeDtypeStruct) or leaf.ndim == 0:
        is_scalar = isinstance(leaf, np.ndarray | np.generic | jax.Array)
        given = "a scalar" if is_scalar else f"a {type(leaf).__name__}"
        hint = "convert it with jnp.asarray, or step over a loader's batches by solver.step_on"
        hint = conversion(leaf) or hint
        if isinstance(leaf, Rows):
            kind = type(leaf).__name__
            hint = f"give {kind} all arrays: {kind}((x, y))"
        raise TypeError(
            f"{where} is {given}, expected an array whose leading axis counts the rows; {hint}"
        )
    if isinstance(leaf, np.ndarray):
        validation.no_text(leaf, where)
    validation.not_deleted(leaf, where)
