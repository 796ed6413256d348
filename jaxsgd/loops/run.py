"""`run`: a fixed number of steps in one `lax.scan`."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_optional_callable
from jaxsgd.core.records import Batch, Info, State
from jaxsgd.core.trees import as_arguments, keys_of, part_as_arguments, words_of
from jaxsgd.loops import cpu_fusion
from jaxsgd.loops.base import Carry, device_data, stepping, windows_of
from jaxsgd.loops.cpu_fusion import Form
from jaxsgd.solver import Solver


def run(
    solver: Solver,
    state: State,
    data: PyTree,
    steps: int,
    record: Callable[[State, Info], PyTree] | None = None,
    record_every: int = 1,
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
      steps: how many, a multiple of `record_every`; static.
      record: `record(state, info)` returns what is kept of a step, from the state after it and its
        `Info`: a function (define it once, not in the call: another object compiles again), or a
        callable pytree. The default is an `Info` of `step` and `loss`.
      record_every: record only the last of every `record_every` steps; norms that are not recorded
        are not computed.
      remat: save memory in reverse mode (`jax.grad` of a held-out loss with respect to a rate):
        store about `2 sqrt(steps // record_every)` states and recompute the steps between them. It
        saves most where `steps // record_every` has a divisor near its square root. With respect to
        few numbers, forward mode (`jax.jacfwd`) stores no steps. Without differentiation `remat`
        has no effect.

    Returns:
      The state after the last step, and the records stacked along a leading axis of length
        `steps // record_every`.

    Raises:
      ValueError: `steps` is not a multiple of `record_every`.

    >>> solver = jaxsgd.Solver(lambda theta, y: (theta - y) ** 2,
    ...                        jaxsgd.Sequential(1), jaxsgd.SGD(0.1))
    >>> y = jnp.array([1.0, 3.0])
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> state, path = jaxsgd.run(solver, state, y, 4, record=lambda state, info: state.params)
    >>> path.round(4).tolist()
    [0.20000000298023224, 0.7599999904632568, 0.8079999685287476, 1.2463999986648560]
    """
    steps = validation.integer(steps, "steps", 0)
    windows = windows_of(steps, "steps", record_every, "record_every")
    data = device_data(solver, state, data)
    validation.steps_fit(steps, "steps", state.step)
    state, record = as_arguments((state, as_optional_callable(record, "record", ("state", "info"))))
    args = part_as_arguments(solver), state, data, record
    return _run(*args, windows=windows, every=record_every, remat=bool(remat))


@cpu_fusion.jit()
def _run(
    solver: Solver,
    state: State,
    data: PyTree,
    record: Callable[[State, Info], PyTree] | None,
    *,
    windows: int,
    every: int,
    remat: bool = False,
    form: Form = "inlined",
) -> tuple[State, PyTree]:
    scan = partial(scan_steps, windows=windows, every=every, remat=remat, form=form)
    if record is not None:
        return scan(solver, state, data, lambda state, info, batch: record(state, info))
    after, loss = scan(solver, state, data, lambda state, info, batch: info.loss)
    last_of_window = jnp.arange(1, windows + 1, dtype=jnp.int32) * every - 1
    return after, Info(step=state.step + last_of_window, loss=loss)


def scan_steps(
    solver: Solver,
    state: State,
    data: PyTree,
    record: Callable[[State, Info, Batch], PyTree],
    windows: int,
    every: int = 1,
    remat: bool = False,
    form: Form = "inlined",
) -> tuple[State, PyTree]:
    """`run` inside a traced function; `record(state, info, batch)` also sees the step's batch."""
    ahead, step = stepping(solver, state, data, form)

    def window(ahead: Carry, _: None) -> tuple[Carry, PyTree]:
        if every > 1:
            ahead, _ = lax.scan(lambda a, _: (step(a)[0], None), ahead, length=every - 1)
        batch = ahead[1][0]
        ahead, info = step(ahead)
        return ahead, record(ahead[0], info, batch)

    if not remat:
        (state, _), trace = lax.scan(window, ahead, length=windows)
        return state, trace
    inner = next(n for n in range(math.isqrt(max(windows, 1)), 0, -1) if windows % n == 0)
    again = partial(jax.checkpoint, prevent_cse=False)  # no CSE across a scan's boundary

    def by_word(words: PyTree, _: None) -> tuple[PyTree, PyTree]:
        """A window on keys as words: keys stored for the backward pass would count as used."""
        after, recorded = window(keys_of(words, ahead), None)
        return words_of(after), recorded

    some = again(lambda words, _: lax.scan(again(by_word), words, length=inner))
    words, trace = lax.scan(some, words_of(ahead), length=windows // inner)
    state, _ = keys_of(words, ahead)
    return state, jax.tree.map(lambda x: x.reshape(windows, *x.shape[2:]), trace)
