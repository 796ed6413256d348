"""A run in chunks: one compiled program for any number of steps, called from a host loop."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from itertools import repeat
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_optional_callable, part
from jaxsgd.core.records import Batch, Info, State
from jaxsgd.core.trees import as_arguments, is_finite, select
from jaxsgd.data.arrays import as_rows
from jaxsgd.loops import cpu_fusion
from jaxsgd.loops.base import Carry, Step, guarded, rows_for, stepping
from jaxsgd.loops.cpu_fusion import Form
from jaxsgd.solver import Solver


def chunks(
    solver: Solver,
    state: State,
    data: PyTree,
    steps: int,
    record: Callable[[State, Info], PyTree] | None = None,
) -> Iterator[tuple[State, PyTree]]:
    """An endless run that yields its state every `steps` steps: the loop of `fit`.

    The k-th state is that of `run(solver, state, data, k * steps)`, bit for bit on one CPU. Only
    the first iteration compiles. Logging, early stopping and saving are the body of your `for`;
    leave it with `break`. The states that are yielded, and the one that was given, stay alive: the
    loop donates copies.

    Args:
      solver, state: as in `run`.
      data: the rows: arrays, or `HostRows`.
      steps: how many steps to take between two yields.
      record: as in `run`.

    Yields:
      The state after these steps, and their records stacked along a leading axis of length
        `steps`.

    Raises:
      ValueError, TypeError: as `run`.
      OSError: rows on the host could not be read; the last state that was yielded is alive.

    >>> y = jnp.array([1.0, 3.0])
    >>> loss = lambda theta, y: (theta - y) ** 2
    >>> rule = jaxsgd.SGD(jaxsgd.InverseTimeDecay(0.5, 0.1))
    >>> solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(1), rule)
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> best = jnp.inf
    >>> for state, trace in jaxsgd.chunks(solver, state, y, steps=20):
    ...     loss_now = float(jaxsgd.evaluate(loss, state.params, y))
    ...     if loss_now >= best - 1e-3:
    ...         break
    ...     best = loss_now
    >>> round(float(state.params), 1), trace.loss.shape
    (2.0, (20,))
    """
    steps = validation.integer(steps, "steps", 1)
    rows_for(solver, state, data)
    validation.concrete((solver, state, data), "chunks")
    record = as_optional_callable(record, "record", ("state", "info"))
    return _chunks(solver, state, data, steps, _Record(record))


@part
class _Record:
    """A user's record, or the default one of `run`."""

    fn: Callable[[State, Info], PyTree] | None

    def __call__(self, state: State, info: Info, batch: Batch) -> PyTree:
        return Info(step=info.step, loss=info.loss) if self.fn is None else self.fn(state, info)


def _chunks(
    solver: Solver, state: State, data: PyTree, steps: int, record: _Record
) -> Iterator[tuple[State, PyTree]]:
    taken, trace = 0, None
    for chunk in advances(solver, _copied(state), data, repeat(steps), record, most=steps):
        span = _on_device(taken), _on_device(chunk.steps)
        trace = _filled(trace, chunk.trace, *span) if taken else chunk.trace
        taken += chunk.steps
        if taken == steps:
            yield _copied(chunk.state), trace
            taken = 0


@jax.jit
def _filled(trace: PyTree, more: PyTree, taken: Int[Array, ""], steps: Int[Array, ""]) -> PyTree:
    """A trace that holds `taken` steps, with the first `steps` steps of another one after them."""

    def fill(old: Array, new: Array) -> Array:
        place = jnp.arange(len(new))
        return old.at[jnp.where(place < steps, taken + place, len(old))].set(new, mode="drop")

    return jax.tree.map(fill, trace, more)


@jax.jit
def _copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


class ChunkResult(NamedTuple):
    """What one call of the compiled program did."""

    state: State  # donated to the next call
    steps: int
    trace: PyTree  # of its steps; entries after the last step are unused
    finite: bool  # otherwise the state is the one before the first step that was not


