"""Random words of a step, hashed from the key's words, the step and the position in the batch.

Each word is hashed on its own, as the round keys of a shuffle are. `jax.random.bits(fold_in(key,
step))` would take longer than the rest of a small step: 1.1 of 1.6 us (CPU). The words pass the
statistical tests, but they are not a cipher.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, UInt32

from jaxsgd.random.permutation import GOLDEN, hash_key, mix

T = TypeVar("T")


def random_words(
    key: Key[Array, ""], step: Int[Array, ""], count: int
) -> tuple[UInt32[Array, " count"], UInt32[Array, " count"]]:
    """The upper and lower words of `count` random 64-bit integers."""
    first, second = hash_key(key, step)
    position = jnp.arange(count, dtype=jnp.uint32) * GOLDEN
    # Each of the two hashes maps different positions to different words. Their sum may repeat a
    # word, as random words do.
    low = mix(first + position)
    return mix(low + mix(second ^ position)), low


def randint_below(
    words: tuple[UInt32[Array, "..."], UInt32[Array, "..."]], bound: int
) -> Int[Array, "..."]:
    """Integers (int32) in 0..bound-1 from 64-bit words: `floor(word * bound / 2**64)`.

    Each integer has probability 1 / bound, up to a relative error of bound / 2**64.
    """
    high, low = words
    scaled = high * np.uint32(bound)
    carry = scaled + multiply_high(low, np.uint32(bound)) < scaled
    return (multiply_high(high, np.uint32(bound)) + carry).astype(jnp.int32)


def multiply_high(
    x: UInt32[Array, "..."], y: UInt32[Array, "..."] | np.uint32
) -> UInt32[Array, "..."]:
    """The upper 32 bits of the 64-bit product of two uint32.

    By products of halves, because JAX has 64-bit integers only in x64 mode.
    """
    x_low, x_high = x & np.uint32(0xFFFF), x >> np.uint32(16)
    y_low, y_high = y & np.uint32(0xFFFF), y >> np.uint32(16)
    middle = x_high * y_low + ((x_low * y_low) >> np.uint32(16))
    rest = x_low * y_high + (middle & np.uint32(0xFFFF))
    return x_high * y_high + (middle >> np.uint32(16)) + (rest >> np.uint32(16))


def short_loop(count: int, body: Callable[[Int[Array, ""], T], T], init: T) -> T:
    """`lax.fori_loop(0, count, body, init)` for a few iterations over the whole batch.

    It is unrolled, except on a CPU. There a single expression would take each position through all
    iterations before the next position, and would be computed again for each operation that reads
    it.
    """
    is_cpu = jax.default_backend() == "cpu"
    return lax.fori_loop(0, count, body, init, unroll=1 if is_cpu else max(count, 1))
