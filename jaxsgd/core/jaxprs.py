"""Access to the jaxprs inside a jaxpr."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def inner_jaxprs(params: Mapping[str, object]) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's `params`: a loop's body, branches, a called function."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            jaxpr = getattr(each, "jaxpr", each)  # of a ClosedJaxpr
            if isinstance(jaxpr, Jaxpr):
                yield jaxpr


def with_inner(params: Mapping[str, Any], rewrite: Callable[[Jaxpr], Jaxpr]) -> dict[str, Any]:
    """An equation's `params` with the jaxprs among them rewritten."""

    def within(value: Any) -> Any:
        if isinstance(value, Jaxpr):
            return rewrite(value)
        if isinstance(value, ClosedJaxpr):
            return value.replace(jaxpr=rewrite(value.jaxpr))
        return tuple(map(within, value)) if type(value) is tuple else value

    return {name: within(value) for name, value in params.items()}
