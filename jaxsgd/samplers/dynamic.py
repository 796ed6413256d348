"""A sampler whose batch size is a leaf, so that another one compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Integer, PRNGKeyArray

from jaxsgd.core import validation
from jaxsgd.core.part import field, part
from jaxsgd.core.records import Batch
from jaxsgd.samplers.base import CounterSampler, EpochSampler
from jaxsgd.samplers.epochs import FullBatch
from jaxsgd.samplers.replacement import WithReplacement

BatchSize = int | np.integer | np.ndarray | Integer[Array, "..."]


def _as_batch_size(value: BatchSize, name: str = "batch_size") -> BatchSize:
    """An int, or an integer array, unchanged."""
    if isinstance(value, Tracer | jax.Array | np.ndarray):
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name} is of {value.dtype}, expected integers")
        return value
    return value if value is None else validation.integer(value, name, 1)


@part
class DynamicBatch(CounterSampler):
    """The rows of another sampler, `batch_size` of them per step: a number that can be swept.

    Epochs are those of the sampler with a batch size b: `T = ceil(n / b)` steps, each row once. The
    arrays of a batch keep the sampler's length, with weights of 0 from b on, so a step costs as
    much as one with a full batch of the sampler, whatever b.

    Args:
      sampler: `Shuffled`, `Sequential`, `Blocks`, `WithReplacement` or `FullBatch`; its batch size
        is the largest b.
      batch_size: b, an int or integer array, 1 to the sampler's batch size; a leaf. A traced one
        outside gives weights, and so a loss, of NaN.

    Raises:
      TypeError: the batch size is not an integer, or the sampler is another one.
      ValueError: the batch size is below 1 or above the sampler's.

    >>> sampler = jaxsgd.DynamicBatch(jaxsgd.Shuffled(4, size=5), 2)
    >>> [int(sum(sampler.batch(jax.random.key(0), t).weight > 0)) for t in range(3)]
    [2, 2, 1]
    """

    sampler: EpochSampler | WithReplacement = field(wraps=True)
    batch_size: BatchSize = field(converter=_as_batch_size)

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, EpochSampler | WithReplacement):
            raise TypeError(
                f"DynamicBatch's sampler is {self.sampler!r}, expected an EpochSampler, such as "
                "jaxsgd.Shuffled(256), or WithReplacement"
            )
        is_known = self.sampler.size is not None or not isinstance(self.sampler, FullBatch)
        if is_known:
            validation.number(
                self.batch_size, "DynamicBatch's batch_size", 1, self.sampler.batch_size
            )

    def for_shard(self, begin: int, end: int, shards: int) -> "DynamicBatch":
        """The sampler of some rows, with a share of the batch size, whose multiple it is."""
        inner = self.sampler.for_shard(begin, end, shards)
        if isinstance(self.batch_size, int) and self.batch_size % shards:
            raise ValueError(
                f"DynamicBatch's batch_size is {self.batch_size}, expected a multiple of the "
                f"{shards} shards"
            )
        return DynamicBatch(inner, self.batch_size // shards)

    @property
    def size(self) -> int | None:
        """The number of rows, the sampler's."""
        return self.sampler.size

    @property
    def batch_length(self) -> int:
        """The length of a batch's arrays: the sampler's batch size."""
        return self.sampler.batch_size

    @property
    def window_rows(self) -> int:
        """How many rows the sampler shuffles together."""
        return self.sampler.window_rows

    @property
    def steps_per_epoch(self) -> int | Int[Array, ""]:
        """T: an int, or int32[] where the batch size is traced."""
        count = self.batch_size
        count = count.astype(jnp.int32) if isinstance(count, Tracer) else int(count)
        drops_last = isinstance(self.sampler, EpochSampler) and self.sampler.drop_last
        return (self.known_size + (0 if drops_last else count - 1)) // count

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key."""
        step = validation.step(step)
        count = jnp.asarray(self.batch_size, jnp.int32)
        position = jnp.arange(self.batch_length, dtype=jnp.int32)
        if isinstance(self.sampler, WithReplacement):
            index, valid = self.sampler.batch(key, step).index, count
            index = jnp.where(position < valid, index, index[0])
        else:
            steps = jnp.asarray(self.steps_per_epoch, jnp.int32)
            epoch, start = jax.lax.div(step, steps), jax.lax.rem(step, steps) * count
            valid = jnp.minimum(self.known_size - start, count)
            index = self.sampler.rows(key, epoch, start + jnp.minimum(position, valid - 1))
        weight = jnp.where(position < valid, 1 / valid.astype(float), 0)
        is_possible = (count >= 1) & (count <= self.batch_length)
        return Batch(index, jnp.where(is_possible, weight, jnp.nan))
