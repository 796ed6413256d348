"""A keyed bijection on 0..size-1: any position of a random permutation, on its own.

A shuffle by sorting costs O(n log n) and n numbers of memory, and must be stored to be resumed.
Here position i is enciphered: written as a pair (l, r) in 0..a-1 x 0..b-1 with a b >= size, mixed
by a Feistel network of modular additions, and, if it landed beyond size-1, enciphered again until
it is inside (cycle walking). Each step is a bijection, so the whole is one, and nothing is stored.

Black and Rogaway, "Ciphers with arbitrary finite domains" (2002); Mitchell et al.,
"Bandwidth-optimal random shuffling for GPUs" (2022).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsgd.core import validation

GOLDEN = np.uint32(0x9E3779B9)
MAX_ROUNDS = 16
LOOPED = range(32, 1025)  # numbers of positions; more of them leave the nearest cache


def permute(key: jax.Array, positions: Any, size: Any) -> jax.Array:
    """The rows at the given positions of a random permutation of 0..size-1.

    The permutation is a function of `key` and `size` alone; `permute(key, arange(n), n)` is the
    whole of it. One of at most 2**64 for each size: a shuffle, not a cipher.

    Args:
      key: one typed key or legacy `PRNGKey`; read, not consumed, so use it for nothing else.
      positions: integer array of any shape.
      size: the number of rows, 1 to 2**31 - 1: an int (static, fast), or an integer array,
        traced or not, broadcast against `positions` (5 x slower, the same permutation).

    Returns:
      int32 array of rows, of the (broadcast) shape of `positions`; -1 where a position is outside
      0..size-1.

    Raises:
      TypeError: positions or size are no integers.
      ValueError: an int `size` below 1 or above 2**31 - 1.

    >>> jaxsgd.permute(jax.random.key(0), jnp.arange(-1, 5), 4).tolist()
    [-1, 1, 3, 2, 0, -1]
    """
    key, positions = validation.key(key), _integers(positions, "positions")
    if isinstance(size, jax.Array | np.ndarray):
        return _permute_sizes(key, positions, _integers(size, "size"))
    size = validation.integer(size, "size", 1)
    return _permute(key, positions, size)


@partial(jax.jit, static_argnames="size")
def _permute(key: jax.Array, positions: jax.Array, size: int) -> jax.Array:
    inside = (positions >= 0) & (positions < size)
    rows = permute_epoch(key, jnp.uint32(0), jnp.where(inside, positions, 0), size)
    return jnp.where(inside, rows, -1)


@jax.jit
def _permute_sizes(key: jax.Array, positions: jax.Array, size: jax.Array) -> jax.Array:
    valid = size >= 1
    inside = valid & (positions >= 0) & (positions < size)
    rows = _walk(key, jnp.uint32(0), jnp.where(inside, positions, 0), jnp.where(valid, size, 1))
    return jnp.where(inside, rows, -1)


@partial(jax.jit, static_argnames="size")
def permute_epoch(key: jax.Array, epoch: jax.Array, positions: jax.Array, size: int) -> jax.Array:
    """Positions in 0..size-1, not checked, of one of the permutations that a key has, by epoch.

    The epoch is hashed with the key's words: `fold_in` in each step would cost more than the step.
    """
    return _walk(key, epoch, positions, np.uint32(size))


def permute_each(
    key: jax.Array, epoch: jax.Array, positions: jax.Array, salt: jax.Array, shape: Any
) -> jax.Array:
    """The same, each position of a permutation of its own size, in `shape`, and salt (uint32)."""
    size, a, b, rounds = shape
    return _walk(key, epoch, positions, size, (a, b, rounds), salt)


def shapes(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The shape of several sizes: themselves and sides a and b (uint32[K]), and rounds for all."""
    a, b, rounds = _shape(sizes.astype(np.uint32))
    return sizes.astype(np.uint32), a, b, int(rounds.max())


