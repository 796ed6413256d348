"""Rows that stay on the host, read in parts ahead of the run by a thread.

The rows of each step are known ahead, because a sampler's batches depend on its state alone.
"""

import abc
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count, cycle, islice
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PyTree, Shaped

from jaxsgd.core import programs
from jaxsgd.core.records import State
from jaxsgd.data.arrays import ArrayRows
from jaxsgd.data.base import Rows
from jaxsgd.samplers.base import Sampler

T = TypeVar("T")


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
        return jax.tree.map(jnp.array, self._filled(numbers, out))

    def total(
        self,
        add: Callable[..., PyTree],
        sample_weight: Shaped[Array, " n"] | None,
        batch_size: int,
        *args: PyTree,
    ) -> PyTree:
        """`add` applied to one block of rows after another."""
        sums = None
        size = max(1, self.chunk_bytes // max(self.row_bytes, 1) // batch_size) * batch_size
        block = lambda begin: np.arange(begin, min(begin + size, self.size))  # noqa: E731
        read = lambda begin, out: self._filled(block(begin), out)  # noqa: E731
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

    def _filled(self, index: np.ndarray, out: PyTree[np.ndarray]) -> PyTree[np.ndarray]:
        """The rows at `index` in the first rows of `out`, copied there if `read` did not."""

        def fill(out: np.ndarray, rows: np.ndarray) -> np.ndarray:
            out = out[: len(index)]
            if np.shape(rows) != out.shape:
                raise ValueError(
                    f"{type(self).__name__}.read returned rows of shape {np.shape(rows)}, "
                    f"expected {out.shape}"
                )
            if not np.shares_memory(rows, out):
                out[...] = rows
            return out

        rows = self.read(index, out)
        if isinstance(out, np.ndarray) and isinstance(rows, list):
            rows = np.asarray(rows)
        if jax.tree.structure(rows) != jax.tree.structure(out):
            raise TypeError(
                f"{type(self).__name__}.read returned {jax.tree.structure(rows)}, expected the "
                f"structure of its shapes, {jax.tree.structure(out)}, such as what it got as `out`"
            )
        return jax.tree.map(fill, out, rows)

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
            self._filled(index, out)
            return jax.tree.map(lambda x: x.reshape(steps, length, *x.shape[1:]), out)

        begins = count(step=steps) if total is None else range(0, total, steps)
        counts = (steps if total is None else min(steps, total - begin) for begin in begins)
        return _ahead(self, counts, read, steps * length, state)


def _ahead(
    data: StreamedRows,
    jobs: Iterable[T],
    read: Callable[[T, PyTree], PyTree],
    rows: int,
    near: PyTree,
) -> Generator[tuple[T, PyTree], None, None]:
    """Each job, and `read(job, out)` on the device, done by a thread `data.prefetch` jobs ahead.

    They are put on the devices where `near` was placed explicitly.

    `out` is one of a ring of buffers, because fresh memory costs more than reading the rows: one
    per job ahead, one in use, and one whose computation may not have ended.
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
    """The rows of the next `steps` steps (int32[steps, B]), again and again."""
    while True:
        state, index = _plan(sampler, state, steps=steps)
        yield jax.device_get(index)


@programs.jit()
def _plan(sampler: Sampler, state: PyTree, *, steps: int) -> tuple[PyTree, Int[Array, "steps B"]]:
    def draw(state: PyTree, _: None) -> tuple[PyTree, Int[Array, " B"]]:
        batch, state = sampler.update(state)
        return state, batch.index

    return lax.scan(draw, state, length=steps)
