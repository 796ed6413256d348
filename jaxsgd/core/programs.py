"""A `jax.jit` that frees a program once a function among its arguments is freed.

JAX keeps the structure of a jitted function's arguments with each program, and with it every loss,
metric and schedule that is static in a part: 200 fits of different losses grew the process by
1,100 MB that were never freed. Here a program is a function of leaves only, and refers to those
functions weakly. A program whose function is gone is dropped when the next one is compiled.

Some functions are still kept alive: a bound method, a function within a `Partial`, and what a
program refers to itself, such as a callback or the solver that a sweep returns.
"""

import inspect
import weakref
from collections.abc import Callable, Hashable, Iterable
from functools import update_wrapper
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import jax

from jaxsgd.core.weak import functions_held_weakly

MOST_PROGRAMS = 512  # of one jitted function; then the oldest are dropped

P = ParamSpec("P")
T = TypeVar("T")


class Flat(NamedTuple):
    """The arguments of a call."""

    leaves: list[Any]
    structure: Any  # a PyTreeDef that refers weakly to the functions that are static in parts
    functions: list[weakref.ref[Any]]


def flatten(args: object) -> Flat:
    """The leaves of arguments, and a structure that does not keep their functions alive."""
    with functions_held_weakly() as functions:
        leaves, structure = jax.tree.flatten(args)
    return Flat(leaves, structure, functions)


class Programs(dict[Hashable, tuple[T, list[weakref.ref[Any]]]], Generic[T]):
    """Programs by what they were compiled for."""

    def find(self, key: Hashable) -> T | None:
        """The program of this key, or None."""
        return self.get(key, (None,))[0]

    def keep(self, key: Hashable, program: T, functions: Iterable[weakref.ref[Any]]) -> T:
        """Add a program; drop those of functions that are gone, and the oldest ones."""
        kept = list(self.items())
        gone = [old for old, (_, refs) in kept if any(ref() is None for ref in refs)]
        oldest = [old for old, _ in kept[: max(0, len(kept) + 1 - MOST_PROGRAMS)]]
        for old in (*gone, *oldest):
            self.pop(old, None)
        self[key] = program, list(functions)
        return program


def of_leaves(fn: Callable[..., T], structure: Any, static: dict[str, Any]) -> Callable[..., T]:
    """`fn(*args, **static)` as a function of the leaves of `args`."""

    def program(*leaves: Any) -> T:
        return fn(*structure.unflatten(leaves), **static)

    return named(fn, program)


def named(fn: Callable[..., object], program: Callable[..., T]) -> Callable[..., T]:
    """Give a program the name of a function, which profiles show."""
    program.__name__, program.__qualname__ = fn.__name__, fn.__qualname__
    return program


def leaf_numbers(fn: Callable[..., object], name: str | None, args: tuple[Any, ...]) -> range:
    """Which leaves of `args` are those of the argument `name`."""
    if name is None:
        return range(0)
    at = list(inspect.signature(fn).parameters).index(name)
    begin, size = (len(jax.tree.leaves(part)) for part in (args[:at], args[at]))
    return range(begin, begin + size)


class Jitted(Generic[P, T]):
    """`jax.jit` of a function whose keyword arguments are static; see above.

    Attributes:
      programs: those that are kept.
    """

    def __init__(self, fn: Callable[P, T], donate: str | None) -> None:
        self.fn, self.donate = fn, donate
        self.programs: Programs[Callable[..., T]] = Programs()
        update_wrapper(self, fn)

    def __call__(self, *args: P.args, **static: P.kwargs) -> T:
        """The function's result."""
        program, leaves = self._program(args, static)
        return program(*leaves)

    def trace(self, *args: Any, **static: Any) -> Any:
        """Like `jax.jit(...).trace`, for the function of leaves."""
        program, leaves = self._program(args, static)
        return program.trace(*leaves)

    def _program(self, args: Any, static: dict[str, Any]) -> tuple[Any, list[Any]]:
        leaves, structure, functions = flatten(args)
        # by the functions too: structures that differ only in those have equal hashes
        key = structure, *functions, *static.items()
        program = self.programs.find(key)
        if program is None:
            donated = leaf_numbers(self.fn, self.donate, args)
            program = jax.jit(of_leaves(self.fn, structure, static), donate_argnums=donated)
            self.programs.keep(key, program, functions)
        return program, leaves


def jit(*, donate: str | None = None) -> Callable[[Callable[P, T]], Jitted[P, T]]:
    """A decorator that makes a function `Jitted`.

    Args:
      donate: the name of the argument whose arrays are donated.
    """
    return lambda fn: Jitted(fn, donate)


def eval_shape(fn: Callable[..., T], *args: object) -> T:
    """`jax.eval_shape` that, unlike JAX's, does not keep the functions of its arguments alive."""
    leaves, structure, _ = flatten(args)
    return jax.eval_shape(of_leaves(fn, structure, {}), *leaves)
