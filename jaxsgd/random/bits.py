"""Random words of a step, hashed from the key's words, the step and the slot.

`jax.random.bits(fold_in(key, step))` would cost more than the rest of a small step. The words pass
the statistics in the tests, as the shuffles do, and are no cipher.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsgd.random.permutation import GOLDEN, hashes, mix


def words(key: jax.Array, step: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The upper and lower words (uint32[count]) of so many random 64-bit numbers, one a slot."""
    one, other = hashes(key, step)
    lane = jnp.arange(count, dtype=jnp.uint32) * GOLDEN
    # each of these two takes no word twice; their sum does, as random words do
    low = mix(one + lane)
    return mix(low + mix(other ^ lane)), low


def below(drawn: tuple[jax.Array, jax.Array], most: int) -> jax.Array:
    """Numbers (int32) in 0..most-1: `floor(drawn * most / 2**64)`, uniform to most / 2**64."""
    high, low = drawn
    scaled = high * np.uint32(most)
    carry = scaled + upper(low, np.uint32(most)) < scaled
    return (upper(high, np.uint32(most)) + carry).astype(jnp.int32)


def upper(x: Any, y: Any) -> Any:
    """The upper word of the product of two words (uint32): JAX has no 64 bits unless asked for."""
    x_low, x_high = x & np.uint32(0xFFFF), x >> np.uint32(16)
    y_low, y_high = y & np.uint32(0xFFFF), y >> np.uint32(16)
    middle = x_high * y_low + ((x_low * y_low) >> np.uint32(16))
    rest = x_low * y_high + (middle & np.uint32(0xFFFF))
    return x_high * y_high + (middle >> np.uint32(16)) + (rest >> np.uint32(16))


def rounds(count: int, turn: Callable[[Any, Any], Any], carry: Any) -> Any:
    """`turn(i, carry)` for i in 0..count-1, each over all slots.

    A CPU would else compute a slot's whole chain of turns before the next one's, and again for each
    operation that reads it.
    """
    is_cpu = jax.default_backend() == "cpu"
    return lax.fori_loop(0, count, turn, carry, unroll=1 if is_cpu else max(count, 1))