def _walk(
    key: jax.Array,
    epoch: jax.Array,
    positions: jax.Array,
    size: Any,
    shape: Any = None,
    salt: Any = None,
) -> jax.Array:
    """The network, applied until each position is inside; `size` is a NumPy scalar if static."""
    size = size.astype(np.uint32)
    a, b, rounds = _shape(size) if shape is None else shape
    keys: Any = _round_keys(key, epoch, rounds if isinstance(rounds, int) else MAX_ROUNDS)
    # a CPU waits for the chain of rounds of a vector, unless each round runs over all positions
    in_loop = (
        isinstance(rounds, int) and positions.size in LOOPED and jax.default_backend() == "cpu"
    )
    keys = jnp.stack(keys) if in_loop else keys

    def two(i: Any, halves: Any) -> Any:
        left, right = halves
        one, other = keys[2 * i], keys[2 * i + 1]
        if salt is not None:
            one, other = one ^ salt, other ^ salt
        left = _add(left, right, one, a)
        return left, _add(right, left, other, b)

    def encipher(x: Any) -> Any:
        right = x // a if isinstance(a, np.uint32) else quotient(x, a)
        halves = x - right * a, right
        if in_loop:
            halves = lax.fori_loop(0, rounds // 2, two, halves)
        else:
            for i in range(len(keys) // 2):
                mixed = two(i, halves)
                if not isinstance(rounds, int):
                    mixed = jax.tree.map(partial(jnp.where, 2 * i < rounds), mixed, halves)
                halves = mixed
        return halves[0] * b + halves[1]

    x = encipher(positions.astype(jnp.uint32))
    excess = a * b - size
    if not isinstance(size, np.uint32) or excess > 0:
        # An orbit is outside 0..size-1 for at most `excess` turns. Bounded all the same: a walk
        # that could not end would hang the device.
        _, x = lax.while_loop(
            lambda c: jnp.any((c[1] >= size) & (c[0] < excess)),
            lambda c: (c[0] + 1, jnp.where(c[1] >= size, encipher(c[1]), c[1])),
            (jnp.uint32(0), x),
        )
    return x.astype(jnp.int32)


def quotient(x: jax.Array, side: jax.Array) -> jax.Array:
    """`x // side` (uint32) of uint32 below 2**31, where it is below 2**20.

    By floats, at most one off before it is mended: a CPU divides integers one by one.
    """
    guess = (x.astype(jnp.float32) / side.astype(jnp.float32)).astype(jnp.uint32)
    rest = (x - guess * side).astype(jnp.int32)
    return guess + (rest >= side.astype(jnp.int32)) - (rest < 0)


def _integers(array: Any, name: str) -> jax.Array:
    """As int32; what is outside 0..2**31-1 becomes -1."""
    xp = np if isinstance(array, np.ndarray | np.generic) else jnp
    array = xp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} is an array of {array.dtype}, expected integers")
    if np.iinfo(array.dtype).max > validation.MAX_SIZE:  # looked at before JAX cuts 64 bits to 32
        outside = (array < 0) | (array > validation.MAX_SIZE)
        array = xp.where(outside, -1, xp.where(outside, 0, array).astype(np.int32))
    return jnp.asarray(array, jnp.int32)


def _shape(size: Any) -> tuple[Any, Any, Any]:
    """The sides a and b, one of them even (two odd sides give even permutations only), and rounds.

    Of 32 candidates below the root of `size`, those with the least excess a b - size: for sizes
    that factor it is 0, and no walk is compiled. Rounds are as many as pass the statistics in the
    tests: two adjacent rows keep a given distance too often by about size / b ** (rounds / 2).
    """
    xp = np if isinstance(size, np.uint32 | np.ndarray) else jnp
    root = xp.sqrt(size.astype(np.float32)).astype(np.uint32)  # within 1 of the root
    root = xp.where(root * root > size, root - 1, root)
    root = xp.where((root + 1) * (root + 1) <= size, root + 1, root).astype(np.int32)
    least = xp.maximum(root // 2, ((size + 0xFFFF) >> 16).astype(np.int32))  # so that b <= 2**16
    a = root[..., None] + 1 - np.arange(32, dtype=np.int32)
    a = xp.maximum(a, xp.maximum(least, 1)[..., None]).astype(np.uint32)
    b = (size[..., None] - 1) // a + 1
    excess = a * b - size[..., None] + ((a & b) % 2) * np.uint32(2**31)
    best = xp.argmin(excess, axis=-1)[..., None]
    a, b = (xp.take_along_axis(side, best, -1)[..., 0] for side in (a, b))
    rounds = xp.where(size < 128, MAX_ROUNDS, xp.where(size < 2**16, 8, 6))
    return a, b, int(rounds) if isinstance(size, np.uint32) else rounds


def _round_keys(key: jax.Array, epoch: Any, rounds: int) -> list[jax.Array]:
    """One word a round, from two hashes of the key's words and the epoch."""
    both = hashes(key, epoch)
    return [mix(both[i % 2] + np.uint32(i * int(GOLDEN) % 2**32)) for i in range(rounds)]


def hashes(key: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two words (uint32) of a key and a number (an integer array), of its shape."""
    number = number.astype(jnp.uint32)
    one, other = mix(number + GOLDEN), mix(number ^ GOLDEN)
    for word in jax.random.key_data(key):
        one, other = mix(one ^ word) + GOLDEN, mix(other + word) ^ GOLDEN
    return one, other


def mix(h: Any) -> Any:
    """A 32-bit finaliser with low bias (constants by Wellons, "Hash prospector", 2018)."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def _add(x: Any, other: Any, key: Any, side: Any) -> Any:
    """(x + F(other)) mod side, F the upper half of a hash scaled to 0..side-1; side <= 2**16."""
    h = (other ^ key) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    x = x + (((h >> 16) * side) >> 16)
    return jnp.minimum(x, x - side)  # unsigned: x - side wraps to a large number below side
