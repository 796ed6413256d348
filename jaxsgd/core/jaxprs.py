"""Access to the jaxprs inside a jaxpr."""

from collections.abc import Iterator
from typing import Any


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an equation's `params`: a loop's body, branches, a called function."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            jaxpr = getattr(each, "jaxpr", each)  # of a ClosedJaxpr
            if hasattr(jaxpr, "eqns"):
                yield jaxpr
