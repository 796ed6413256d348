"""Which rows a step takes, and with which weight.

A sampler is written `Shuffled(64)`: the solver fills in `size`, the number of rows, from the data;
alone, a sampler takes `size=`. Its state is a key and a counter, nothing of the data's length:
batch `t` is a pure function of the key and `t`, so a run can be cut anywhere and goes on exactly.

Weights are `1 / valid` over the valid rows of the batch and 0 on padding, which repeats the last
valid row; so the short last batch of an epoch weighs each of its rows right.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsgd import checks
from jaxsgd.draws import below, words
from jaxsgd.pairs import Batch, part, static
from jaxsgd.permutation import permute_epoch


class SamplerState(NamedTuple):
    """A key, only ever folded, and the number of batches drawn."""

    key: jax.Array
    step: jax.Array  # int32[]


def begin(self: Any, key: jax.Array) -> SamplerState:
    """The state before the first batch. `key` is folded only: derive other keys by `fold_in`."""
    return SamplerState(checks.key(key), jnp.zeros((), jnp.int32))


def advance(self: Any, state: SamplerState) -> tuple[Batch, SamplerState]:
    """The next batch, and the state after it."""
    return self.batch(state.key, state.step), SamplerState(state.key, state.step + 1)


def _check(self: Any) -> None:
    name, most = type(self).__name__, checks.MAX_SIZE
    if self.size is not None:
        object.__setattr__(self, "size", checks.integer(self.size, f"{name}'s size", 1))
        most = self.size if not isinstance(self, WithReplacement) else most
    if not isinstance(self, FullBatch):
        of = f" of data with {self.size} rows" if most == self.size else ""
        count = checks.integer(self.batch_size, f"{name}'s batch_size{of}", 1, most)
        object.__setattr__(self, "batch_size", count)


def size_of(self: Any) -> int:
    if self.size is None:
        raise ValueError(
            f"{self} has no size; give size=, the number of rows, or let a Solver do so"
        )
    return self.size


def _steps_per_epoch(self: Any) -> int:
    """The number of batches in which an epoch's rows are visited."""
    whole, rest = divmod(size_of(self), self.batch_size)
    return whole + (rest > 0 and not getattr(self, "drop_last", False))


