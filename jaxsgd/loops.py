"""Whole runs as one compiled program: so many steps, or until a stop says so."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxsgd import checks, kernels
from jaxsgd.pairs import (
    Info,
    PyTree,
    State,
    as_arguments,
    as_callable,
    keys_of,
    select,
    strong,
    words_of,
)
from jaxsgd.solver import Solver
from jaxsgd.stopping import Check, Ending, Reason, as_reason, as_stop
from jaxsgd.streaming import HostRows


def run(
    solver: Solver,
    state: State,
    data: PyTree,
    steps: int,
    record: Callable[[State, Info], PyTree] | None = None,
    every: int = 1,
    *,
    remat: bool = False,
) -> tuple[State, PyTree]:
    """Take `steps` steps in one `lax.scan`, compiled once for each number of steps.

    A pure function: it can be jitted, vmapped over states and numbers of the solver, differentiated
    and cut in two; `run(a + b)` is `run(b)` after `run(a)`, bit for bit on one CPU.

    Args:
      solver: the step.
      state: from `solver.init` or an earlier run; it stays alive.
      data: the rows, as given to `solver.init`.
      steps: how many, a multiple of `every`; static.
      record: `record(state, info)` chooses what is kept of a step (the state after it, the `Info`
        of it): a function, told apart by its identity (define it once, not in the call), or a
        callable pytree. Without it, an `Info` of `step` and `loss`.
      every: keep only the step that ends each window of `every` steps; what is not recorded is not
        computed.
      remat: for a reverse-mode derivative (`jax.grad` of a held-out loss with respect to a rate) in
        little memory: keep about `2 sqrt(steps // every)` states, best where that number has a
        divisor near its root, and compute the steps between them again, instead of keeping what
        each step computed. With few numbers to differentiate by, forward mode (`jax.jacfwd`) needs
        neither. Without a derivative it changes nothing.

    Returns:
      The state after the last step, and the records stacked along a leading axis `steps // every`.

    Raises:
      ValueError: `steps` is no multiple of `every`.

    >>> solver = jaxsgd.Solver(lambda theta, y: (theta - y) ** 2,
    ...                        jaxsgd.Sequential(1), jaxsgd.SGD(0.1))
    >>> y = jnp.array([1.0, 3.0])
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> state, path = jaxsgd.run(solver, state, y, 4, record=lambda state, info: state.params)
    >>> path.round(4).tolist()
    [0.20000000298023224, 0.7599999904632568, 0.8079999685287476, 1.2463999986648560]
    """
    windows = _windows(checks.integer(steps, "steps", 0), "steps", every)
    _check(state, data)
    record = record if record is None else as_callable(record, "record")
    args = as_arguments((solver, state, data, record))
    return _run(*args, windows=windows, every=every, remat=bool(remat))


@kernels.jit(static_argnames=("windows", "every", "remat"))
def _run(
    solver: Solver,
    state: State,
    data: PyTree,
    record: Any,
    *,
    windows: int,
    every: int,
    remat: bool = False,
) -> tuple[State, PyTree]:
    scan = partial(scan_steps, windows=windows, every=every, remat=remat)
    if record is not None:
        return scan(solver, state, data, lambda state, info, batch: record(state, info))
    after, loss = scan(solver, state, data, lambda state, info, batch: info.loss)
    last_of_window = jnp.arange(1, windows + 1, dtype=jnp.int32) * every - 1
    return after, Info(step=state.step + last_of_window, loss=loss)


def scan_steps(
    solver: Solver,
    state: State,
    data: PyTree,
    record: Any,
    windows: int,
    every: int = 1,
    remat: bool = False,
) -> tuple[State, PyTree]:
    """`run` inside a traced function; `record(state, info, batch)` also sees the step's batch."""
    ahead, step = stepping(solver, state, data)

    def window(ahead: Any, _: None) -> tuple[Any, PyTree]:
        if every > 1:
            ahead, _ = lax.scan(lambda a, _: (step(a)[0], None), ahead, length=every - 1)
        batch = ahead[1][0]
        ahead, info = step(ahead)
        return ahead, record(ahead[0], info, batch)

    if not remat:
        (state, _), trace = lax.scan(window, ahead, length=windows)
        return state, trace
    inner = next(n for n in range(math.isqrt(max(windows, 1)), 0, -1) if windows % n == 0)
    again = partial(jax.checkpoint, prevent_cse=False)  # a scan does not share what is within

    def by_word(words: Any, _: None) -> tuple[Any, PyTree]:
        """A window between words of keys: keys kept for the way back would count as used."""
        after, told = window(keys_of(words, ahead), None)
        return words_of(after), told

    some = again(lambda words, _: lax.scan(again(by_word), words, length=inner))
    words, trace = lax.scan(some, words_of(ahead), length=windows // inner)
    state, _ = keys_of(words, ahead)
    return state, jax.tree.map(lambda x: x.reshape(windows, *x.shape[2:]), trace)


def stepping(solver: Solver, state: State, data: PyTree) -> tuple[Any, Callable[..., Any]]:
    """A loop's carry, and its step `carry -> (carry, info)`; `carry[0]` is the state.

    Each step hands on the batch of the next: one that waits in the carry is computed once, where
    the compiler would compute it again inside each of the operations that gather by it. The step
    also takes the rows of its batch, where they were gathered elsewhere.
    """
    sampler = solver.sampler_for(data)
    _check_rule(solver, state)

    data = solver.rows_of(data)

    def step(ahead: Any, rows: PyTree = data) -> tuple[Any, Info]:
        state, (batch, after) = ahead
        state, info = solver.step_at(state._replace(sampler=after), rows, batch)
        return (state, sampler.update(after)), info

    return (state, sampler.update(state.sampler)), step


def run_until(
    solver: Solver,
    state: State,
    data: PyTree,
    stop: Any,
    *,
    max_steps: int,
    every: int,
    monitor: Callable[[State], jax.Array] | None = None,
) -> tuple[State, Check, Ending]:
    """Take steps until a stop says so, in one `lax.while_loop`, compiled once.

    Every `every` steps the stop sees a `Check`. Each step is looked at before it counts: from the
    first one whose loss, gradient or new parameters are not finite the state stands still, at the
    last finite one, and the run ends at the next check with `Reason.DIVERGED`.

    It can be jitted and vmapped, where a lane that has stopped is frozen. Then each check masks the
    whole state and the trace, and lanes no longer share the rows they gather: keep `every` large,
    or use `run`. It cannot be differentiated in reverse; `run` can.

    Args:
      solver, state, data: as in `run`.
      stop: when to stop: `Converged`, `EarlyStopping`, `AnyOf(...)`.
      max_steps: at most so many steps, a multiple of `every`; static, it sizes the trace.
      every: steps between checks; static.
      monitor: what the stop watches: a function of the state, such as `Objective(loss, data)`. A
        callable pytree keeps its data as arguments. Without it, the mean of loss and penalty over
        the batches since the last check, each before its update.

    Returns:
      The state; the checks, padded to `max_steps // every` with steps of -1 and infinity; and
      `Ending(reason, step, checks)`.

    Raises:
      ValueError: `max_steps` is no multiple of `every`.
      TypeError: no stop, or a monitor that returns no scalar.

    >>> problem = jaxsgd.problems.two_targets()
    >>> solver = jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    >>> state = solver.init(problem.params, problem.data, key=jax.random.key(0))
    >>> state, trace, ending = jaxsgd.run_until(
    ...     solver, state, problem.data, jaxsgd.Converged(1e-4), max_steps=1000, every=5)
    >>> print(ending)
    stopped at step 35, check 7: the monitored objective hardly changes any more
    """
    max_steps = checks.integer(max_steps, "max_steps", 1)
    windows = _windows(max_steps, "max_steps", every)
    _check(state, data)
    stop = as_stop(stop)
    monitor = monitor if monitor is None else as_callable(monitor, "monitor")
    args = as_arguments((solver, state, data, stop, monitor))
    return _run_until(*args, windows=windows, every=every)


class _Watch(NamedTuple):
    """What `run_until` carries from check to check."""

    ahead: Any
    stop: PyTree
    trace: Check
    checks: jax.Array
    reason: jax.Array


@kernels.jit(static_argnames=("windows", "every"))
def _run_until(
    solver: Solver,
    state: State,
    data: PyTree,
    stop: Any,
    monitor: Any,
    *,
    windows: int,
    every: int,
) -> tuple[State, Check, Ending]:
    ahead, step = stepping(solver, state, data)
    zero = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))

    def add(carry: Any, _: None) -> tuple[Any, None]:
        ahead, fine, total, *_ = carry
        ahead, fine, info = guarded(step, ahead, fine)
        told = (total + info.loss + info.penalty, info.grad_norm, info.update_norm)
        return (ahead, fine, *(x.astype(zero.dtype) for x in told)), None

    def window(watch: _Watch) -> _Watch:
        begin = watch.ahead, jnp.ones((), bool), zero, zero, zero
        (ahead, fine, total, *norms), _ = lax.scan(add, begin, length=every)
        value = total / every if monitor is None else _scalar(monitor, ahead[0])
        check = Check(ahead[0].step, value.astype(zero.dtype), *norms)
        told, stop_state = stop.update(check, watch.stop)
        reason = jnp.where(fine, as_reason(told), int(Reason.DIVERGED))
        checks = watch.checks + 1
        is_last = (reason == Reason.RUNNING) & (checks == windows)
        reason = jnp.where(is_last, int(Reason.MAX_STEPS), reason).astype(jnp.int32)
        put = partial(lax.dynamic_update_index_in_dim, index=watch.checks, axis=0)
        trace = jax.tree.map(put, watch.trace, check)
        return _Watch(ahead, stop_state, trace, checks, reason)

    padding = Check(jnp.int32(-1), *[zero + jnp.inf] * 3)  # a NaN would trip jax_debug_nans
    trace = jax.tree.map(lambda x: jnp.full(windows, x), padding)
    none = jnp.zeros((), jnp.int32)
    watch = _Watch(ahead, jax.tree.map(strong, stop.init()), trace, none, none)
    watch = lax.while_loop(lambda w: w.reason == Reason.RUNNING, window, watch)
    state = watch.ahead[0]
    return state, watch.trace, Ending(watch.reason, state.step, watch.checks)


