"""Rows that stay on the host: larger than the device's memory, or than the machine's.

The rows of each step are known ahead, for a sampler's batches are a function of its state alone. So
a thread gathers the rows of the next steps and puts them on the device while it computes.
"""

import abc
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count, cycle, islice
from typing import Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import KeyPath
from jax.typing import ArrayLike
from jaxtyping import Array, Int, PyTree, Shaped

from jaxsgd.core import validation
from jaxsgd.core.records import State
from jaxsgd.data.base import ArrayRows, Rows
from jaxsgd.samplers.base import Sampler

T = TypeVar("T")
GAP = 2**16  # bytes: a gap up to this is read, and not used, rather than skipped
RUN = 2**24  # bytes: the longest run that is read at a time


@runtime_checkable
class Source(Protocol):
    """What a leaf of `HostRows` has. A `shape` and a `dtype` are used where it has them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int | slice | np.ndarray, /) -> ArrayLike: ...


class StreamedRows(Rows):
    """Rows on the host, read in parts ahead of the run: `HostRows`, or a custom source.

    The rows of each step are known ahead, because a sampler's batches depend on its state alone. A
    thread reads the rows of the next steps and puts them on the device while it computes. A custom
    source subclasses this contract and defines `shapes` and `read`.

    Attributes with defaults:
      prefetch: chunks read ahead, 2.
      chunk_bytes: bytes of a chunk, which holds at least one batch, 2**26.

    >>> class Squares(jaxsgd.StreamedRows):
    ...     shapes = jax.ShapeDtypeStruct((1000,), jnp.float32)
    ...     def read(self, index, out):
    ...         out[: len(index)] = index**2
    ...         return out[: len(index)]
    >>> float(jaxsgd.evaluate(lambda params, y: y, jnp.zeros(()), Squares()))
    332833.5
    """

    is_streamed = True
    prefetch: int = 2
    chunk_bytes: int = 2**26

    @abc.abstractmethod
    def read(self, index: np.ndarray, out: PyTree[np.ndarray]) -> PyTree[np.ndarray]:
        """Write the rows at `index` (int[m]) to the first m rows of `out`; return those m rows.

        It is called in a thread, with any rows in any order.
        """

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        leaves = jax.tree.leaves(self.shapes)
        return sum(int(np.prod(s.shape[1:])) * s.dtype.itemsize for s in leaves)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        shapes = jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", self.shapes)
        return f"{type(self).__name__} of {shapes}"

    def take(self, index: Int[Array, " B"]) -> PyTree:
        """The rows at `index`, read from the host: not in a compiled program."""
        numbers = np.asarray(index)
        out = jax.tree.map(partial(_buffer, numbers.size), self.shapes)
        return jax.tree.map(jnp.array, self.read(numbers, out))

    def total(
        self,
        add: Callable[..., PyTree],
        sample_weight: Shaped[Array, " n"] | None,
        batch_size: int,
        *args: PyTree,
    ) -> PyTree:
        """`add` of one block of rows after another."""
        sums = None
        size = max(1, self.chunk_bytes // max(self.row_bytes, 1) // batch_size) * batch_size
        read = lambda begin, out: self.read(np.arange(begin, min(begin + size, self.size)), out)  # noqa: E731
        blocks = _ahead(self, range(0, self.size, size), read, min(size, self.size), None)
        for begin, rows in blocks:
            end = begin + ArrayRows(rows).size
            weight = None if sample_weight is None else sample_weight[begin:end]
            sums = add(rows, weight, sums, *args)
            jax.block_until_ready(sums)  # before the buffer of its rows is used again
        return sums

    def feeds(
        self, sampler: Sampler, state: State, lengths: Iterable[int], total: int | None
    ) -> Generator[tuple[PyTree, int, int], None, None]:
        """Chunks of batches, read ahead: arrays of shape (steps, B, ...)."""
        whole = self._steps_of_a_chunk(sampler)
        whole = whole if total is None else max(1, min(whole, total))
        rows, position, held = None, 0, 0
        with closing(self._stream(sampler, state, whole, total)) as chunks:
            for length in lengths:
                while length:
                    if position == held:
                        (held, rows), position = next(chunks), 0
                    steps = min(length, held - position)
                    yield rows, position, steps
                    position, length = position + steps, length - steps

    def _steps_of_a_chunk(self, sampler: Sampler) -> int:
        """How many batches a chunk holds: its bytes, and all rows that are shuffled together."""
        rows = max(self.chunk_bytes // max(self.row_bytes, 1), sampler.window_rows)
        return int(max(1, rows // sampler.batch_length))

    def _stream(
        self, sampler: Sampler, state: State, steps: int, total: int | None
    ) -> Generator[tuple[int, PyTree], None, None]:
        """Chunks of `steps` batches on the device, and how many batches there are in each.

        Arrays of (steps, B, ...), valid until the chunk after the next is asked for; the last chunk
        of `total` steps may hold fewer.
        """
        own = jax.tree.map(jnp.copy, state.sampler)  # the run donates its own
        ahead = _indices(sampler, own, steps)
        length = sampler.batch_length

        def read(some: int, out: PyTree) -> PyTree:
            index = next(ahead)[:some].reshape(-1)
            if index.min() < 0 or index.max() >= self.size:
                raise IndexError(
                    f"the sampler {sampler!r} drew rows {index.min()} to {index.max()}, expected "
                    f"them in 0..{self.size - 1}"
                )
            self.read(index, out)
            return jax.tree.map(lambda x: x.reshape(steps, length, *x.shape[1:]), out)

        begins = count(step=steps) if total is None else range(0, total, steps)
        counts = (steps if total is None else min(steps, total - begin) for begin in begins)
        return _ahead(self, counts, read, steps * length, state)


class HostRows(StreamedRows):
    """Rows on the host, as `data` of `fit`, `chunks`, `evaluate` and `solver.init`.

    The rows of the next steps are gathered in a thread, in chunks, and put on the device while the
    chunk before them is computed; a run has the same batches, and ends with the same parameters, as
    one with the arrays on the device. At most `prefetch + 2` chunks are in memory at a time; a
    validation on the host has as many of its own.

    Args:
      arrays: a pytree of sources of the same length: NumPy arrays, `np.memmap`, or anything with a
        `shape`, a `dtype` and row indexing by a slice and by a sorted array (h5py, zarr); or with a
        length and rows that are arrays.
      prefetch: chunks gathered ahead, at least 1.
      chunk_bytes: bytes of a chunk, in which there is at least one batch.

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
    try:
        shape, dtype = getattr(source, "shape", None), getattr(source, "dtype", None)
        if shape is None or dtype is None:
            row = np.asarray(source[0])
            shape, dtype = (len(source), *row.shape), row.dtype
        dtype = np.dtype(dtype).newbyteorder("=")
    except Exception as error:
        raise TypeError(
            f"{where} is of type {kind}, expected an array, or what has a length and rows that are "
            f"NumPy arrays ({type(error).__name__}: {error})"
        ) from error
    if dtype.kind in "OUSMm" or dtype.names:
        raise TypeError(f"{where} is an array of {dtype}, expected numbers")
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


