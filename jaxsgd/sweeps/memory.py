"""How many bytes a traced program needs, and how many there are."""

import math
import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import jax

from jaxsgd.core.jaxprs import inner_jaxprs


@lru_cache(maxsize=256)
def peak(jaxpr: Any) -> int:
    """About the most bytes that the results of a jaxpr's operations take at one time.

    Each lives from the operation that makes it to the last that reads it; the arguments are not
    counted. A compiler that fuses operations needs less.
    """
    end = len(jaxpr.eqns)
    reads = [(v, i) for i, eqn in enumerate(jaxpr.eqns) for v in eqn.invars]
    last = {id(v): i for v, i in [*reads, *((v, end) for v in jaxpr.outvars)]}
    held = most = 0
    ending: list[int] = [0] * (end + 1)  # bytes whose last reader is the i-th operation
    for i, eqn in enumerate(jaxpr.eqns):
        made = [v.aval for v in eqn.outvars]
        within = [peak(j) - _handed_on(j, made) for j in inner_jaxprs(eqn.params)]
        for v in eqn.outvars:
            held += size([v.aval])
            ending[last.get(id(v), i)] += size([v.aval])
        most = max(most, held + max([0, *within]))
        held -= ending[i]
    return most


def size(avals: Iterable[Any]) -> int:
    """The bytes of some arrays; a key is counted as 16."""

    def width(dtype: Any) -> int:
        return 16 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize

    return sum(math.prod(aval.shape) * width(aval.dtype) for aval in avals)


def available(device: Any) -> float:
    """The bytes a device has: those of the machine where it does not tell its own."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    if not hasattr(os, "sysconf"):  # Windows
        return math.inf
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _handed_on(jaxpr: Any, made: list[Any]) -> int:
    """The bytes that a call, or a loop's carry, makes within and hands on: one array, not two."""
    inside = [v.aval for v in jaxpr.outvars]
    return sum(size([a]) for a, b in zip(inside, made, strict=False) if a == b)
