"""A sampler of rows drawn with given probabilities."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Num, PRNGKeyArray, UInt32

from jaxsgd.core import validation
from jaxsgd.core.part import field, part, static
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import gather
from jaxsgd.random.bits import random_words, short_loop
from jaxsgd.samplers.base import Sampler

SPARE = 2**18  # words left for the error of a float32 sum, at most 64 roundings per level
SUMMED = 64
MOST = np.uint32(2**32 - 1)


class ImportanceState(NamedTuple):
    """A key, the number of batches drawn, and the table that rows are drawn by."""

    key: Key[Array, ""]
    step: Int[Array, ""]
    last: UInt32[Array, " m"]  # the last of a row's words of 2**32; m is a power of 2, at least n
    scale: Float[Array, ""]  # 2**32 / n, NaN for invalid probabilities


def _scaled(
    given: Sequence[float] | np.ndarray | Num[Array, "..."], name: str = "probabilities"
) -> Num[Array, "..."]:
    """Probabilities as float32[n], scaled to a maximum of 1."""
    if isinstance(given, Tracer):
        return given
    given = np.asarray(given) if isinstance(given, list | tuple) else given
    validation.weights(given, name, np.float64)  # they are scaled below
    if not np.all(np.asarray(given, np.float64) > 0):
        raise ValueError(
            f"{name} are 0 for some row, which would bias the gradient, expected all above 0; "
            "mix them with the uniform (p + 0.1 * p.mean()), or leave rows out by a sample_weight"
        )
    wide = np.asarray(given, np.float64)
    wide = np.maximum(wide / wide.max(-1, keepdims=True), np.finfo(np.float32).tiny)
    return jnp.asarray(wide, jnp.float32)


@part
class ImportanceSampled(Sampler):
    """Rows drawn with replacement, row i with probability p_i (importance sampling).

    `P(index[j] = i) = p_i` and `weight[j] = 1 / (B n p_index[j])`, so that the estimate is unbiased
    whatever p; its variance is least for p_i in proportion to the norm of row i's gradient. Of the
    2**32 values of a random word each row has a share, a whole number, at least one, and the
    weights are computed from the shares: rounding causes no bias. A draw is a binary search in a
    table that `init` computes. Where p changes in the middle of a run, continue from
    `state._replace(sampler=sampler.renewed(state.sampler))`; otherwise the old table is used.

    Args:
      probabilities: float[n], above 0, in proportion: they are kept scaled to a maximum of 1. A
        share of 1e-4 of the draws (n / 2**31 where n is large) is spread evenly over all rows. A
        leaf.
      batch_size: B, the number of rows of a batch, at least 1; it may exceed n.

    Raises:
      TypeError: the probabilities are not numbers.
      ValueError: there is not one per row, or one is not finite or not above 0: a row that is never
        drawn would bias the gradient. Where they are traced, the weights are NaN instead, and so is
        the loss.

    Zhao and Zhang, "Stochastic optimization with importance sampling" (2015).

    >>> sampler = jaxsgd.ImportanceSampled(jnp.array([0.25, 0.25, 0.5]), 4)
    >>> batch = sampler.batch(jax.random.key(0), 0)
    >>> batch.index.tolist(), (12 * batch.weight).round(2).tolist()  # 1 / (B n p) = 1/3, 1/6
    ([2, 0, 2, 1], [2.0, 4.0, 2.0, 4.0])
    """

    probabilities: Num[Array, "..."] = field(converter=_scaled)
    batch_size: int = static(converter=validation.whole(1))

    @property
    def size(self) -> int:
        """n, the number of rows."""
        return int(self.probabilities.shape[-1])

    def for_shard(self, begin: int, end: int, shards: int) -> "ImportanceSampled":
        """The sampler of some rows, by their probabilities, with a share of the batch."""
        return ImportanceSampled(self.probabilities[begin:end], self.share_of(shards))

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch, `ceil(n / B)`, which draw n rows."""
        return -(-self.size // self.batch_size)

    def init(self, key: PRNGKeyArray) -> ImportanceState:
        """The state before the first batch, with its table. `key` is only folded."""
        step = jnp.zeros((), jnp.int32)
        return ImportanceState(validation.key(key), step, **_table(self.probabilities))

    def renewed(self, state: ImportanceState) -> ImportanceState:
        """The state with the table of these probabilities, at the same step."""
        return state._replace(**_table(self.probabilities))

    def update(self, state: ImportanceState) -> tuple[Batch, ImportanceState]:
        """The next batch by the state's table, and the state after it."""
        word = random_words(state.key, state.step, self.batch_size)[0]
        index, share = _found(state.last, word)
        weight = state.scale / self.batch_size / share
        return Batch(index, weight), state._replace(step=state.step + 1)

    def batch(self, key: PRNGKeyArray, step: Int[Array, ""] | int) -> Batch:
        """Batch `step` of the run with this key; the table is computed anew."""
        return self.update(self.init(key)._replace(step=validation.step(step)))[0]


@jax.jit
def _table(probabilities: Num[Array, " n"]) -> dict[str, jax.Array]:
    """The fields of the state that depend on the probabilities: 2**32 words divided among rows."""
    if probabilities.ndim != 1:
        raise ValueError(
            f"ImportanceSampled's probabilities are of shape {probabilities.shape}, expected one "
            "number per row"
        )
    # Integers have exact cumulative sums: those of float32 give many of ten million rows nothing.
    # Padded to a power of two, so that the search needs no bounds.
    n = probabilities.shape[0]
    probabilities = probabilities / jnp.max(probabilities)  # so that no sum or product overflows
    total = _sum(probabilities.astype(jnp.float32))
    is_valid = jnp.all(probabilities > 0) & jnp.isfinite(total)
    share = (probabilities * (float(2**32 - n - SPARE) / total)).astype(jnp.uint32)
    rest = -jnp.sum(share, dtype=jnp.uint32)  # modulo 2**32: what is left, at least n
    more = jnp.arange(n, dtype=jnp.uint32) < rest % np.uint32(n)
    last = jnp.cumsum(share + rest // np.uint32(n) + more, dtype=jnp.uint32) - 1
    last = jnp.pad(last, (0, 2 ** (n - 1).bit_length() - n), constant_values=MOST)
    return {"last": last, "scale": jnp.where(is_valid, 2**32 / n, jnp.nan).astype(float)}


def _sum(x: Float[Array, " n"]) -> Float[Array, ""]:
    """A sum of few roundings: a running sum in float32 stops growing at some ten million rows."""
    while x.size > 1:
        x = jnp.pad(x, (0, -x.size % SUMMED)).reshape(-1, SUMMED).sum(-1)
    return x.reshape(())


def _found(
    last: UInt32[Array, " m"], word: UInt32[Array, " B"]
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """The rows that the words draw, and how many words draw each of them."""
    bits = (last.shape[0] - 1).bit_length()

    def halve(
        i: Int[Array, ""], found: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Halve the range: a row's last word is `above`, that of the row before it `below`."""
        index, below, above = found
        ahead = index + (jnp.int32(2 ** max(bits - 1, 0)) >> i)
        value = gather(last, ahead - 1)
        is_beyond = value < word
        pick = partial(jnp.where, is_beyond)
        return pick(ahead, index), pick(value, below), pick(above, value)

    most = jnp.full(word.shape, MOST)  # also -1, the word before the first
    found = jnp.zeros(word.shape, jnp.int32), most, most
    index, below, above = short_loop(bits, halve, found)
    return index, (above - below - 1).astype(float) + 1
