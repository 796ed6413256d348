"""A keyed bijection on 0..size-1: any position of a random permutation, without the others.

A shuffle that sorts takes O(n log n) time and O(n) memory, and its result must be stored to resume
a run. Here position i is encrypted instead. It is written as a pair (l, r) in 0..a-1 x 0..b-1, with
a b >= size, and mixed by a Feistel network of modular additions. If the result is not below size,
it is encrypted again until it is (cycle walking). Each round is a bijection, so the whole is one.

References: Black and Rogaway, "Ciphers with arbitrary finite domains" (2002); Mitchell et al.,
"Bandwidth-optimal random shuffling for GPUs" (2022).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Integer, Key, PRNGKeyArray, UInt32

from jaxsgd.core import validation

GOLDEN = np.uint32(0x9E3779B9)
T = TypeVar("T", Array, np.ndarray)
Words = UInt32[Array, "..."] | UInt32[np.ndarray, "..."] | np.uint32  # one or several
LOOPED = range(32, 1025)  # numbers of positions for which a CPU loops over the rounds


def permute(
    key: PRNGKeyArray, positions: ArrayLike | Sequence[object], size: int | np.integer
) -> Int[Array, "..."]:
    """Rows at some positions of a random permutation of 0..size-1.

    `permute(key, jnp.arange(n), n)` is the whole permutation, a function of `key` and `size` alone.
    Nothing is sorted or stored: each position is computed on its own. For each size there are at
    most 2**64 permutations, which is enough for a shuffle but not for a cipher.

    Args:
      key: a typed key or a legacy `PRNGKey`. It is read, not consumed; use it for nothing else.
      positions: an integer array of any shape.
      size: the number of rows, a Python int from 1 to 2**31 - 1.

    Returns:
      An int32 array of the shape of `positions`: the rows, or -1 where a position is outside
      0..size-1.

    Raises:
      TypeError: `positions` are not integers, or `size` is not a Python int.
      ValueError: `size` is below 1 or above 2**31 - 1.

    >>> jaxsgd.permute(jax.random.key(0), jnp.arange(-1, 5), 4).tolist()
    [-1, 1, 3, 2, 0, -1]
    """
    if isinstance(size, jax.Array | np.ndarray):
        raise TypeError(
            f"size: expected a Python int, got an array of {size.dtype}: the compiled program "
            "depends on it; pass int(size) outside of jit and vmap"
        )
    size = validation.integer(size, "size", 1)
    return _permute(validation.key(key), _int32_positions(positions), size)


@partial(jax.jit, static_argnames="size")
def _permute(key: Key[Array, ""], positions: Int[Array, "..."], size: int) -> Int[Array, "..."]:
    inside = (positions >= 0) & (positions < size)
    rows = permute_epoch(key, jnp.uint32(0), jnp.where(inside, positions, 0), size)
    return jnp.where(inside, rows, -1)


def _int32_positions(positions: ArrayLike | Sequence[object]) -> Int[Array, "..."]:
    """Positions as int32. Those outside 0..2**31-1 become some that are outside 0..size-1."""
    positions = positions if isinstance(positions, jax.Array) else np.asarray(positions)
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise TypeError(f"positions: expected an array of integers, got one of {positions.dtype}")
    if positions.dtype.itemsize == 8:  # JAX would wrap 2**32 + 1 to 1
        is_int32 = (positions >= 0) & (positions <= validation.MAX_SIZE)
        positions = jnp.where(is_int32, positions, validation.MAX_SIZE)
    return jnp.asarray(positions).astype(jnp.int32)  # uint32 from 2**31 on becomes negative


@partial(jax.jit, static_argnames="size")
def permute_epoch(
    key: Key[Array, ""],
    epoch: Integer[Array, "..."],
    positions: Integer[Array, "..."],
    size: int,
) -> Int[Array, "..."]:
    """Rows (int32) at positions in 0..size-1, which are not checked, of an epoch's permutation.

    The epoch is hashed together with the key's words: `fold_in` at each step would take longer than
    the rest of a small step.
    """
    return permute_each(key, epoch, positions, networks(size), np.uint32(0))


class Networks(NamedTuple):
    """Feistel networks on pairs in 0..a-1 x 0..b-1, for one size or for an array of sizes."""

    size: Words
    a: Words
    b: Words
    rounds: int  # the same for all sizes
    excess: int  # the largest a b - size: how often a position may have to be encrypted again


def networks(size: int | np.ndarray) -> Networks:
    """The networks for a NumPy array of sizes.

    The sides: of 32 candidates for a, from the root of the size down, the one with the least excess
    a b - size. For sizes with a factor near their root (1,000, 60,000, a million) the excess is 0,
    and no cycle walking is compiled. One of the sides must be even: a round is a cyclic shift of
    each row or column of an a x b table, and a shift of an odd number of entries is an even
    permutation, so that two odd sides would give even permutations only. Both sides are at most
    2**16, as `_round` needs.

    The rounds: as many as the statistical tests need.

      16 below 128. Even with ideal round functions, 12 rounds fail a chi-square test of all
        permutations at size 5.
      8 below 65,536. With 4 rounds most tests fail at size 1,000; with 6, adjacent positions stay
        adjacent 6 % too often.
      6 from 65,536 on.

    The reason is that two positions which differ in one half only keep that difference with
    probability 1 / b in each pair of rounds: two adjacent rows keep a given distance too often by
    about size / b ** (rounds / 2).
    """
    size = np.asarray(size, np.int64)
    root = np.sqrt(size).astype(np.int64)  # exact: float64 has 53 bits
    least = np.maximum(np.maximum(root // 2, (size + 2**16 - 1) // 2**16), 1)  # so that b <= 2**16
    a = np.maximum(root[..., None] + 1 - np.arange(32), least[..., None])
    b = (size[..., None] - 1) // a + 1
    excess = a * b - size[..., None]
    best = np.argmin(np.where(a & b & 1, 2**31, excess), axis=-1)[..., None]
    a, b, excess = (np.take_along_axis(x, best, axis=-1)[..., 0] for x in (a, b, excess))
    rounds = 16 if size.min() < 128 else 8 if size.min() < 2**16 else 6
    return Networks(np.uint32(size), np.uint32(a), np.uint32(b), rounds, int(excess.max()))


def permute_each(
    key: Key[Array, ""],
    epoch: Integer[Array, "..."],
    positions: Integer[Array, "..."],
    networks: Networks,
    salt: Words,
) -> Int[Array, "..."]:
    """Rows (int32) at positions, each of the permutation of its own size and salt (uint32).

    The sizes and sides of `networks` and the salts broadcast against `positions`, which are not
    checked to be below their sizes.
    """
    size, _, _, rounds, excess = networks
    keys = _round_keys(key, epoch, rounds)
    # A CPU loops over the rounds, each for all positions: 0.7 us per step instead of 1.2. In one
    # expression it would take a vector of positions through all rounds, each of which waits for the
    # result of the one before. More positions than in LOOPED would leave the nearest cache.
    in_loop = positions.size in LOOPED and jax.default_backend() == "cpu"
    keys = jnp.stack(keys) if in_loop else keys
    x = _encrypt(positions.astype(jnp.uint32), keys, networks, salt, in_loop)
    if excess > 0:
        # Cycle walking. An orbit is outside 0..size-1 for at most a b - size encryptions in a row.
        # The loop is bounded by that number all the same: without an end it would hang the device.
        def walk(state: tuple[Array, Array]) -> tuple[Array, Array]:
            turn, x = state
            again = _encrypt(x, keys, networks, salt, in_loop)
            return turn + 1, jnp.where(x >= size, again, x)

        is_outside = lambda state: jnp.any((state[1] >= size) & (state[0] < excess))  # noqa: E731
        _, x = lax.while_loop(is_outside, walk, (jnp.uint32(0), x))
    return x.astype(jnp.int32)


def _encrypt(
    x: UInt32[Array, "..."],
    keys: list[Array] | Array,
    networks: Networks,
    salt: Words,
    in_loop: bool,
) -> UInt32[Array, "..."]:
    """One pass of the network: a bijection on 0..a*b-1."""
    _, a, b, rounds, _ = networks

    def two_rounds(i: int | Array, halves: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = halves
        left = _round(left, right, keys[2 * i] ^ salt, a)
        return left, _round(right, left, keys[2 * i + 1] ^ salt, b)

    # Read as x = r a + l and written as l b + r, the other way round: positions that are adjacent
    # differ in l. If l were the low half of the result as well, those whose difference survives all
    # rounds would come out adjacent.
    right = quotient(x, a)
    halves = x - right * a, right
    if in_loop:
        halves = lax.fori_loop(0, rounds // 2, two_rounds, halves)
    else:
        for i in range(rounds // 2):
            halves = two_rounds(i, halves)
    return halves[0] * b + halves[1]


def _round(x: Array, other: Array, key: Array, side: Words) -> Array:
    """`(x + F(other)) mod side`, F the upper half of a hash scaled to 0..side-1; side <= 2**16."""
    h = (other ^ key) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    x = x + (((h >> 16) * side) >> 16)
    return jnp.minimum(x, x - side)  # unsigned: where x < side, x - side wraps to a large number


def _round_keys(key: Key[Array, ""], epoch: Integer[Array, "..."], rounds: int) -> list[Array]:
    """One word (uint32) per round, from two hashes of the key's words and the epoch."""
    both = hash_key(key, epoch)
    return [mix(both[i % 2] + np.uint32(i * int(GOLDEN) % 2**32)) for i in range(rounds)]


def hash_key(
    key: Key[Array, ""], number: Integer[Array, "..."]
) -> tuple[UInt32[Array, "..."], UInt32[Array, "..."]]:
    """Two words (uint32) of a key and a number, of the shape of the number (an integer array)."""
    number = number.astype(jnp.uint32)
    first, second = mix(number + GOLDEN), mix(number ^ GOLDEN)
    for word in jax.random.key_data(key):
        first, second = mix(first ^ word) + GOLDEN, mix(second + word) ^ GOLDEN
    return first, second


def mix(h: T) -> T:
    """A 32-bit finalizer with low bias (constants by Wellons, "Hash prospector", 2018)."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def quotient(x: UInt32[Array, "..."], side: Words) -> UInt32[Array, "..."]:
    """`x // side` (uint32) where it is below 2**20, for sides below 2**31.

    A CPU divides integers one by one, but floats as vectors. The float quotient is off by one at
    most, and the remainder shows in which direction.
    """
    guess = (x.astype(jnp.float32) / side.astype(jnp.float32)).astype(jnp.uint32)
    rest = (x - guess * side).astype(jnp.int32)
    return guess + (rest >= side.astype(jnp.int32)) - (rest < 0)
