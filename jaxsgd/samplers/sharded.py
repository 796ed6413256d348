"""A sampler that takes a share of each batch from each shard of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from jaxsgd.core import validation
from jaxsgd.core.part import part, static
from jaxsgd.core.records import Batch
from jaxsgd.random.permutation import permute_epoch
from jaxsgd.samplers.base import CounterSampler


def counts(size: int, shards: int) -> np.ndarray:
    """The number of rows of each shard: sizes differ by at most one."""
    least, rest = divmod(size, shards)
    return np.where(np.arange(shards) < rest, least + 1, least)


@part
class Sharded(CounterSampler):
    """A share of each batch from each shard of the rows, each shard shuffled separately.

    The n rows are divided into `shards` contiguous shards, whose sizes differ by at most one. With
    n_s rows in shard s and `T = ceil(max n_s / (B / shards))` steps per epoch, each step takes
    `n_s div T` rows in the order of the shard's shuffle, one more in the first `n_s mod T` steps,
    each of weight `n_s / (n v)` where v rows are taken: an epoch visits each row once, and every
    step is unbiased. So each device of a mesh (`MeshRows`) draws from the shards that it holds, and
    the batches are the same for any number of devices.

    Args:
      batch_size: B, the number of rows of a batch, a multiple of `shards`.
      shards: the number of shards.
      size: n, the number of rows, filled in by the solver.

    Raises:
      ValueError: the batch size is not a multiple of the shards, or there are so few rows, or so
        few in a batch, that some step would take no row of a shard.

    >>> sampler = jaxsgd.Sharded(4, shards=2, size=8)
    >>> [sampler.batch(jax.random.key(0), t).index.tolist() for t in range(2)]
    [[1, 3, 5, 6], [2, 0, 4, 7]]
    """

    batch_size: int = static(converter=validation.whole(1))
    shards: int = static(default=8, converter=validation.whole(1))
    size: int | None = static(default=None, converter=validation.optional_whole(1))

    def __post_init__(self) -> None:
        shards, batch_size = self.shards, self.batch_size
        if batch_size % shards:
            raise ValueError(
                f"Sharded's batch_size is {batch_size}, expected a multiple of its {shards} shards"
            )
        if self.size is not None:
            size = validation.integer(self.size, "Sharded's size", 1)
            validation.integer(
                batch_size, f"Sharded's batch_size of data with {size} rows", 1, size
            )
            if size // shards < self.steps_per_epoch:
                raise ValueError(
                    f"{self} would find a shard empty at some step, expected a batch size of at "
                    f"least {2 * shards}, or fewer shards"
                )

    @property
    def steps_per_epoch(self) -> int:
        """T, the number of batches of an epoch."""
        return -(-self.rows_of_a_shard // (self.batch_size // self.shards))

    @property
    def rows_of_a_shard(self) -> int:
        """The most rows that a shard has."""
        if self.size is None:
            raise ValueError(f"{self} has no size; give size=, the number of rows")
        return -(-self.size // self.shards)

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key: the rows of shard 0, then of shard 1, ..."""
        step, steps, key = validation.step(step), self.steps_per_epoch, validation.key(key)
        n, least = self.size or 0, (self.size or 0) // self.shards
        shard = np.arange(self.shards, dtype=np.int32)[:, None]
        count = counts(n, self.shards).astype(np.int32)[:, None]
        first = np.cumsum(count, axis=0, dtype=np.int32) - count
        whole, more = count // steps, count % steps

        epoch, step = jax.lax.div(step, jnp.int32(steps)), jax.lax.rem(step, jnp.int32(steps))
        taken = whole + (step < more)
        position = jnp.arange(self.batch_size // self.shards, dtype=jnp.int32)[None]
        place = step * whole + jnp.minimum(step, more) + jnp.minimum(position, taken - 1)
        order = epoch * self.shards + shard  # no two shards have the same permutation
        row = permute_epoch(key, order, jnp.minimum(place, least - 1), least)
        if n % self.shards:
            longer = permute_epoch(key, order, place, least + 1)
            row = jnp.where(count > least, longer, row)
        weight = jnp.where(position < taken, count / n / taken.astype(float), 0)
        return Batch((row + first).ravel(), weight.ravel())