def _positions(self: Any, step: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The epoch of a step, its positions in that epoch, and their weights."""
    step = jnp.asarray(step, jnp.int32)
    steps = jnp.int32(self.steps_per_epoch)
    epoch, start = jax.lax.div(step, steps), jax.lax.rem(step, steps) * self.batch_size
    lane = jnp.arange(self.batch_size, dtype=jnp.int32)
    if self.drop_last or self.size % self.batch_size == 0:
        return epoch, start + lane, _uniform(self.batch_size)
    valid = jnp.minimum(self.size - start, self.batch_size)
    weight = jnp.where(lane < valid, 1 / valid.astype(float), 0)
    return epoch, start + jnp.minimum(lane, valid - 1), weight


def for_rows(sampler: Any, size: int) -> Any:
    """The sampler with its size filled in, or a refusal where it has another one."""
    if hasattr(sampler, "sampler"):  # one around another
        return dataclasses.replace(sampler, sampler=for_rows(sampler.sampler, size))
    if sampler.size is None:
        return dataclasses.replace(sampler, size=size)
    if sampler.size != size:
        raise ValueError(
            f"{type(sampler).__name__} is for {sampler.size} rows, but the data have {size} rows"
        )
    return sampler


def slots(sampler: Any) -> int:
    """The length of a batch's arrays."""
    return getattr(sampler, "slots", None) or sampler.batch_size


def _uniform(count: int) -> jax.Array:
    return jnp.full(count, 1 / count, float)


@part
class FullBatch:
    """Every row in every step: textbook (batch) gradient descent, an epoch a step.

    `index = 0..n-1`, `weight = 1/n`.

    Args:
      size: the number of rows, filled in by the solver.

    >>> sampler = jaxsgd.FullBatch(size=4)
    >>> batch, state = sampler.update(sampler.init(jax.random.key(0)))
    >>> batch.index.tolist(), batch.weight.tolist()
    ([0, 1, 2, 3], [0.25, 0.25, 0.25, 0.25])
    """

    size: int | None = static(default=None)

    init = begin
    update = advance
    steps_per_epoch = property(_steps_per_epoch)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def batch_size(self) -> int:
        """All rows."""
        return size_of(self)

    def rows(self, key: jax.Array, epoch: Any, positions: jax.Array) -> jax.Array:
        """The rows (int32) at some positions of an epoch: those very numbers."""
        return positions

    def batch(self, key: jax.Array, step: Any) -> Batch:
        """The same batch at every step."""
        return Batch(jnp.arange(size_of(self), dtype=jnp.int32), _uniform(size_of(self)))


@part
class Sequential:
    """The rows in the order of the data, epoch after epoch: for data shuffled already.

    Step `t` of an epoch takes rows `t B .. min((t + 1) B, n) - 1`, each of weight 1/valid.

    Args:
      batch_size: B, the number of slots of a batch, 1 to n.
      size: n, the number of rows, filled in by the solver.
      drop_last: leave out the short last batch of an epoch.

    Raises:
      ValueError: `batch_size` below 1 or above the number of rows.

    >>> jaxsgd.Sequential(2, size=3).batch(jax.random.key(0), 1)
    Batch(index=Array([2, 2], dtype=int32), weight=Array([1., 0.], dtype=float32))
    """

    batch_size: int = static()
    size: int | None = static(default=None)
    drop_last: bool = static(default=False, kw_only=True)

    init = begin
    update = advance
    steps_per_epoch = property(_steps_per_epoch)

    def __post_init__(self) -> None:
        _check(self)

    def rows(self, key: jax.Array, epoch: Any, positions: jax.Array) -> jax.Array:
        """The rows (int32) at some positions of an epoch: those very numbers."""
        return positions

    def batch(self, key: jax.Array, step: Any) -> Batch:
        """Batch `step` (int32[]); the key plays no part."""
        _, positions, weight = _positions(self, step)
        return Batch(positions, weight)


@part
class Shuffled:
    """Each epoch in an order of its own, without replacement: the default of the field.

    Step `t` takes positions `(t mod T) B ..` of epoch `t div T`'s permutation, T the steps of an
    epoch. Nothing is sorted or stored: see `permute`.

    Args:
      batch_size: B, the number of slots of a batch, 1 to n.
      size: n, the number of rows, filled in by the solver.
      drop_last: leave out the short last batch of an epoch (other rows in each epoch).

    Raises:
      ValueError: `batch_size` below 1 or above the number of rows.

    >>> sampler = jaxsgd.Shuffled(2, size=4)
    >>> [sampler.batch(jax.random.key(0), t).index.tolist() for t in range(4)]
    [[1, 3], [2, 0], [1, 2], [0, 3]]
    """

    batch_size: int = static()
    size: int | None = static(default=None)
    drop_last: bool = static(default=False, kw_only=True)

    init = begin
    update = advance
    steps_per_epoch = property(_steps_per_epoch)

    def __post_init__(self) -> None:
        _check(self)

    def rows(self, key: jax.Array, epoch: Any, positions: jax.Array) -> jax.Array:
        """The rows (int32) at some positions of an epoch's order."""
        return permute_epoch(checks.key(key), epoch, positions, size_of(self))

    def batch(self, key: jax.Array, step: Any) -> Batch:
        """Batch `step` (int32[]) of the run with this key."""
        epoch, positions, weight = _positions(self, step)
        return Batch(self.rows(key, epoch, positions), weight)


@part
class WithReplacement:
    """Each row of each batch drawn on its own, uniformly: the textbook's stochastic gradient.

    `index[i] ~ Uniform(0..n-1)`, `weight = 1/B`. What it calls an epoch, `ceil(n / B)` steps, draws
    each row once on average.

    Args:
      batch_size: B, the number of rows of a batch, at least 1; it may exceed n.
      size: n, the number of rows, filled in by the solver.

    >>> jaxsgd.WithReplacement(3, size=100).batch(jax.random.key(0), 7).index.shape
    (3,)
    """

    batch_size: int = static()
    size: int | None = static(default=None)

    init = begin
    update = advance
    steps_per_epoch = property(_steps_per_epoch)

    def __post_init__(self) -> None:
        _check(self)

    def batch(self, key: jax.Array, step: Any) -> Batch:
        """Batch `step` (int32[]) of the run with this key."""
        drawn = words(checks.key(key), jnp.asarray(step, jnp.int32), self.batch_size)
        return Batch(below(drawn, size_of(self)), _uniform(self.batch_size))


@part
class Blocks:
    """Blocks in a random order, and their rows shuffled within a few: for sources fast in order.

    An epoch's order: the blocks of `block` neighbouring rows are permuted, each `window` of them in
    that order are taken together, and their rows permuted. So `window * block` rows at a time are
    read in runs, as `HostRows` does for compressed files and the network, and each row is still as
    likely as any other at each step. Where `block` does not divide n, the blocks begin at a random
    row of each epoch, around the end; where it does, they are those of the file. Weights are those
    of `Shuffled`.

    Args:
      batch_size: B, the number of slots of a batch, 1 to n.
      block: rows of a block, 1 to n: a file's chunk, or more.
      window: blocks shuffled together, at least 1.
      size: n, the number of rows, filled in by the solver.
      drop_last: leave out the short last batch of an epoch (other rows in each epoch).

    Raises:
      ValueError: `batch_size` or `block` below 1 or above the number of rows, `window` below 1.

    >>> sampler = jaxsgd.Blocks(2, block=2, window=2, size=8)
    >>> [sampler.batch(jax.random.key(0), t).index.tolist() for t in range(4)]
    [[7, 3], [2, 6], [4, 0], [5, 1]]
    """

    batch_size: int = static()
    block: int = static()
    window: int = static(default=8)
    size: int | None = static(default=None)
    drop_last: bool = static(default=False, kw_only=True)

    init = begin
    update = advance
    steps_per_epoch = property(_steps_per_epoch)

    def __post_init__(self) -> None:
        _check(self)
        most = checks.MAX_SIZE if self.size is None else self.size
        of = "" if self.size is None else f" of data with {self.size} rows"
        for name, limit, where in [("block", most, of), ("window", checks.MAX_SIZE, "")]:
            value = checks.integer(getattr(self, name), f"Blocks's {name}{where}", 1, limit)
            object.__setattr__(self, name, value)

    @property
    def window_rows(self) -> int:
        """How many rows are shuffled together."""
        return min(self.window * self.block, size_of(self))

    def batch(self, key: jax.Array, step: Any) -> Batch:
        """Batch `step` (int32[]) of the run with this key."""
        epoch, positions, weight = _positions(self, step)
        return Batch(self.rows(key, epoch, positions), weight)

    def rows(self, key: jax.Array, epoch: Any, positions: jax.Array) -> jax.Array:
        """The rows (int32) at some positions of an epoch's order."""
        n, together, key = size_of(self), self.window_rows, checks.key(key)
        windows = -(-n // together)
        last = n - (windows - 1) * together
        begin = epoch * (windows + 2)  # so that no two of an epoch's permutations are the same one

        window, place = positions // together, positions % together
        order = begin + 2 + window
        shuffled = permute_epoch(key, order, jnp.minimum(place, last - 1), last)
        if last < together:
            other = permute_epoch(key, order, place, together)
            shuffled = jnp.where(window == windows - 1, shuffled, other)
        place = window * together + shuffled

        whole, rest = divmod(n, self.block)
        turn = place // self.block
        block = permute_epoch(key, begin, jnp.minimum(turn, whole - 1), whole)
        row = jnp.where(turn < whole, block, whole) * self.block + place % self.block
        if rest:
            first = permute_epoch(key, begin + 1, jnp.zeros((), jnp.int32), n)
            row = row - jnp.where(row >= n - first, n - first, -first)  # (row + first) mod n
        return row
