"""`run_until`: steps until a stop ends the run, in one `lax.while_loop`."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_optional_callable
from jaxsgd.core.records import State
from jaxsgd.core.trees import as_arguments, part_as_arguments, strong
from jaxsgd.loops import cpu_fusion
from jaxsgd.loops.base import Carry, device_data, guarded, stepping, windows_of
from jaxsgd.loops.cpu_fusion import Form
from jaxsgd.solver import Solver
from jaxsgd.stopping.base import Check, Ending, Reason, Stop, as_stop, check_stop


def run_until(
    solver: Solver,
    state: State,
    data: PyTree,
    stop: Stop,
    *,
    max_steps: int,
    check_every: int,
    monitor: Callable[[State], Float[Array, ""]] | None = None,
) -> tuple[State, Check, Ending]:
    """Take steps until a stop ends the run, in one `lax.while_loop`, compiled once.

    Every `check_every` steps the stop sees a `Check`. From the first step whose loss, gradient or
    new parameters are not finite, the state is frozen at its last finite value, and the run ends at
    the next check with `Reason.DIVERGED`.

    It can be jitted and vmapped: a run that has stopped is frozen. Each check then masks the whole
    state and the trace, and the runs no longer share the rows they gather: keep `check_every`
    large, or use `run`. It cannot be differentiated in reverse; `run` can.

    Args:
      solver, state, data: as in `run`.
      stop: when to stop: `Converged`, `EarlyStopping`, `AnyOf(...)`.
      max_steps: the most steps to take, a multiple of `check_every`; static, it sizes the trace.
      check_every: steps between checks; static.
      monitor: what the stop watches: a function of the state, such as `Objective(loss, data)`. The
        arrays of a callable pytree are arguments of the program, not constants. The default is the
        mean of loss plus penalty over the steps since the last check, each before its update.

    Returns:
      The state; the checks, padded to `max_steps // check_every` with steps of -1 and infinity; and
      `Ending(reason, step, checks)`.

    Raises:
      ValueError: `max_steps` is not a multiple of `check_every`.
      TypeError: `stop` is not a stop, or the monitor does not return a scalar.

    >>> problem = jaxsgd.problems.two_targets()
    >>> solver = jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    >>> state = solver.init(problem.params, problem.data, key=jax.random.key(0))
    >>> state, trace, ending = jaxsgd.run_until(
    ...     solver, state, problem.data, jaxsgd.Converged(1e-4), max_steps=1000, check_every=5)
    >>> print(ending)
    stopped at step 35, check 7: the monitored value changed by at most the tolerance
    """
    max_steps = validation.integer(max_steps, "max_steps", 1)
    windows = windows_of(max_steps, "max_steps", check_every, "check_every")
    data = device_data(solver, state, data)
    validation.steps_fit(max_steps, "max_steps", state.step)
    state, monitor = as_arguments((state, as_optional_callable(monitor, "monitor")))
    args = part_as_arguments(solver), state, data, part_as_arguments(as_stop(stop)), monitor
    return _run_until(*args, windows=windows, every=check_every)


class _Watch(NamedTuple):
    """What `run_until` carries from check to check."""

    ahead: Carry
    stop: PyTree
    trace: Check
    checks: Int[Array, ""]
    reason: Int[Array, ""]


@cpu_fusion.jit()
def _run_until(
    solver: Solver,
    state: State,
    data: PyTree,
    stop: Stop,
    monitor: Callable[[State], Float[Array, ""]] | None,
    *,
    windows: int,
    every: int,
    form: Form = "inlined",
) -> tuple[State, Check, Ending]:
    ahead, step = stepping(solver, state, data, form)
    zero = jnp.zeros((), jax.dtypes.canonicalize_dtype(float))

    def add(carry: PyTree, _: None) -> tuple[PyTree, None]:
        ahead, fine, total = carry[:3]
        ahead, fine, info = guarded(step, ahead, fine)
        sums = (total + info.loss + info.penalty, info.grad_norm, info.update_norm)
        return (ahead, fine, *(x.astype(zero.dtype) for x in sums)), None

    def window(watch: _Watch) -> _Watch:
        begin = watch.ahead, jnp.ones((), bool), zero, zero, zero
        (ahead, fine, total, *norms), _ = lax.scan(add, begin, length=every)
        value = total / every if monitor is None else _scalar(monitor, ahead[0])
        check = Check(ahead[0].step, value.astype(zero.dtype), *norms)
        reason, stop_state = check_stop(stop, check, watch.stop)
        reason = jnp.where(fine, reason, int(Reason.DIVERGED))
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


def _scalar(monitor: Callable[[State], PyTree], state: State) -> Float[Array, ""]:
    value = jnp.asarray(monitor(state))
    if value.ndim:
        raise TypeError(
            f"the monitor {monitor!r} returned an array of shape {value.shape}, expected a scalar"
        )
    return value