def _ahead(
    data: StreamedRows,
    jobs: Iterable[T],
    read: Callable[[T, PyTree], PyTree],
    rows: int,
    near: PyTree,
) -> Generator[tuple[T, PyTree], None, None]:
    """Each job, and `read(job, out)` on the device, done by a thread `data.prefetch` jobs ahead.

    They are put where `near` was put by hand.

    `out` is one of a ring of buffers, for fresh memory costs more than the rows: as many as are
    ahead, one in use, and one whose computation may not have ended.
    """
    ring = [jax.tree.map(partial(_buffer, rows), data.shapes) for _ in range(data.prefetch + 2)]
    place = [x.sharding for x in jax.tree.leaves(near) if x.committed]
    # which a thread does not inherit
    x64, device = jax.config.jax_enable_x64, jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def put(job: T, out: PyTree) -> PyTree:
        with jax.enable_x64(x64), jax.default_device(device):
            ready = jax.device_put(read(job, out), place[0] if place else None)
            return jax.block_until_ready(ready)

    pool = ThreadPoolExecutor(1, "jaxsgd-rows")
    turns = zip(jobs, cycle(ring), strict=False)
    tasks = ((job, pool.submit(put, job, out)) for job, out in turns)
    try:
        queue = deque(islice(tasks, data.prefetch))
        while queue:
            job, task = queue.popleft()
            ready = task.result()
            queue.extend(islice(tasks, 1))
            yield job, ready
    finally:
        if not sys.is_finalizing():  # a loop left for good: the pool has ended by itself
            pool.shutdown(cancel_futures=True)


def _buffer(rows: int, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """Uninitialised memory on a 64-byte boundary, which the CPU backend uses without a copy."""
    size = rows * int(np.prod(shape.shape[1:])) * shape.dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64
    return raw[begin : begin + size].view(shape.dtype).reshape(rows, *shape.shape[1:])


def _indices(sampler: Sampler, state: PyTree, steps: int) -> Iterator[np.ndarray]:
    """The rows of so many steps after so many (int32[steps, B])."""
    while True:
        state, index = _plan(sampler, state, steps=steps)
        yield jax.device_get(index)


@partial(jax.jit, static_argnames="steps")
def _plan(sampler: Sampler, state: PyTree, *, steps: int) -> tuple[PyTree, Int[Array, "steps B"]]:
    def draw(state: PyTree, _: None) -> tuple[PyTree, Int[Array, " B"]]:
        batch, state = sampler.update(state)
        return state, batch.index

    return lax.scan(draw, state, length=steps)
