"""Access to the jaxprs inside a jaxpr."""

from collections.abc import Iterator, Mapping

from jax.extend.core import Jaxpr


def inner_jaxprs(params: Mapping[str, object]) -> Iterator[Jaxpr]:
    """The jaxprs among an equation's `params`: a loop's body, branches, a called function."""
    for value in params.values():
        for each in value if isinstance(value, tuple | list) else [value]:
            jaxpr = getattr(each, "jaxpr", each)  # of a ClosedJaxpr
            if isinstance(jaxpr, Jaxpr):
                yield jaxpr
