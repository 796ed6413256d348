"""A run in chunks: one compiled program for any number of steps, called from a host loop."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsgd import checks
from jaxsgd.gradients import Gathered
from jaxsgd.loops import check_state, guarded, stepping
from jaxsgd.pairs import (
    Batch,
    Info,
    PyTree,
    State,
    as_arguments,
    as_callable,
    is_finite,
    part,
    select,
)
from jaxsgd.solver import Solver
from jaxsgd.streaming import HostRows, steps_of_a_chunk, stream


def chunks(
    solver: Solver,
    state: State,
    data: PyTree,
    every: int,
    record: Callable[[State, Info], PyTree] | None = None,
) -> Iterator[tuple[State, PyTree]]:
    """A run without an end, handed out every so many steps: the loop of `fit`, to be your own.

    After k turns the state is that of `run(solver, state, data, k * every)`, bit for bit on one
    CPU. The first turn compiles, the others do not. Logging, early stopping and saving are the body
    of your `for`; leave it with `break`. The states that are handed out, and the one that was
    given, stay alive: the loop donates a copy of its own.

    Args:
      solver, state: as in `run`.
      data: the rows: arrays, or `HostRows`.
      every: steps of a turn.
      record: as in `run`.

    Yields:
      The state after the turn, and the records of its steps stacked along a leading axis `every`.

    Raises:
      ValueError, TypeError: as `run`.
      OSError: rows on the host could not be read; the last state handed out is alive.

    >>> y = jnp.array([1.0, 3.0])
    >>> loss = lambda theta, y: (theta - y) ** 2
    >>> rule = jaxsgd.SGD(jaxsgd.InverseTimeDecay(0.5, 0.1))
    >>> solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(1), rule)
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> best = jnp.inf
    >>> for state, trace in jaxsgd.chunks(solver, state, y, every=20):
    ...     loss_now = float(jaxsgd.evaluate(loss, state.params, y))
    ...     if loss_now >= best - 1e-3:
    ...         break
    ...     best = loss_now
    >>> round(float(state.params), 1), trace.loss.shape
    (2.0, (20,))
    """
    every = checks.integer(every, "every", 1)
    check_state(state, data)
    record = record if record is None else as_callable(record, "record")
    return _chunks(solver, state, data, every, _Record(record))


@part
class _Record:
    """A user's record, or the default one of `run`."""

    fn: Any

    def __call__(self, state: State, info: Info, batch: Batch) -> PyTree:
        return Info(step=info.step, loss=info.loss) if self.fn is None else self.fn(state, info)


def _chunks(
    solver: Solver, state: State, data: PyTree, every: int, record: _Record
) -> Iterator[tuple[State, PyTree]]:
    taken, traces = 0, []
    for piece in advances(solver, _copied(state), data, repeat(every), record, most=every):
        taken += piece.steps
        traces.append(
            jax.tree.map(lambda x, n=piece.steps: x if len(x) == n else x[:n], piece.trace)
        )
        if taken == every:
            joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)
            yield _copied(piece.state), joined if len(traces) > 1 else traces[0]
            taken, traces = 0, []


@jax.jit
def _copied(state: State) -> State:
    return jax.tree.map(jnp.copy, state)


class Piece(NamedTuple):
    """What one call of the compiled program did."""

    state: State  # donated to the next call
    steps: int
    trace: PyTree  # of its steps, longer where fewer were asked for than there is room for
    finite: bool  # else the state is the one before the step that was not


def advances(
    solver: Solver,
    state: State,
    data: PyTree,
    lengths: Iterable[int],
    record: Any,
    *,
    most: int,
    guard: bool = False,
) -> Generator[Piece, None, None]:
    """A run by lengths, each at most `most` steps; rows on the host are cut finer. Donates `state`.

    With `guard` traces are NumPy arrays, and a piece that is not finite is run again up to the step
    that was not, and ends it.
    """
    size = None
    if isinstance(data, HostRows):
        size, sampler = len(data), solver.sampler_for(data)
        most = min(most, steps_of_a_chunk(data, sampler))
        solver, record = as_arguments((solver, record))
        feeds = stream(data, sampler, state, _cut(lengths, most), most)
    else:
        solver, data, record = as_arguments((solver, data, record))
        feeds = ((length, data) for length in lengths)
    before: PyTree = ()
    on_device: dict[int, jax.Array] = {}
    with closing(feeds):
        for steps, rows in feeds:
            if steps not in on_device:
                on_device[steps] = as_arguments(steps)
            length = on_device[steps]
            state, trace, finite = _advance(
                solver, state, rows, record, length, most=most, guard=guard, size=size
            )
            if guard:
                trace, finite = jax.device_get((trace, finite))
                if not finite:
                    state = _until_not_finite(solver, state, rows, length, size=size)
                    yield Piece(state, steps, trace, False)
                    return
            jax.block_until_ready(before)  # one call ahead, no more: each needs the rows of its own
            before = finite
            yield Piece(state, steps, trace, True)


def _cut(lengths: Iterable[int], most: int) -> Iterator[int]:
    for length in lengths:
        yield from (min(most, length - begin) for begin in range(0, length, most))


@partial(jax.jit, static_argnames=("most", "guard", "size"), donate_argnames="state")
def _advance(
    solver: Solver,
    state: State,
    data: PyTree,
    record: Any,
    length: jax.Array,
    *,
    most: int,
    guard: bool,
    size: int | None,
) -> tuple[State, PyTree, jax.Array]:
    """`length` (int32[]) steps, their records in a trace of length `most`.

    With a `size`, data are the batches of these steps, (most, B, ...), of so many rows.
    """
    ahead, step = _stepping(solver, state, data, size)

    def look(i: jax.Array, ahead: Any) -> tuple[Any, PyTree, jax.Array]:
        batch = ahead[1][0]
        ahead, info = step(i, ahead)
        return ahead, record(ahead[0], info, batch), jnp.isfinite(info.loss)

    def body(i: jax.Array, carry: Any) -> Any:
        ahead, trace, fine = carry
        ahead, told, is_fine = look(i, ahead)
        trace = jax.tree.map(lambda t, x: t.at[i].set(x), trace, told)
        return ahead, trace, fine & is_fine

    _, told, _ = jax.eval_shape(look, jnp.int32(0), ahead)
    trace = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), told)
    (new, _), trace, fine = lax.fori_loop(0, length, body, (ahead, trace, jnp.ones((), bool)))
    if not guard:
        return new, trace, fine
    fine = fine & is_finite(new.params)
    return select(fine, new, state), trace, fine


@partial(jax.jit, static_argnames="size", donate_argnames="state")
def _until_not_finite(
    solver: Solver, state: State, data: PyTree, length: jax.Array, *, size: int | None
) -> State:
    """The same steps once more, up to the one that is not finite."""
    ahead, step = _stepping(solver, state, data, size)
    body = lambda i, carry: guarded(partial(step, i), *carry)[:2]  # noqa: E731
    (state, _), _ = lax.fori_loop(0, length, body, (ahead, jnp.ones((), bool)))
    return state


def _stepping(solver: Solver, state: State, data: PyTree, size: int | None) -> tuple[Any, Any]:
    """`stepping` whose step also takes its number among the steps of the call."""
    if size is None:
        ahead, step = stepping(solver, state, data)
        return ahead, lambda i, ahead: step(ahead)
    ahead, step = stepping(solver, state, jax.ShapeDtypeStruct((size,), jnp.float32))

    def at(i: jax.Array, ahead: Any) -> tuple[Any, Info]:
        rows = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), data)
        return step(ahead, Gathered(rows))

    return ahead, at
