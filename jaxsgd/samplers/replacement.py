"""A sampler of rows drawn with replacement."""

from jaxtyping import Array, Int, PRNGKeyArray

from jaxsgd.core import validation
from jaxsgd.core.part import part, static
from jaxsgd.core.records import Batch
from jaxsgd.random.bits import randint_below, random_words
from jaxsgd.samplers.base import CounterSampler, uniform


@part
class WithReplacement(CounterSampler):
    """Each row of each batch drawn independently, uniformly: the textbook's stochastic gradient.

    `index[i] ~ Uniform(0..n-1)`, `weight = 1/B`. An epoch is `ceil(n / B)` steps, in which each row
    is drawn once on average.

    Args:
      batch_size: B, the number of rows of a batch, at least 1; it may exceed n.
      size: n, the number of rows, filled in by the solver.

    >>> jaxsgd.WithReplacement(3, size=100).batch(jax.random.key(0), 7).index.shape
    (3,)
    """

    batch_size: int = static(converter=validation.whole(1))
    size: int | None = static(default=None, converter=validation.optional_whole(1))

    def for_shard(self, begin: int, end: int, shards: int) -> "WithReplacement":
        """The sampler of some rows, with a share of the batch."""
        return WithReplacement(self.share_of(shards), end - begin)

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key."""
        drawn = random_words(validation.key(key), validation.step(step), self.batch_size)
        return Batch(randint_below(drawn, self.known_size), uniform(self.batch_size))
