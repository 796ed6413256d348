"""`HostRows`: NumPy arrays, memory maps, h5py, zarr and other sources as streamed rows."""

import mmap
import os
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.tree_util import KeyPath
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.data.arrays import ArrayRows, conversion
from jaxsgd.data.streamed import StreamedRows

GAP = 2**16  # bytes: a gap up to this is read, and not used, rather than skipped
RUN = 2**24  # bytes: the longest run that is read at a time


@runtime_checkable
class Source(Protocol):
    """A leaf of `HostRows`. It also has a `shape` and a `dtype`, or otherwise a length."""

    def __getitem__(self, index: int | slice | np.ndarray, /) -> ArrayLike: ...


class HostRows(StreamedRows):
    """Rows on the host, as `data` of `fit`, `chunks`, `evaluate` and `solver.init`.

    The rows of the next steps are gathered in a thread, in chunks, and put on the device while the
    chunk before them is computed; a run has the same batches, and ends with the same parameters, as
    one with the arrays on the device. At most `prefetch + 2` chunks are in memory at a time, and as
    many again for validation rows on the host.

    Args:
      arrays: a pytree of sources of the same length: NumPy arrays, `np.memmap`, anything with a
        `shape`, a `dtype` and rows that are read by position, by a slice or a sorted array (h5py,
        zarr), or anything with a length whose rows are arrays. Tensors of PyTorch, and frames and
        Series of pandas, which are read by labels, are refused: convert them.
      prefetch: chunks gathered ahead, at least 1.
      chunk_bytes: bytes of a chunk, which holds at least one batch.

    Raises:
      ValueError, TypeError: no source, no row, sources of different length, or no numbers.

    >>> rows = jaxsgd.HostRows((np.arange(8.0)[:, None] / 8, 3 * np.arange(8.0) / 8 + 1))
    >>> model = jaxsgd.models.Linear(1)
    >>> loss = lambda params, row: optax.squared_error(model(params, row[0]), row[1])
    >>> solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(4), jaxsgd.SGD(0.3))
    >>> state = solver.init(model.init(jax.random.key(0)), rows, key=jax.random.key(1))
    >>> for state, trace in jaxsgd.chunks(solver, state, rows, steps=100):
    ...     if trace.loss[-1] < 1e-6:
    ...         break
    >>> jax.tree.map(lambda x: x.round(2).tolist(), state.params)
    {'bias': 1.0, 'weight': [3.0]}
    """

    def __init__(self, arrays: PyTree, *, prefetch: int = 2, chunk_bytes: int = 2**26):
        validation.no_iterator(arrays)
        self.arrays = arrays
        self.prefetch = validation.integer(prefetch, "HostRows' prefetch", 1)
        self.chunk_bytes = validation.integer(chunk_bytes, "HostRows' chunk_bytes", 1)
        self._shapes = jax.tree_util.tree_map_with_path(_shape_of, arrays)
        ArrayRows(self._shapes)  # refuses sources of different length

    @property
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The shape and dtype of each array, all rows included."""
        return self._shapes

    def read(self, index: np.ndarray, out: PyTree) -> PyTree:
        """The rows at `index` (int[m]) into the first m rows of `out`, which it returns.

        Raises:
          OSError: a source could not be read, is shorter than it was, or has other rows.
        """

        def gather(path: KeyPath, source: Source, out: np.ndarray) -> np.ndarray:
            where, out = f"data{jax.tree_util.keystr(path)}", out[: len(index)]
            try:
                _gather(source, index, out, where)
            except Exception as error:
                rows, kind = f"rows {index.min()} to {index.max()}", type(error).__name__
                message = f"{rows} of {where} could not be read: {kind}: {error}"
                raise OSError(message) from error
            return out

        return jax.tree_util.tree_map_with_path(gather, self.arrays, out)


def _shape_of(path: KeyPath, source: Source) -> jax.ShapeDtypeStruct:
    where, kind = f"data{jax.tree_util.keystr(path)}", type(source).__name__
    if isinstance(source, str | os.PathLike):
        raise TypeError(
            f"{where} is the path {str(source)!r}, expected what it holds: "
            "np.load(path, mmap_mode='r')"
        )
    if (hint := conversion(source)) is not None:  # a Series is indexed by its labels
        raise TypeError(f"{where} is a {kind}, expected an array; {hint}")
    try:
        shape, dtype = getattr(source, "shape", None), getattr(source, "dtype", None)
        if shape is None or dtype is None:
            row = np.asarray(source[0])
            shape, dtype = (len(source), *row.shape), row.dtype  # pyright: ignore[reportArgumentType]
        dtype = np.dtype(dtype).newbyteorder("=")
    except Exception as error:
        raise TypeError(
            f"{where} is of type {kind}, expected an array, or what has a length and rows that are "
            f"NumPy arrays ({type(error).__name__}: {error})"
        ) from error
    validation.numeric(dtype, where)
    return jax.ShapeDtypeStruct(tuple(shape), jax.dtypes.canonicalize_dtype(dtype))


def _gather(source: Source, index: np.ndarray, out: np.ndarray, where: str) -> None:
    if isinstance(source, np.ndarray):
        _is_whole(source)
        if source.dtype == out.dtype and source.flags.c_contiguous and source.flags.aligned:
            np.take(source, index, axis=0, out=out, mode="clip")  # with "raise" it would copy
        else:
            _put(out, slice(None), source[index], where)  # take would copy the whole source
        return
    order = np.argsort(index, kind="stable")
    rows, size = index[order], max(1, out[0].nbytes)
    far, long = np.diff(rows) * size > GAP, np.diff(rows // max(1, RUN // size))
    ends = np.flatnonzero(far | (long > 0)) + 1
    if len(rows) < 4 * (len(ends) + 1) and hasattr(source, "shape"):
        unique, back = np.unique(index, return_inverse=True)
        _put(out, slice(None), np.asarray(source[unique])[back], where)
        return
    # in order, a run at a time: what compressed files and the network are good at
    for places, run in zip(np.split(order, ends), np.split(rows, ends), strict=True):
        read = np.asarray(source[int(run[0]) : int(run[-1]) + 1])
        _put(out, places, read[run - run[0]], where)


def _put(out: np.ndarray, places: np.ndarray | slice, rows: np.ndarray, where: str) -> None:
    """Rows into their places in the dtype that JAX will give them."""
    if rows.shape[1:] != out.shape[1:]:
        raise ValueError(f"it gave rows of shape {rows.shape[1:]}, expected {out.shape[1:]}")
    if rows.dtype.kind in "iu" and rows.dtype.itemsize > out.dtype.itemsize:
        validation.fits_32_bits(rows, where)
    out[places] = rows


def _is_whole(source: np.ndarray) -> None:
    """Refuse a memory map of a file cut short: reading beyond its end would end the process."""
    base: object = source
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    file, name = getattr(base, "_mmap", None), getattr(base, "filename", None)
    if not isinstance(base, np.memmap) or file is None or name is None:
        return
    # the map, of which this may be a part, begins at a whole page
    expected = base.offset - base.offset % mmap.ALLOCATIONGRANULARITY + len(file)
    if os.path.getsize(name) < expected:
        raise ValueError(
            f"{name} has {os.path.getsize(name)} bytes, expected at least {expected}: was it "
            "truncated?"
        )