def guarded(step: Any, ahead: Any, fine: jax.Array) -> tuple[Any, jax.Array, Info]:
    """A step that counts only while all are finite; from the first that is not, none does."""
    after, info = step(ahead)
    fine = fine & info.finite
    return (select(fine, after[0], ahead[0]), after[1]), fine, info


def _scalar(monitor: Any, state: State) -> jax.Array:
    value = jnp.asarray(monitor(state))
    if value.ndim:
        raise TypeError(
            f"the monitor {monitor!r} returned an array of shape {value.shape}, expected a scalar"
        )
    return value


def _windows(steps: int, name: str, every: Any) -> int:
    every = checks.integer(every, "every", 1)
    if steps % every:
        raise ValueError(f"{name} is {steps}, expected a multiple of every, which is {every}")
    return steps // every


def _check(state: Any, data: PyTree) -> None:
    check_state(state, data)
    if isinstance(data, HostRows):
        raise TypeError(
            f"data are {data!r}, which stay on the host, expected arrays: a compiled run cannot "
            "read them on its way; use jaxsgd.chunks or jaxsgd.fit"
        )


def check_state(state: Any, data: PyTree) -> None:
    """Refuse what is no state, and data without rows."""
    if not isinstance(state, State):
        raise TypeError(
            f"state is of type {type(state).__name__}, expected the State that "
            "solver.init(params, data, key=key) or an earlier run returned"
        )
    checks.rows(data)


def _check_rule(solver: Solver, state: State) -> None:
    expected = jax.eval_shape(solver.rule.init, state.params)
    structures: list[Any] = [jax.tree.structure(expected), jax.tree.structure(state.rule)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"the state was made for another rule: its rule state is {_named(state.rule)}, but a "
            f"{type(solver.rule).__name__} like this expects {_named(expected)}; make one with "
            "solver.init, or go on with state._replace(rule=solver.rule.init(state.params)), whose "
            "schedules start at step 0"
        )


def _named(state: PyTree) -> str:
    """A rule's state by its type, and the fields it leaves out."""
    names = [n for n in getattr(state, "_fields", ()) if getattr(state, n) is None]
    return type(state).__name__ + (f" without {', '.join(names)}" if names else "")
