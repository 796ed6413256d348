"""Batches given as arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxsgd.core import validation
from jaxsgd.core.part import part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import gather
from jaxsgd.samplers.base import CounterSampler


@part
class FixedBatches(CounterSampler):
    """Batches given by the user, one after the other, and again from the first.

    Step t takes the rows `index[t mod T]` with the weights `weight[t mod T]`: another library's
    order, or one made beforehand. An epoch is all T of them.

    Args:
      index: int[T, B], or T sequences of rows, of different lengths too, such as
        `list(torch.utils.data.BatchSampler(...))`; short ones are padded. A leaf.
      weight: float[T, B], None for 1 / B each, and 1 / length in a padded batch. Not scaled: for an
        unbiased gradient those of a batch sum to 1. A leaf.
      size: n, the number of rows, filled in by the solver.

    Raises:
      TypeError: rows that are no integers, or not of two axes.
      ValueError: no batch in a list, or an empty one, rows outside 0..n-1, or weights of another
        shape.

    >>> sampler = jaxsgd.FixedBatches([[2, 0], [1]], size=3)
    >>> sampler.batch(jax.random.key(0), 1)
    Batch(index=Array([1, 1], dtype=int32), weight=Array([1., 0.], dtype=float32))
    """

    index: Any
    weight: Any = None
    size: int | None = static(default=None, converter=validation.optional_whole(1))

    def __post_init__(self) -> None:
        index, weight = self.index, self.weight
        if isinstance(index, jax.core.Tracer):
            if weight is None:
                weight = jnp.full(index.shape, 1 / index.shape[-1], float)
                set_fields(self, weight=weight)
            return
        if not isinstance(index, np.ndarray | jax.Array):
            index, own = _padded(index)
            weight = own if weight is None else weight
        index = np.asarray(index)
        if index.ndim != 2 or index.size == 0 or index.dtype.kind not in "iu":
            raise TypeError(
                f"FixedBatches's index is an array of {index.dtype} of shape {index.shape}, "
                "expected integers of shape (steps, batch size), or a list of batches"
            )
        most = validation.MAX_SIZE if self.size is None else self.size
        if index.min() < 0 or index.max() >= most:
            raise ValueError(
                f"FixedBatches's index has rows {index.min()} to {index.max()}, expected them in "
                f"0..{most - 1}"
            )
        if weight is None:
            weight = np.full(index.shape, 1 / index.shape[1])
        weight = np.asarray(weight, np.float64)
        if not np.isfinite(weight).all():
            raise ValueError(
                "FixedBatches's weight has entries that are not finite, expected numbers"
            )
        if np.shape(weight) != index.shape:
            raise ValueError(
                f"FixedBatches's weight is of shape {np.shape(weight)}, expected that of its "
                f"index, {index.shape}"
            )
        set_fields(self, index=jnp.asarray(index, jnp.int32), weight=jnp.asarray(weight, float))

    @property
    def batch_size(self) -> int:
        """B, the number of slots of a batch."""
        return int(self.index.shape[-1])

    @property
    def steps_per_epoch(self) -> int:
        """T, the number of batches."""
        return int(self.index.shape[-2])

    def batch(self, key: jax.Array, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` (int32[]); the key plays no part."""
        turn = jax.lax.rem(jnp.asarray(step, jnp.int32), jnp.int32(self.steps_per_epoch))
        return Batch(*gather((self.index, self.weight), turn))


def _padded(batches: Any) -> tuple[np.ndarray, np.ndarray]:
    """Batches of different lengths as two arrays, filled up with the last row at weight 0."""
    rows = [np.asarray(batch) for batch in batches]
    for i, batch in enumerate(rows):
        if batch.ndim != 1 or batch.size == 0:
            raise ValueError(
                f"FixedBatches's batch {i} is of shape {batch.shape}, expected one row or more"
            )
    if not rows:
        raise ValueError("FixedBatches was given no batch, expected one or more")
    most = max(len(batch) for batch in rows)
    index = np.stack([np.pad(batch, (0, most - len(batch)), mode="edge") for batch in rows])
    length = np.array([[len(batch)] for batch in rows])
    return index, np.where(np.arange(most) < length, 1 / length, 0)
