"""The jaxprs inside a jaxpr."""

from collections.abc import Iterator
from typing import Any


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs that an operation runs: the body of a loop, its branches, what it calls."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            jaxpr = getattr(each, "jaxpr", each)  # of a closed one
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
