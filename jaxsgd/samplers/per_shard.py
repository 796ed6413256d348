"""A sampler that draws from each shard of the rows by a sampler of that shard."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_contract, field, part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.samplers.base import Sampler
from jaxsgd.samplers.sharded import counts


def _as_sampler(sampler: Sampler, name: str = "sampler") -> Sampler:
    return as_contract(sampler, Sampler, name, "jaxsgd.WithReplacement(64)")


@part
class PerShard(Sampler):
    """A share of each batch from each shard of the rows, drawn by another sampler.

    The n rows are divided into `shards` contiguous shards, whose sizes differ by at most one. Each
    shard of n_s rows has a sampler of its own, with `1 / shards` of the batch size, and its weights
    are multiplied by `n_s / n`: an estimate that is unbiased in each shard is unbiased for all
    rows. So the devices of a mesh (`MeshRows`) draw by any sampler from the rows that they hold.
    (`Shuffled` on a mesh becomes `Sharded`, whose shards have epochs of the same length.)

    Args:
      sampler: `WithReplacement`, `Poisson`, `ImportanceSampled`, `Stratified`, `DynamicBatch`, or
        an `EpochSampler`; its batch size, or `Poisson`'s capacity, is that of all shards together,
        a multiple of `shards`. `Stratified` and `ImportanceSampled` have proportions of their own
        in each shard.
      shards: the number of shards: for `MeshRows`, the number of its.
      size: n, the number of rows, filled in by the solver.

    Raises:
      TypeError: a sampler that cannot be divided, such as `FixedBatches`.
      ValueError: a batch size that is not a multiple of `shards`, or fewer rows than shards.

    >>> sampler = jaxsgd.PerShard(jaxsgd.WithReplacement(4), shards=2, size=10)
    >>> batch = sampler.batch(jax.random.key(0), 0)
    >>> (batch.index < 5).tolist(), batch.weight.tolist()
    ([True, True, False, False], [0.25, 0.25, 0.25, 0.25])
    """

    sampler: Sampler = field(converter=_as_sampler)
    shards: int = static(default=8, converter=validation.whole(1))
    size: int | None = static(default=None, converter=validation.optional_whole(1))
    parts: tuple[Sampler, ...] = field(default=(), init=False, repr=False)  # of the shards

    def __post_init__(self) -> None:
        size = self.sampler.size if self.size is None else self.size
        if size is None:
            return
        if size < self.shards:
            raise ValueError(
                f"PerShard's shards are {self.shards}, expected at most the {size} rows"
            )
        parts = tuple(
            self.sampler.for_shard(begin, begin + count, self.shards)
            for begin, count in self._shards(size)
        )
        lengths = {part.batch_length for part in parts}
        if len(lengths) > 1:
            raise ValueError(
                f"the shards of {self} have batches of lengths {sorted(lengths)}, expected one "
                "length: rows that the shards divide, or another sampler"
            )
        set_fields(self, size=size, parts=parts)

    @property
    def batch_size(self) -> int:
        """The number of rows of a batch, that of the sampler."""
        return self.sampler.batch_size

    @property
    def batch_length(self) -> int:
        """The length of a batch's arrays."""
        return self.sampler.batch_length

    @property
    def steps_per_epoch(self) -> int:
        """The most batches of an epoch of a shard."""
        return max(part.steps_per_epoch for part in self._known_parts)

    def init(self, key: PRNGKeyArray) -> tuple[PyTree, ...]:
        """The states of the shards' samplers before the first batch."""
        keys = self._keys(validation.key(key))
        return tuple(part.init(key) for part, key in zip(self._known_parts, keys, strict=True))

    def update(self, state: tuple[PyTree, ...]) -> tuple[Batch, tuple[PyTree, ...]]:
        """The next batch, and the state after it."""
        batches, states = zip(*map(lambda p, s: p.update(s), self.parts, state), strict=True)
        return self._joined(batches), states

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key: the rows of shard 0, then of shard 1, ..."""
        keys = self._keys(validation.key(key))
        batches = [part.batch(key, step) for part, key in zip(self._known_parts, keys, strict=True)]
        return self._joined(batches)

    @property
    def _known_parts(self) -> tuple[Sampler, ...]:
        """The samplers of the shards; without a size there are none, and that is refused."""
        return self.parts if self.known_size else ()

    def _joined(self, batches: tuple[Batch, ...] | list[Batch]) -> Batch:
        shards = self._shards(self.known_size)
        index = [batch.index + begin for batch, (begin, _) in zip(batches, shards, strict=True)]
        weight = [
            batch.weight * (count / self.known_size)
            for batch, (_, count) in zip(batches, shards, strict=True)
        ]
        return Batch(jnp.concatenate(index), jnp.concatenate(weight))

    def _keys(self, key: PRNGKeyArray) -> list[PRNGKeyArray]:
        return [jax.random.fold_in(key, shard) for shard in range(self.shards)]

    def _shards(self, size: int) -> list[tuple[int, int]]:
        """The first row and the number of rows of each shard."""
        held = counts(size, self.shards)
        return list(zip((np.cumsum(held) - held).tolist(), held.tolist(), strict=True))
