"""A sampler of batches that the user gives as arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Integer, PRNGKeyArray

from jaxsgd.core import validation
from jaxsgd.core.part import part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import gather
from jaxsgd.samplers.base import CounterSampler

Batches = Integer[Array, "T B"] | np.ndarray | Sequence[Sequence[int] | np.ndarray]


@part
class FixedBatches(CounterSampler):
    """Batches given by the user, in their order, and again from the first after the last.

    Step t takes the rows `index[t mod T]` with the weights `weight[t mod T]`: the order of another
    library, or one computed beforehand. An epoch is all T batches.

    Args:
      index: int[T, B], or T sequences of rows, also of different lengths, such as
        `list(torch.utils.data.BatchSampler(...))`; short ones are padded. A leaf.
      weight: float[T, B], or None for 1 / B each, and 1 / length in a padded batch. The weights are
        not scaled: for an unbiased gradient those of a batch sum to 1. A leaf.
      size: n, the number of rows, filled in by the solver.

    Raises:
      TypeError: the rows are not integers, or not an array of two axes.
      ValueError: there is no batch, or an empty one; rows are outside 0..n-1; the weights have
        another shape.

    >>> sampler = jaxsgd.FixedBatches([[2, 0], [1]], size=3)
    >>> sampler.batch(jax.random.key(0), 1)
    Batch(index=Array([1, 1], dtype=int32), weight=Array([1., 0.], dtype=float32))
    """

    index: Int[Array, "T B"]
    weight: Float[Array, "T B"]
    size: int | None = static(default=None)

    def __init__(
        self,
        index: Batches,
        weight: Float[Array, "T B"] | np.ndarray | Sequence[Sequence[float]] | None = None,
        size: int | None = None,
    ) -> None:
        size = None if size is None else validation.integer(size, "FixedBatches's size", 1)
        if not isinstance(index, Tracer):
            index, weight = _as_arrays(index, weight, size)
        elif weight is None:
            weight = jnp.full(index.shape, 1 / index.shape[-1], float)
        set_fields(self, index=index, weight=weight, size=size)

    @property
    def batch_size(self) -> int:
        """B, the number of rows of a batch, padding included."""
        return int(self.index.shape[-1])

    @property
    def steps_per_epoch(self) -> int:
        """T, the number of batches."""
        return int(self.index.shape[-2])

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step`; the key is not used."""
        place = jax.lax.rem(validation.step(step), jnp.int32(self.steps_per_epoch))
        return Batch(*gather((self.index, self.weight), place))


def _as_arrays(
    index: Batches,
    weight: Float[Array, "T B"] | np.ndarray | Sequence[Sequence[float]] | None,
    size: int | None,
) -> tuple[Int[Array, "T B"], Float[Array, "T B"]]:
    """Batches and weights as arrays, checked."""
    validation.no_mask(index, "FixedBatches's index")
    if isinstance(index, np.ndarray | jax.Array):
        rows = np.asarray(index)
    elif index is None or isinstance(index, str):
        raise TypeError(f"FixedBatches's index is {index!r}, expected int[steps, batch size]")
    else:
        rows, own = _padded(index)
        weight = own if weight is None else weight
    if rows.ndim != 2 or rows.size == 0 or rows.dtype.kind not in "iu":
        raise TypeError(
            f"FixedBatches's index is an array of {rows.dtype} of shape {rows.shape}, expected "
            "integers of shape (steps, batch size), or a list of batches"
        )
    most = validation.MAX_SIZE if size is None else size
    if rows.min() < 0 or rows.max() >= most:
        raise ValueError(
            f"FixedBatches's index has rows {rows.min()} to {rows.max()}, expected them in "
            f"0..{most - 1}"
        )
    if weight is None:
        weight = np.full(rows.shape, 1 / rows.shape[1])
    weight = np.asarray(weight, np.float64)
    if not np.isfinite(weight).all():
        raise ValueError("FixedBatches's weight has entries that are not finite, expected numbers")
    if weight.shape != rows.shape:
        raise ValueError(
            f"FixedBatches's weight is of shape {weight.shape}, expected that of its index, "
            f"{rows.shape}"
        )
    return jnp.asarray(rows, jnp.int32), jnp.asarray(weight, float)


def _padded(batches: Sequence[Sequence[float] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Batches of different lengths as rows and weights, padded with the last row at weight 0."""
    rows = [np.asarray(batch) for batch in batches]
    for i, batch in enumerate(rows):
        if batch.ndim != 1 or batch.size == 0:
            raise ValueError(
                f"FixedBatches's index[{i}] is of shape {batch.shape}, expected one row or more"
            )
    if not rows:
        raise ValueError("FixedBatches's index is empty, expected one batch or more")
    most = max(len(batch) for batch in rows)
    index = np.stack([np.pad(batch, (0, most - len(batch)), mode="edge") for batch in rows])
    length = np.array([[len(batch)] for batch in rows])
    return index, np.where(np.arange(most) < length, 1 / length, 0)
