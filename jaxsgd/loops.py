"""Whole runs as one compiled program, and the exact mean over all rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsgd import checks
from jaxsgd.gradients import take
from jaxsgd.losses import BatchLoss, RowLoss, RowsLoss
from jaxsgd.pairs import Info, PyTree, State, accumulator_of, as_arguments, as_callable, part
from jaxsgd.samplers import Sequential
from jaxsgd.solver import Solver


def run(
    solver: Solver,
    state: State,
    data: PyTree,
    steps: int,
    record: Callable[[State, Info], PyTree] | None = None,
    every: int = 1,
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
    steps, every = checks.integer(steps, "steps", 0), checks.integer(every, "every", 1)
    if steps % every:
        raise ValueError(f"steps is {steps}, expected a multiple of every, which is {every}")
    if not isinstance(state, State):
        raise TypeError(
            f"state is of type {type(state).__name__}, expected the State that "
            "solver.init(params, data, key=key) or an earlier run returned"
        )
    checks.rows(data)
    record = record if record is None else as_callable(record, "record")
    return _run(*as_arguments((solver, state, data, record)), windows=steps // every, every=every)


@partial(jax.jit, static_argnames=("windows", "every"))
def _run(
    solver: Solver, state: State, data: PyTree, record: Any, *, windows: int, every: int
) -> tuple[State, PyTree]:
    if record is not None:
        keep = lambda state, info, batch: record(state, info)  # noqa: E731
        return scan_steps(solver, state, data, keep, windows, every)
    after, loss = scan_steps(solver, state, data, lambda _, info, batch: info.loss, windows, every)
    last_of_window = jnp.arange(1, windows + 1, dtype=jnp.int32) * every - 1
    return after, Info(step=state.step + last_of_window, loss=loss)


def scan_steps(
    solver: Solver, state: State, data: PyTree, record: Any, windows: int, every: int = 1
) -> tuple[State, PyTree]:
    """`run` inside a traced function; `record(state, info, batch)` also sees the step's batch.

    Each step hands on the batch of the next: one that waits in the carry is computed once, where
    the compiler would compute it again inside each of the operations that gather by it.
    """
    sampler = solver.sampler_for(data)
    _check_rule(solver, state)

    def step(carry: Any) -> tuple[Any, Info]:
        state, (batch, after) = carry
        state, info = solver.step_on(state._replace(sampler=after), data, batch)
        return (state, sampler.update(after)), info

    def window(carry: Any, _: None) -> tuple[Any, PyTree]:
        if every > 1:
            carry, _ = lax.scan(lambda c, _: (step(c)[0], None), carry, length=every - 1)
        batch = carry[1][0]
        carry, info = step(carry)
        return carry, record(carry[0], info, batch)

    (state, _), trace = lax.scan(window, (state, sampler.update(state.sampler)), length=windows)
    return state, trace


def _check_rule(solver: Solver, state: State) -> None:
    expected = jax.eval_shape(solver.rule.init, state.params)
    structures: list[Any] = [jax.tree.structure(expected), jax.tree.structure(state.rule)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"the state was made for another rule: its rule state is {type(state.rule).__name__}, "
            f"but {solver.rule!r} expects {type(expected).__name__}; make one with solver.init, or "
            "go on with state._replace(rule=solver.rule.init(state.params))"
        )


def evaluate(
    metrics: Any, params: PyTree, data: PyTree, *, batch_size: int = 1024, carry: PyTree = None
) -> Any:
    """The exact mean over all rows of one function, or of each of a dict of functions.

    `1/n sum_i metric(params, row[i])`, in chunks of `batch_size` rows, the short last one weighted
    right. Compiled once for each set of functions and shapes.

    Args:
      metrics: a function of `(params, row)` to a number or array (bools and ints are averaged as
        floats), a `RowLoss` or `RowsLoss`, or a dict of those.
      params: the parameters.
      data: the rows.
      batch_size: rows in a chunk; it bounds the memory.
      carry: a model state, given to each function as a third argument where it is not None.

    Returns:
      The mean (float32, float64 for float64 parameters), or a dict of means.

    Raises:
      TypeError: a `BatchLoss`, which is no mean over rows, or a `keyed` loss.

    >>> y = jnp.array([1.0, 3.0, 8.0])
    >>> jaxsgd.evaluate({"above": lambda theta, y: y > theta}, jnp.array(2.0), y, batch_size=2)
    {'above': Array(0.6666667, dtype=float32)}
    """
    batch_size = checks.integer(batch_size, "evaluate's batch_size", 1)
    n = checks.rows(data)
    named = metrics if isinstance(metrics, dict) else {"": metrics}
    forms = {name: _metric(metric, name) for name, metric in named.items()}
    args = as_arguments((forms, params, data, carry))
    means = _evaluate(*args, batch_size=min(batch_size, n))
    return means if isinstance(metrics, dict) else means[""]


@partial(jax.jit, static_argnames="batch_size")
def _evaluate(forms: Any, params: PyTree, data: PyTree, carry: PyTree, *, batch_size: int) -> Any:
    n = checks.rows(data)
    sampler = Sequential(batch_size, size=n)
    dtype = accumulator_of(params)

    def chunk(step: jax.Array) -> Any:
        index, weight = sampler.batch(None, step)  # type: ignore[arg-type]
        rows = take(data, index)

        def total(values: jax.Array) -> jax.Array:
            valid = (weight > 0).reshape(-1, *(1,) * (values.ndim - 1))
            return jnp.sum(jnp.where(valid, values.astype(dtype), 0), axis=0)

        return jax.tree.map(total, {k: f(params, rows, carry) for k, f in forms.items()})

    def add(step: jax.Array, sums: Any) -> Any:
        """Kahan's sum (1965): what rounding loses of a chunk is carried to the next."""
        total, lost = sums
        term = jax.tree.map(jnp.subtract, chunk(step), lost)
        after = jax.tree.map(jnp.add, total, term)
        lost = jax.tree.map(lambda new, old, x: (new - old) - x, after, total, term)
        # an infinite sum has no remainder
        return after, jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), lost)

    shapes = jax.eval_shape(chunk, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = lax.fori_loop(0, sampler.steps_per_epoch, add, (zeros, zeros))
    return jax.tree.map(lambda x: x / n, sums)


@part
class Metric:
    """A metric's values of each row of a chunk."""

    form: Any

    def __call__(self, params: PyTree, rows: PyTree, carry: PyTree) -> PyTree:
        if isinstance(self.form, RowLoss | RowsLoss):
            return self.form.each(params, rows, None, carry)[0]
        extra = () if carry is None else (carry,)
        return jax.vmap(lambda row: self.form(params, row, *extra))(rows)


def _metric(metric: Any, name: str) -> Metric:
    where = f"metric {name!r}" if name else "the metric"
    if isinstance(metric, BatchLoss) or getattr(metric, "keyed", False):
        kind = "a BatchLoss" if isinstance(metric, BatchLoss) else "keyed"
        raise TypeError(
            f"{where} is {kind}, expected a function of (params, row): a mean over rows"
        )
    if isinstance(metric, RowLoss | RowsLoss):
        return Metric(metric)
    return Metric(as_callable(metric, where))
