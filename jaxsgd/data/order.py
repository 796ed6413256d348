"""The order of a run for the loaders of other libraries."""

from collections.abc import Iterator
from copy import copy
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, PRNGKeyArray

from jaxsgd.core import programs, validation
from jaxsgd.core.part import as_contract
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import as_arguments
from jaxsgd.samplers.base import Sampler

LAST = 2**31 - 2  # steps are int32


class BatchOrder:
    """The batches of a run, for loaders of other libraries: row numbers by step, in NumPy arrays.

    `order[step]` is the batch that `run` and `fit` take at this step with the same sampler and key.
    It depends on nothing else, so `order.from_step(step)` resumes a loader at any step. Iterating
    yields the rows of each batch as a list, so an order is a `batch_sampler` of PyTorch's
    `DataLoader`. Its iterators have the `state_dict` that torchdata's `StatefulDataLoader` needs.

    Args:
      sampler: the sampler of the run, such as `Shuffled(64)`.
      size: n, the number of rows.
      key: the key given to `fit` or `Solver.init`.
      start: the step to iterate from.
      stop: the step before which to end, counted over all epochs; None for an endless iteration.
      steps_at_once: the number of batches that a call of the compiled sampler draws.

    Raises:
      TypeError, ValueError: a wrong argument, or a step beyond 2^31 - 2.

    >>> order = jaxsgd.BatchOrder(jaxsgd.Shuffled(2), 5, key=jax.random.key(0), stop=3)
    >>> list(order)
    [[2, 4], [0, 3], [1]]
    >>> order[1_000_000_000].index.tolist()
    [1, 3]
    """

    def __init__(
        self,
        sampler: Sampler,
        size: SupportsIndex,
        *,
        key: PRNGKeyArray,
        start: SupportsIndex = 0,
        stop: SupportsIndex | None = None,
        steps_at_once: SupportsIndex = 256,
    ) -> None:
        size = validation.integer(size, "BatchOrder's size", 1)
        sampler = as_contract(sampler, Sampler, "BatchOrder's sampler", "jaxsgd.Shuffled(64)")
        self.sampler = sampler.for_size(size)
        self.start = validation.integer(start, "BatchOrder's start", 0, LAST)
        self.stop = None if stop is None else validation.integer(stop, "BatchOrder's stop", 0, LAST)
        self.steps_at_once = validation.integer(steps_at_once, "BatchOrder's steps_at_once", 1)
        key = validation.key(key)
        self._key = np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
        self._drawn: tuple[int, Batch] | None = None

    def __repr__(self) -> str:
        return f"BatchOrder({self.sampler}, start={self.start}, stop={self.stop})"

    def __getitem__(self, step: SupportsIndex) -> Batch:
        """The batch of a step: `Batch(index, weight)`, int32[B] and float[B]."""
        step = validation.integer(step, "BatchOrder's step", 0, LAST)
        number, at = divmod(step, self.steps_at_once)
        drawn = self._drawn  # read once: another thread may replace it
        if drawn is None or drawn[0] != number:
            first = number * self.steps_at_once
            count = min(self.steps_at_once, LAST + 1 - first)
            words, kind = self._key  # typed keys cannot be sent to another process
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(words), impl=kind), 0)
                found = _drawn(as_arguments(self.sampler), key, jnp.int32(first), count=count)
            drawn = self._drawn = number, jax.device_get(found)
        return Batch(drawn[1].index[at], drawn[1].weight[at])

    def rows(self, step: SupportsIndex) -> list[int]:
        """The rows of a step, without those of weight 0 that pad a short batch."""
        batch = self[step]
        return batch.index[batch.weight != 0].tolist()

    def from_step(self, start: SupportsIndex) -> "BatchOrder":
        """The same order, iterated from another step."""
        other = copy(self)
        other.start = validation.integer(start, "from_step's start", 0, LAST)
        return other

    def __len__(self) -> int:
        """The number of batches of an iteration."""
        if self.stop is None:
            raise TypeError("BatchOrder is endless without stop=, so it has no length")
        return max(0, self.stop - self.start)

    def __iter__(self) -> "Steps":
        """An iterator over the lists of rows."""
        return Steps(self)


class Steps(Iterator[list[int]]):
    """An iterator over the batches of an order, whose `state_dict` holds the next step."""

    def __init__(self, order: BatchOrder) -> None:
        self.order, self.step = order, order.start

    def __next__(self) -> list[int]:
        if self.order.stop is not None and self.step >= self.order.stop:
            raise StopIteration
        rows = self.order.rows(self.step)
        self.step += 1
        return rows

    def state_dict(self) -> dict[str, int]:
        """The next step, as a dict."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the step of a `state_dict`."""
        self.step = state["step"]


@programs.jit()
def _drawn(sampler: Sampler, key: Key[Array, ""], first: Int[Array, ""], *, count: int) -> Batch:
    steps = first + jnp.arange(count, dtype=jnp.int32)
    return lax.map(lambda step: sampler.batch(key, step), steps)