def advances(
    solver: Solver,
    state: State,
    data: PyTree,
    lengths: Iterable[int],
    record: Callable[[State, Info, Batch], PyTree],
    *,
    most: int,
    total: int | None = None,
    guard: bool = False,
) -> Generator[ChunkResult, None, None]:
    """A run in pieces of `lengths` steps, each at most `most`; streamed rows may split them.

    `total` is the sum of the lengths, if known. Donates `state`. With `guard`, traces are NumPy
    arrays, and a piece with a value that is not finite is rerun up to that step and ends the run.
    """
    source = as_rows(data)
    size = source.size if source.is_streamed else None
    solver, record = as_arguments((solver, record))
    before: PyTree = ()
    feeds = source.feeds(solver.sampler_for(data), state, lengths, total)
    with closing(feeds):
        for rows, begin, steps in feeds:
            span = _on_device(begin), _on_device(steps)
            state, trace, finite = _advance(
                solver, state, rows, record, *span, most=most, guard=guard, size=size
            )
            if guard:
                trace, finite = jax.device_get((trace, finite))
                if not finite:
                    state = _until_not_finite(solver, state, rows, *span, size=size)
                    yield ChunkResult(state, steps, trace, False)
                    return
            jax.block_until_ready(before)  # at most one call ahead: each call needs its own rows
            before = finite
            yield ChunkResult(state, steps, trace, True)


@lru_cache(maxsize=256)
def _on_device(value: int) -> Int[Array, ""]:
    """A small int on the device, cached because many calls get it."""
    return as_arguments(np.int32(value))


@cpu_fusion.jit(donate="state")
def _advance(
    solver: Solver,
    state: State,
    data: PyTree,
    record: Callable[[State, Info, Batch], PyTree],
    begin: Int[Array, ""],
    length: Int[Array, ""],
    *,
    most: int,
    guard: bool,
    size: int | None,
    form: Form = "inlined",
) -> tuple[State, PyTree, Bool[Array, ""]]:
    """`length` steps, their records in a trace of length `most`.

    With a `size`, data are batches (steps, B, ...) gathered from `size` rows; `begin` is the first.
    """
    ahead, step = _stepping(solver, state, data, size, begin, form)

    def look(i: Int[Array, ""], ahead: Carry) -> tuple[Carry, PyTree, Bool[Array, ""]]:
        batch = ahead[1][0]
        ahead, info = step(i, ahead)
        return ahead, record(ahead[0], info, batch), jnp.isfinite(info.loss)

    def body(
        i: Int[Array, ""], carry: tuple[Carry, PyTree, Bool[Array, ""]]
    ) -> tuple[Carry, PyTree, Bool[Array, ""]]:
        ahead, trace, fine = carry
        ahead, recorded, is_fine = look(i, ahead)
        put = partial(lax.dynamic_update_index_in_dim, index=i, axis=0)
        trace = jax.tree.map(put, trace, recorded)
        return ahead, trace, fine & is_fine

    _, recorded, _ = jax.eval_shape(look, jnp.int32(0), ahead)
    trace = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), recorded)
    (new, _), trace, fine = lax.fori_loop(0, length, body, (ahead, trace, jnp.ones((), bool)))
    if not guard:
        return new, trace, fine
    fine = fine & is_finite(new.params)
    return select(fine, new, state), trace, fine


@cpu_fusion.jit(donate="state")
def _until_not_finite(
    solver: Solver,
    state: State,
    data: PyTree,
    begin: Int[Array, ""],
    length: Int[Array, ""],
    *,
    size: int | None,
    form: Form = "inlined",
) -> State:
    """The same steps once more, up to the one that is not finite."""
    ahead, step = _stepping(solver, state, data, size, begin, form)
    body = lambda i, carry: guarded(partial(step, i), *carry)[:2]  # noqa: E731
    (state, _), _ = lax.fori_loop(0, length, body, (ahead, jnp.ones((), bool)))
    return state


def _stepping(
    solver: Solver, state: State, data: PyTree, size: int | None, begin: Int[Array, ""], form: Form
) -> tuple[Carry, Step]:
    """`stepping` whose step also takes its number among the steps of the call."""
    ahead, step = stepping(solver, state, data, form, size)
    if size is None:
        return ahead, lambda i, ahead: step(ahead)

    def at(i: Int[Array, ""], ahead: Carry) -> tuple[Carry, Info]:
        rows = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, begin + i, 0, False), data)
        return step(ahead, rows)

    return ahead, at
