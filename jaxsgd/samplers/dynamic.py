"""Batches whose size is a number of the run, not of the program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxsgd.core import validation
from jaxsgd.core.part import field, part
from jaxsgd.core.records import Batch
from jaxsgd.samplers.base import CounterSampler, EpochSampler
from jaxsgd.samplers.epochs import FullBatch
from jaxsgd.samplers.replacement import WithReplacement


def _as_batch_size(value: Any, name: str = "batch_size") -> Any:
    """An int, or an integer array, as it is."""
    if isinstance(value, jax.core.Tracer | jax.Array | np.ndarray):
        if not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name} is of {value.dtype}, expected integers")
        return value
    return value if value is None else validation.integer(value, name, 1)


@part
class DynamicBatch(CounterSampler):
    """Another sampler's rows, `batch_size` of them a step: a traced number, to be swept.

    Epochs are those of the sampler with a batch size b: `T = ceil(n / b)` steps, each row once, the
    short last batch weighed right. A batch keeps the sampler's slots, so a step costs what one of
    its whole batches does, whatever b.

    Args:
      sampler: `Shuffled`, `Sequential`, `Blocks`, `WithReplacement` or `FullBatch`; its own batch
        size is the most that b may be.
      batch_size: b, an int or integer array, 1 to the sampler's batch size; a leaf. A traced one
        outside gives weights, and so a loss, of NaN.

    Raises:
      TypeError: a batch size that is no integer, or another sampler.
      ValueError: a batch size that is too small or too large.

    >>> sampler = jaxsgd.DynamicBatch(jaxsgd.Shuffled(4, size=5), 2)
    >>> [int(sum(sampler.batch(jax.random.key(0), t).weight > 0)) for t in range(3)]
    [2, 2, 1]
    """

    sampler: EpochSampler | WithReplacement = field(wraps=True)
    batch_size: Any = field(converter=_as_batch_size)

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
    def steps_per_epoch(self) -> Any:
        """T: an int, or int32[] where the batch size is traced."""
        size, is_cut = (
            self.batch_size,
            isinstance(self.sampler, EpochSampler) and self.sampler.drop_last,
        )
        size = size.astype(jnp.int32) if isinstance(size, jax.core.Tracer) else int(size)
        return (self.known_size + (0 if is_cut else size - 1)) // size

    def batch(self, key: jax.Array, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` (int32[]) of the run with this key."""
        count = jnp.asarray(self.batch_size, jnp.int32)
        lane = jnp.arange(self.batch_length, dtype=jnp.int32)
        if isinstance(self.sampler, WithReplacement):
            index, valid = self.sampler.batch(key, step).index, count
            index = jnp.where(lane < valid, index, index[0])
        else:
            steps = jnp.asarray(self.steps_per_epoch, jnp.int32)
            step = jnp.asarray(step, jnp.int32)
            epoch, start = jax.lax.div(step, steps), jax.lax.rem(step, steps) * count
            valid = jnp.minimum(self.known_size - start, count)
            index = self.sampler.rows(key, epoch, start + jnp.minimum(lane, valid - 1))
        weight = jnp.where(lane < valid, 1 / valid.astype(float), 0)
        is_possible = (count >= 1) & (count <= self.batch_length)
        return Batch(index, jnp.where(is_possible, weight, jnp.nan))
