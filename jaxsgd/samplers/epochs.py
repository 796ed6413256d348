"""Samplers of epochs without replacement: `FullBatch`, `Sequential`, `Shuffled`, `Blocks`."""

import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxsgd.core import validation
from jaxsgd.core.part import part, static
from jaxsgd.random.permutation import permute_epoch
from jaxsgd.samplers.base import EpochSampler, check_batch_size


@part
class FullBatch(EpochSampler):
    """Every row in every step: textbook (batch) gradient descent, one epoch per step.

    `index = 0..n-1`, `weight = 1/n`.

    Args:
      size: the number of rows, filled in by the solver.

    >>> sampler = jaxsgd.FullBatch(size=4)
    >>> batch, state = sampler.update(sampler.init(jax.random.key(0)))
    >>> batch.index.tolist(), batch.weight.tolist()
    ([0, 1, 2, 3], [0.25, 0.25, 0.25, 0.25])
    """

    size: int | None = static(default=None, converter=validation.optional_whole(1))

    @property
    def batch_size(self) -> int:
        """All rows."""
        return self.known_size

    def rows(
        self, key: PRNGKeyArray, epoch: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Int[Array, "..."]:
        """The rows (int32) at some positions of an epoch: the positions themselves."""
        return positions


@part
class Sequential(EpochSampler):
    """The rows in the order of the data, epoch after epoch: for data that is shuffled already.

    Step `t` of an epoch takes rows `t B .. min((t + 1) B, n) - 1`, each of weight 1/valid.

    Args:
      batch_size: B, the number of rows of a batch, 1 to n.
      size: n, the number of rows, filled in by the solver.
      drop_last: leave out the short last batch of an epoch.

    Raises:
      ValueError: `batch_size` below 1 or above the number of rows.

    >>> jaxsgd.Sequential(2, size=3).batch(jax.random.key(0), 1)
    Batch(index=Array([2, 2], dtype=int32), weight=Array([1., 0.], dtype=float32))
    """

    batch_size: int = static(converter=validation.whole(1))
    size: int | None = static(default=None, converter=validation.optional_whole(1))
    drop_last: bool = static(default=False, kw_only=True, converter=validation.flag)

    def __post_init__(self) -> None:
        check_batch_size(self)

    def rows(
        self, key: PRNGKeyArray, epoch: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Int[Array, "..."]:
        """The rows (int32) at some positions of an epoch: the positions themselves."""
        return positions


@part
class Shuffled(EpochSampler):
    """Each epoch in a new random order, without replacement: the default of the field.

    Step `t` takes the positions from `(t mod T) B` on of the permutation of epoch `t div T`, with T
    steps per epoch. Nothing is sorted or stored: see `permute`.

    Args:
      batch_size: B, the number of rows of a batch, 1 to n.
      size: n, the number of rows, filled in by the solver.
      drop_last: leave out the short last batch of an epoch (other rows in each epoch).

    Raises:
      ValueError: `batch_size` below 1 or above the number of rows.

    >>> sampler = jaxsgd.Shuffled(2, size=4)
    >>> [sampler.batch(jax.random.key(0), t).index.tolist() for t in range(4)]
    [[1, 3], [2, 0], [1, 2], [0, 3]]
    """

    batch_size: int = static(converter=validation.whole(1))
    size: int | None = static(default=None, converter=validation.optional_whole(1))
    drop_last: bool = static(default=False, kw_only=True, converter=validation.flag)

    def __post_init__(self) -> None:
        check_batch_size(self)

    def rows(
        self, key: PRNGKeyArray, epoch: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Int[Array, "..."]:
        """The rows (int32) at some positions of an epoch's order."""
        return permute_epoch(validation.key(key), epoch, positions, self.known_size)


@part
class Blocks(EpochSampler):
    """Blocks of rows in a random order, shuffled within a window: for data read fastest in order.

    In each epoch the blocks of `block` adjacent rows are permuted; then the rows of each `window`
    blocks are permuted together. `window * block` rows at a time can be read in whole blocks, as
    `HostRows` does for compressed files and the network, and each row is still as likely as any
    other at each step. Where `block` does not divide n, the first block of an epoch begins at a
    random row, and the blocks wrap around the end; where it does, they are those of the file. The
    weights are those of `Shuffled`.

    Args:
      batch_size: B, the number of rows of a batch, 1 to n.
      block: the number of rows of a block, 1 to n: a file's chunk, or more.
      window: the number of blocks that are shuffled together, at least 1.
      size: n, the number of rows, filled in by the solver.
      drop_last: leave out the short last batch of an epoch (other rows in each epoch).

    Raises:
      ValueError: `batch_size` or `block` below 1 or above the number of rows, `window` below 1.

    >>> sampler = jaxsgd.Blocks(2, block=2, window=2, size=8)
    >>> [sampler.batch(jax.random.key(0), t).index.tolist() for t in range(4)]
    [[7, 3], [2, 6], [4, 0], [5, 1]]
    """

    batch_size: int = static(converter=validation.whole(1))
    block: int = static(converter=validation.whole(1))
    window: int = static(default=8, converter=validation.whole(1))
    size: int | None = static(default=None, converter=validation.optional_whole(1))
    drop_last: bool = static(default=False, kw_only=True, converter=validation.flag)

    def __post_init__(self) -> None:
        check_batch_size(self)
        if self.size is not None:
            name = f"Blocks's block of data with {self.size} rows"
            validation.integer(self.block, name, 1, self.size)

    @property
    def window_rows(self) -> int:
        """How many rows are shuffled together."""
        return min(self.window * self.block, self.known_size)

    def rows(
        self, key: PRNGKeyArray, epoch: Int[Array, "..."], positions: Int[Array, "..."]
    ) -> Int[Array, "..."]:
        """The rows (int32) at some positions of an epoch's order."""
        n, together, key = self.known_size, self.window_rows, validation.key(key)
        windows = -(-n // together)
        last = n - (windows - 1) * together
        # each epoch has windows + 2 permutations, of different numbers: blocks, first row, windows
        begin = epoch * (windows + 2)

        window, place = positions // together, positions % together
        order = begin + 2 + window
        shuffled = permute_epoch(key, order, jnp.minimum(place, last - 1), last)
        if last < together:
            other = permute_epoch(key, order, place, together)
            shuffled = jnp.where(window == windows - 1, shuffled, other)
        place = window * together + shuffled

        whole, rest = divmod(n, self.block)
        number = place // self.block
        block = permute_epoch(key, begin, jnp.minimum(number, whole - 1), whole)
        row = jnp.where(number < whole, block, whole) * self.block + place % self.block
        if rest:
            first = permute_epoch(key, begin + 1, jnp.zeros((), jnp.int32), n)
            row = row - jnp.where(row >= n - first, n - first, -first)  # (row + first) mod n
        return row
