"""The memory that a traced program needs, estimated from its jaxpr, and the memory there is.

XLA knows the exact number, but only of a compiled program. Compiling a whole sweep in order to find
that it must be cut into chunks would double the time to its first result. The walk over the jaxpr
takes milliseconds.
"""

import math
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import PyTree

from jaxsgd.core.jaxprs import inner_jaxprs


@lru_cache(maxsize=256)  # a repeated sweep is not traced again, and its jaxpr is the same object
def peak_bytes(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """The most bytes that the results of a jaxpr's equations take at any time.

    A result takes memory from the equation that computes it to the last one that reads it.
    Arguments are not counted. XLA needs less where it fuses equations.
    """
    end = len(jaxpr.eqns)
    last_read = {id(v): i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars}
    last_read |= {id(v): end for v in jaxpr.outvars}
    live = most = 0
    freed_after = [0] * (end + 1)  # bytes by the index of the equation that reads them last
    for i, eqn in enumerate(jaxpr.eqns):
        for v in eqn.outvars:
            live += array_bytes([v.aval])
            freed_after[last_read.get(id(v), i)] += array_bytes([v.aval])
        # The outputs of an inner jaxpr are the equation's results, so they must not count twice.
        results = [v.aval for v in eqn.outvars]
        inner = [peak_bytes(j) - _shared_bytes(j, results) for j in inner_jaxprs(eqn.params)]
        most = max(most, live + max([0, *inner]))
        live -= freed_after[i]
    return most


def _shared_bytes(inner: Jaxpr | ClosedJaxpr, results: list[PyTree]) -> int:
    """The bytes of an inner jaxpr's outputs that are results of the outer equation as they are."""
    outputs = [v.aval for v in inner.outvars]
    return sum(array_bytes([a]) for a, b in zip(outputs, results, strict=False) if a == b)


def array_bytes(avals: Iterable[PyTree]) -> int:
    """The bytes of some arrays. A key is counted as 16, the most that JAX's generators take."""

    def width(dtype: np.dtype) -> int:
        return 16 if jnp.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize

    return sum(math.prod(aval.shape) * width(aval.dtype) for aval in avals)


def available_bytes(device: Any) -> float:
    """The memory of a device, or of the machine where the device does not report its own."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
