"""What the machine can do: negate a large array in place, multiply large matrices.

As a program it prints them as a line of JSON.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

NUMBERS, SIDE = 2**26, 4096  # float32: 256 MiB, read and written


def fastest(fn: Callable[[], Any], turns: int = 7) -> float:
    jax.block_until_ready(fn())
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        jax.block_until_ready(fn())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def machine() -> dict[str, Any]:
    """The device, and bytes and operations a second, the best of several turns."""
    device = jax.devices()[0]
    # in place: fresh memory would be counted with its page faults
    negate = jax.jit(lambda x: -x, donate_argnums=0)
    held = [jnp.ones(NUMBERS)]
    matrix = jnp.ones((SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    return {
        "device": f"{device.platform}: {device.device_kind}".removesuffix(": cpu"),
        "bandwidth": 8 * NUMBERS / fastest(lambda: held.append(negate(held.pop())) or held[0]),
        "rate": 2 * SIDE**3 / fastest(lambda: product(matrix, matrix), 3),
    }


if __name__ == "__main__":
    print(json.dumps(machine()))
