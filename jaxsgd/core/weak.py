"""While a pytree is flattened, the static values of its parts can refer weakly to functions."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Values = tuple[Any, ...]


class _Context(threading.local):
    functions: list[weakref.ref[Any]] | None = None  # those found so far; None outside the context


_context = _Context()


@contextmanager
def functions_held_weakly() -> Iterator[list[weakref.ref[Any]]]:
    """Let parts that are flattened in this context refer weakly to their static functions.

    Yields:
      A list to which references to the functions are added.
    """
    before, found = _context.functions, []
    _context.functions = found
    try:
        yield found
    finally:
        _context.functions = before


def referred_to(values: Values) -> Values:
    """Static values; within the context, weak references replace functions."""
    return values if _context.functions is None else _weakly(values, _context.functions)


def restored(values: Values) -> Values:
    """The values that `referred_to` was given."""
    if not isinstance(values, _Weak):
        return values
    kind, *held = values
    whole = (x() if type(x) is _Reference else restored(x) if type(x) is _Weak else x for x in held)
    return kind(*whole) if hasattr(kind, "_fields") else kind(whole)


class _Reference(weakref.ref):
    """A reference made here, unlike one that a user keeps in a static field."""

    __slots__ = ()


class _Weak(tuple):
    """A tuple's type, then its values, functions replaced by weak references."""

    __slots__ = ()


def _weakly(values: Values, functions: list[weakref.ref[Any]]) -> Values:
    """The values with functions replaced by references; unchanged if there are none."""
    before, found = len(functions), []
    for value in values:
        if type(value) is tuple or hasattr(value, "_fields"):  # such as an Optax transformation
            value = _weakly(value, functions)
        elif _is_known_by_identity(value):
            value = _Reference(value)
            functions.append(value)
        found.append(value)
    return _Weak((type(values), *found)) if len(functions) > before else values


def _is_known_by_identity(value: object) -> bool:
    """Whether a weak reference can stand for a function.

    Not for a bound method: it is a new object each time it is read, so a reference to it would be
    dead at once.
    """
    kind = type(value)
    return callable(value) and kind.__eq__ is object.__eq__ and kind.__weakrefoffset__ > 0
