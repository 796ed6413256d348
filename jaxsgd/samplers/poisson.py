"""A sampler of batches that each row joins independently of the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, UInt32

from jaxsgd.core import validation
from jaxsgd.core.part import number, part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.core.validation import Number
from jaxsgd.random.bits import random_words
from jaxsgd.samplers.base import Sampler

LEAST = float(np.float32(1e-9))  # a rate, as a leaf may hold it
FINE = 2**22  # up to this many rows a float32 holds a gap exactly
BLOCK = 2**12


class PoissonState(NamedTuple):
    """A key, which is only folded, and the numbers of batches drawn and of those too large."""

    key: Key[Array, ""]
    step: Int[Array, ""]
    overflows: Int[Array, ""]


@part
class Poisson(Sampler):
    """Each row is in each batch with probability q, independently of all others (Poisson sampling).

    `weight = 1 / (q n)` for each row in the batch: the sampling that the privacy accounting of
    DP-SGD assumes. A batch has q n rows on average, and at most `capacity`; the weights of an empty
    batch are 0, and so is its gradient. If more rows are drawn, the first `capacity` are taken,
    and `state.sampler.overflows` counts such batches. The rows are found by gaps, `floor(log u /
    log(1 - q))` rows between one and the next, so that the cost of a step depends on the capacity,
    not on n.

    Args:
      rate: q, the sampling rate, 1e-9 to 1; a leaf. A traced one outside gives weights of NaN.
      capacity: the most rows of a batch. For batches that overflow with probability e it is
        `scipy.stats.binom.isf(e, n, q)`, about `q n + z sqrt(q n (1 - q))`: z = 5 for e = 3e-7.
      size: n, the number of rows, filled in by the solver.

    Raises:
      ValueError: the rate is outside, or the capacity below 1 or above n.

    >>> sampler = jaxsgd.Poisson(0.25, capacity=8, size=16)
    >>> batch, state = sampler.update(sampler.init(jax.random.key(1)))
    >>> batch.index.tolist(), batch.weight.tolist()
    ([1, 12, 13, 1, 1, 1, 1, 1], [0.25, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0])
    """

    rate: Number = number(converter=validation.real(LEAST, 1))
    capacity: int = static()
    size: int | None = static(default=None, converter=validation.optional_whole(1))

    def __post_init__(self) -> None:
        of = "" if self.size is None else f" of data with {self.size} rows"
        most = validation.MAX_SIZE if self.size is None else self.size
        capacity = validation.integer(self.capacity, f"Poisson's capacity{of}", 1, most)
        set_fields(self, capacity=capacity)

    @property
    def batch_size(self) -> int:
        """The length of a batch's arrays: the capacity."""
        return self.capacity

    def for_shard(self, begin: int, end: int, shards: int) -> "Poisson":
        """The sampler of some rows, with a share of the capacity."""
        return Poisson(self.rate, self.share_of(shards), end - begin)

    @property
    def steps_per_epoch(self) -> int | Int[Array, ""]:
        """The steps in which a row is drawn once on average, `1 / q`; int32[] for a traced q."""
        if isinstance(self.rate, Tracer):
            return jnp.maximum(jnp.round(1 / self.rate), 1).astype(jnp.int32)
        return max(1, round(1 / float(self.rate)))

    def init(self, key: PRNGKeyArray) -> PoissonState:
        """The state before the first batch. `key` is only folded."""
        return PoissonState(validation.key(key), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(self, state: PoissonState) -> tuple[Batch, PoissonState]:
        """The next batch, and the state after it."""
        batch, is_over = self._drawn(state.key, state.step)
        return batch, PoissonState(state.key, state.step + 1, state.overflows + is_over)

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key."""
        return self._drawn(validation.key(key), validation.step(step))[0]

    def _drawn(
        self, key: PRNGKeyArray, step: Int[Array, ""] | int
    ) -> tuple[Batch, Bool[Array, ""]]:
        """The batch, and whether more rows were drawn than it holds."""
        n, rate, capacity = self.known_size, jnp.asarray(self.rate, float), self.capacity
        # whole vectors of 8: on a CPU the remainder costs as much as all vectors before it
        drawn = random_words(key, jnp.asarray(step, jnp.int32), -(-(capacity + 1) // 8) * 8)
        place = _sums(_gaps(drawn, -jnp.log1p(-rate), n) + 1, n + 1) - 1
        is_in = place < n
        index = jnp.where(is_in, place, jnp.where(is_in[0], place[0], 0)).astype(jnp.int32)
        weight = jnp.where(is_in, 1 / (rate * n), 0)
        weight = jnp.where((rate > 0) & (rate <= 1), weight, jnp.nan)
        return Batch(index[:capacity], weight[:capacity]), is_in[capacity]


def _gaps(
    drawn: tuple[UInt32[Array, " W"], UInt32[Array, " W"]], slope: Float[Array, ""], n: int
) -> UInt32[Array, " W"]:
    """The numbers of rows between one and the next: `floor(exponential / slope)`, n at most."""
    high, low = drawn
    block = 1 if n <= FINE else BLOCK  # a float32 has 24 bits: of more rows, blocks and a remainder
    whole = jnp.floor(_exponential(high) * (1 / (block * slope)))
    gap = jnp.minimum(whole, n // block).astype(jnp.uint32) * np.uint32(block)
    if block > 1:
        # the remainder within a block is independent of the number of whole blocks before it
        end = -jnp.log1p((low.astype(float) + 0.5) * 2.0**-32 * jnp.expm1(-block * slope)) / slope
        gap += jnp.minimum(jnp.floor(end), block - 1).astype(jnp.uint32)
    return gap


def _exponential(drawn: UInt32[Array, " W"]) -> Float[Array, " W"]:
    """Exponential numbers of mean 1 from random words, exact at both ends.

    `-log(u)` for small u, otherwise `-log(1 - v)` with v = 1 - u: the logarithm of w, which is
    1 - v rounded, times `v / (1 - w)` (Kahan).
    """
    is_near = drawn < np.uint32(2**31)  # u near 1
    v = (jnp.where(is_near, drawn, ~drawn).astype(float) + 0.5) * 2.0**-32
    w = jnp.where(is_near, 1 - v, v)
    scaled = -jnp.log(w) * jnp.where(is_near & (w < 1), v / (1 - w), 1)
    return jnp.where(w < 1, scaled, v)


def _sums(x: UInt32[Array, " W"], most: int) -> UInt32[Array, " W"]:
    """The cumulative sums, each at most `most`, which is below 2**32.

    The numbers are at most 2**31, so that a sum that wraps is less than either of its terms.
    """

    def add(a: jax.Array, b: jax.Array) -> jax.Array:
        total = a + b
        return jnp.where(total < a, np.uint32(most), jnp.minimum(total, np.uint32(most)))

    def step(before: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = add(before, value)
        return total, total

    if jax.default_backend() == "cpu":  # a sequential scan is faster there
        return lax.scan(step, jnp.uint32(0), x)[1]
    return lax.associative_scan(add, x)
