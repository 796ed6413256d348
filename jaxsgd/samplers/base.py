"""The contract of a sampler: which rows a step takes, and with which weights.

In a solver a sampler is written `Shuffled(64)`: the solver fills in `size`, the number of rows,
from the data. Used alone it needs `size=`. Batch `t` is a function of the key and `t`, so a run can
be stopped after any step and continued with the same batches.

    class              a custom one defines    its state and order
    Sampler            init, update, batch     any state, such as a table of probabilities
      CounterSampler   batch                   the state is a key and a counter
        EpochSampler   rows                    each epoch visits each row once, in its order
"""

import abc
import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import Contract, default_property, wrapped_name
from jaxsgd.core.records import Batch


class SamplerState(NamedTuple):
    """The state of a `CounterSampler`: a key, which is only folded, and the number of batches."""

    key: Key[Array, ""]
    step: Int[Array, ""]


class Sampler(Contract, abc.ABC):
    """Which rows a step takes. A custom sampler subclasses `CounterSampler` or this contract.

    The weights of a batch make `sum_i weight[i] grad loss(row[index[i]])` an unbiased estimate of
    the gradient of the mean loss: 1/B for B uniform rows, and 0 for padding, which repeats a row of
    the batch. Nothing after the sampler divides by a count.

    Attributes that a sampler has (a field or a property):
      size: n, the number of rows; None until the solver fills it in.
      batch_size: B, the number of rows of a batch.

    Attributes with defaults:
      batch_length: the length of a batch's arrays, `batch_size` by default.
      steps_per_epoch: the number of batches of an epoch, `ceil(n / B)` by default.
      window_rows: how many rows are shuffled together; rows on the host are read in parts at least
        this large. 0 by default.

    >>> @jaxsgd.part
    ... class EvenRows(jaxsgd.CounterSampler):
    ...     batch_size: int = jaxsgd.static()
    ...     size: int | None = jaxsgd.static(default=None)
    ...     def batch(self, key, step):
    ...         half, shape = (self.size + 1) // 2, (self.batch_size,)
    ...         drawn = jax.random.randint(jax.random.fold_in(key, step), shape, 0, half)
    ...         return jaxsgd.Batch(2 * drawn, jnp.full(shape, 1 / self.batch_size))
    >>> EvenRows(3, size=100).batch(jax.random.key(0), 0).index.tolist()
    [82, 22, 94]
    """

    size: int | None
    batch_size: int

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> PyTree:
        """The state before the first batch. `key` is only folded."""

    @abc.abstractmethod
    def update(self, state: PyTree) -> tuple[Batch, PyTree]:
        """The next batch, and the state after it."""

    @abc.abstractmethod
    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key: `update` gives the same."""

    @default_property
    def batch_length(self) -> int:
        """The length of a batch's arrays."""
        return self.batch_size

    @default_property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch, `ceil(n / B)`."""
        return -(-self.known_size // self.batch_size)

    @default_property
    def window_rows(self) -> int:
        """How many rows are shuffled together."""
        return 0

    @property
    def known_size(self) -> int:
        """n, the number of rows.

        Raises:
          ValueError: it was not given, and no solver has filled it in.
        """
        if self.size is None:
            raise ValueError(
                f"{self} has no size; give size=, the number of rows, or let a Solver do so"
            )
        return self.size

    def for_size(self, size: int) -> Self:
        """This sampler with its size filled in.

        Raises:
          ValueError: it is a sampler of another number of rows.
        """
        if (name := wrapped_name(self)) is not None:
            inner = getattr(self, name).for_size(size)
            return dataclasses.replace(self, **{name: inner})  # pyright: ignore[reportArgumentType]
        if self.size is None:
            return dataclasses.replace(self, size=size)  # pyright: ignore[reportArgumentType]
        if self.size != size:
            raise ValueError(
                f"{type(self).__name__} is for {self.size} rows, but the data have {size} rows"
            )
        return self

    def for_shard(self, begin: int, end: int, shards: int) -> "Sampler":
        """The sampler of the rows from `begin` to `end`, one of some shards: a share of each batch.

        A hook for `PerShard`; a sampler that cannot be divided leaves it.

        Raises:
          TypeError: it cannot be divided.
        """
        raise TypeError(
            f"{type(self).__name__} cannot be divided among shards, expected a sampler with the "
            "method for_shard, such as jaxsgd.WithReplacement"
        )

    def share_of(self, shards: int) -> int:
        """The rows of a batch that one of some shards draws.

        Raises:
          ValueError: the shards do not divide the batch.
        """
        length = self.batch_length
        if length % shards:
            raise ValueError(
                f"{type(self).__name__} has batches of {length} rows, expected a multiple of the "
                f"{shards} shards"
            )
        return length // shards


class CounterSampler(Sampler):
    """A sampler whose state is a key and a counter: `batch` is all that it defines."""

    def init(self, key: PRNGKeyArray) -> SamplerState:
        """The state before the first batch. `key` is only folded; derive others by `fold_in`."""
        return SamplerState(validation.key(key), jnp.zeros((), jnp.int32))

    def update(self, state: SamplerState) -> tuple[Batch, SamplerState]:
        """The next batch, and the state after it."""
        return self.batch(state.key, state.step), SamplerState(state.key, state.step + 1)


class EpochSampler(CounterSampler):
    """A sampler that visits each row once per epoch, in the order that `rows` gives.

    Step `t` of an epoch takes positions `t B .. min((t + 1) B, n) - 1`, each row of weight 1/valid.
    A class sets `drop_last` (by a field) to leave out the short last batch.

    Attributes with defaults:
      drop_last: False.

    >>> @jaxsgd.part
    ... class Backwards(jaxsgd.EpochSampler):
    ...     batch_size: int = jaxsgd.static()
    ...     size: int | None = jaxsgd.static(default=None)
    ...     def rows(self, key, epoch, positions):
    ...         return self.size - 1 - positions
    >>> Backwards(2, size=4).batch(jax.random.key(0), 0).index.tolist()
    [3, 2]
    """

    drop_last: bool = False

    @abc.abstractmethod
    def rows(
        self, key: PRNGKeyArray, epoch: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Int[Array, "..."]:
        """The rows (int32) at some positions, 0 to n - 1, of an epoch's order."""

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key."""
        epoch, positions, weight = self.epoch_positions(validation.step(step))
        return Batch(self.rows(key, epoch, positions), weight)

    @default_property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch: `ceil(n / B)`, or `n div B` with `drop_last`."""
        whole, rest = divmod(self.known_size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def for_shard(self, begin: int, end: int, shards: int) -> Self:
        """The sampler of some rows, with a share of the batch."""
        names = {f.name for f in dataclasses.fields(self)}  # pyright: ignore[reportArgumentType]
        share = {"batch_size": self.share_of(shards)} if "batch_size" in names else {}
        return dataclasses.replace(self, size=end - begin, **share)  # pyright: ignore[reportArgumentType]

    def epoch_positions(
        self, step: Int[Array, ""]
    ) -> tuple[Int[Array, ""], Int[Array, " B"], Float[Array, " B"]]:
        """The epoch of a step, the positions it takes of that epoch's order, and their weights."""
        size, count = self.known_size, self.batch_size
        position = jnp.arange(count, dtype=jnp.int32)  # in the batch
        if self.steps_per_epoch == 1 and size == count:
            return step, position, uniform(count)
        steps = jnp.int32(self.steps_per_epoch)
        epoch, start = jax.lax.div(step, steps), jax.lax.rem(step, steps) * count
        if self.drop_last or size % count == 0:
            return epoch, start + position, uniform(count)
        valid = jnp.minimum(size - start, count)
        weight = jnp.where(position < valid, 1 / valid.astype(float), 0)
        return epoch, start + jnp.minimum(position, valid - 1), weight


def uniform(count: int) -> Float[Array, " count"]:
    """Weights of 1 / count."""
    return jnp.full(count, 1 / count, float)


def check_batch_size(sampler: Sampler) -> None:
    """Refuse a batch that is larger than the data."""
    if sampler.size is not None:
        name = f"{type(sampler).__name__}'s batch_size of data with {sampler.size} rows"
        validation.integer(sampler.batch_size, name, 1, sampler.size)
