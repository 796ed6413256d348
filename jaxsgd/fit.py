"""The front door: a host loop over one compiled epoch, with progress, validation and a history."""

import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import checks
from jaxsgd.averaging import averaged, find_average
from jaxsgd.evaluation import evaluate
from jaxsgd.gradients import Minibatch
from jaxsgd.loops import guarded, scan_steps, stepping
from jaxsgd.losses import RowLoss, RowsLoss
from jaxsgd.pairs import Batch, Info, PyTree, State, as_arguments, is_finite, select
from jaxsgd.rules import SGD
from jaxsgd.samplers import Shuffled
from jaxsgd.solver import Solver
from jaxsgd.stopping import Check, Reason, as_reason, as_stop


class Result(NamedTuple):
    """What a fit found."""

    params: PyTree  # the best where a stop watches validation, else the last; or their averages
    last: PyTree  # after the last step
    state: State  # goes on: run(solver, result.state, data, steps)
    history: dict[str, np.ndarray]  # one entry an epoch
    reason: Reason

    @property
    def message(self) -> str:
        """Why it ended, in one line."""
        epochs = len(self.history["epoch"])
        return f"ended in epoch {epochs}, after {int(self.state.step)} steps: {self.reason}"


def fit(
    loss_or_gradient: Any,
    params: PyTree,
    data: PyTree,
    *,
    key: jax.Array,
    epochs: int,
    batch_size: int = 64,
    learning_rate: Any = None,
    rule: Any = None,
    sampler: Any = None,
    penalty: Any = None,
    carry: PyTree = None,
    validation: PyTree = None,
    metrics: Any = None,
    stop: Any = None,
    monitor: str | None = None,
    log: Callable[[dict[str, float]], Any] | None = None,
    progress: bool = True,
) -> Result:
    """Train for a number of epochs, each one call of one compiled program.

    The second call with the same loss and shapes compiles nothing, whatever the key, the rate and
    the number of epochs. The caller's params, data and key stay alive. Ctrl-C ends it after the
    epoch at hand (a second one at once), and the result so far is returned. A run that is not
    finite any more ends too, with the last finite state, whose `step` is the one that was not.

    Args:
      loss_or_gradient: as `Solver`'s.
      params: a pytree of float arrays to start from.
      data: a pytree of arrays that share their leading axis.
      key: a typed key.
      epochs: how many, at least 0.
      batch_size: rows in a batch of the `Shuffled` sampler; unused where a sampler is given.
      learning_rate: the rate (a number or schedule) of plain `SGD`; or give
      rule: a rule, or any Optax transformation.
      sampler: another sampler.
      penalty: as `Solver`'s.
      carry: the model state that a `stateful` loss starts from.
      validation: held-out rows, evaluated after each epoch.
      metrics: a dict of functions of `(params, row)` to a number, evaluated after each epoch on
        `validation`, or on `data` where there is none; of `(params, row, carry)` for a `stateful`
        loss. One named `loss` takes the place of the validation loss.
      stop: when to stop before the last epoch, such as `EarlyStopping(5)`; it looks once an epoch.
      monitor: what it watches, an entry of the history, the smaller the better; with a minus before
        the name, the larger: `"-validation_accuracy"`. By default `validation_loss`, or `loss` (the
        penalty is in neither) where there is none.
      log: called once an epoch with a dict of floats (`wandb.log` fits).
      progress: a progress bar with the loss and rows per second (needs tqdm).

    Returns:
      `Result(params, last, state, history, reason)`, and `message`, a line that says why it ended.
      `params` are those of the best epoch where a stop watches an entry of the validation, and
      those of the last epoch otherwise; the averages, of a rule that keeps them
      (validation and metrics are theirs too). History: `epoch` and `step` (counted from 1: so many
      are done), `loss` (the mean over the epoch's rows, each before the update it was part of),
      `seconds` of the epoch's training (the first one's include compilation), and
      `validation_loss`, `validation_<metric>` (or `<metric>` on `data`).

    Raises:
      ValueError, TypeError: both or none of learning_rate and rule, and all that `Solver` refuses.

    >>> data = jnp.arange(8.0)[:, None] / 8, 3 * jnp.arange(8.0) / 8 + 1
    >>> model = jaxsgd.Linear(1)
    >>> loss = lambda params, row: optax.squared_error(model(params, row[0]), row[1])
    >>> result = jaxsgd.fit(loss, model.init(jax.random.key(0)), data, key=jax.random.key(1),
    ...                     batch_size=4, epochs=500, learning_rate=0.3, progress=False)
    >>> jax.tree.map(lambda x: x.round(2).tolist(), result.params)
    {'bias': 1.0, 'weight': [3.0]}
    """
    if (learning_rate is None) == (rule is None):
        given = "neither" if rule is None else "both"
        raise ValueError(f"fit was given {given} of learning_rate and rule, expected one of them")
    rule = SGD(learning_rate) if rule is None else rule
    if sampler is not None and batch_size != 64:
        raise ValueError(
            f"fit was given batch_size={batch_size} and a sampler, expected one of them"
        )
    sampler = Shuffled(batch_size) if sampler is None else sampler
    epochs = checks.integer(epochs, "epochs", 0)
    solver = Solver(loss_or_gradient, sampler, rule, penalty)
    metrics = _metrics(solver, metrics, validation)
    prefix = "" if validation is None else "validation_"
    state = solver.init(params, data, key=key, carry=carry)
    if validation is not None:
        checks.alike(validation, data, "validation")
    solver, data, held_out = as_arguments((solver, data, validation))
    steps = solver.sampler_for(data).steps_per_epoch
    if steps == 0:
        raise ValueError(f"{sampler} has no step in an epoch of {checks.rows(data)} rows")
    rows = held_out if validation is not None else data
    _check_scalars(metrics, state, rows)

    monitor = _monitor(stop, monitor, [*(f"{prefix}{name}" for name in metrics), "loss"])
    watch = None if stop is None else as_arguments(as_stop(stop))
    memory = None if watch is None else watch.init()
    sign, monitor = (-1, monitor[1:]) if monitor.startswith("-") else (1, monitor)
    is_held_out = validation is not None and monitor.startswith("validation_")
    best, best_value = None, np.inf

    records: list[dict[str, float]] = []
    reason = Reason.EPOCHS
    with _Bar(progress, epochs, checks.rows(data)) as bar, _interrupts() as interrupted:
        for epoch in range(1, epochs + 1):
            start = time.perf_counter()
            state, told = _epoch(solver, state, data, steps=steps, norms=watch is not None)
            told = jax.device_get(told)
            step = int(told.step)
            if not told.finite:  # found again, step by step, so that no other epoch pays for it
                state = _until_not_finite(solver, state, data, steps=steps)
                step = int(state.step)
            seconds = time.perf_counter() - start
            record = {"epoch": epoch, "step": step, "loss": float(told.loss), "seconds": seconds}
            if metrics:
                params = _params(state)
                means = jax.device_get(evaluate(metrics, params, rows, carry=state.carry))
                record |= {f"{prefix}{name}": float(mean) for name, mean in means.items()}
            records.append(record)
            bar.update(record)
            if log is not None:
                log({name: float(value) for name, value in record.items()})
            if not told.finite:
                reason = Reason.DIVERGED
                break
            if watch is not None:
                value = sign * record[monitor]
                if is_held_out and value < best_value:
                    best, best_value = jax.tree.map(jnp.copy, _params(state)), value
                check = Check(*map(np.asarray, (record["step"], value, *told.norms)))
                code, memory = _look(watch, *as_arguments((check, memory)))
                reason = Reason(int(code)) or reason
            if reason != Reason.EPOCHS:
                break
            if interrupted.is_set():
                reason = Reason.INTERRUPTED
                break
        names = ("epoch", "step", "loss", "seconds", *(f"{prefix}{name}" for name in metrics))
        history = {name: np.array([record[name] for record in records]) for name in names}
        params = _params(state) if best is None else best
        result = Result(params, state.params, state, history, reason)
        if reason != Reason.EPOCHS:
            bar.say(result.message)
    return result


def _params(state: State) -> PyTree:
    """The parameters to use: the averages where the rule keeps them."""
    return state.params if find_average(state.rule) is None else averaged(state)


def _monitor(stop: Any, monitor: str | None, names: list[str]) -> str:
    """The entry of the history that the stop watches: the first, if none was named."""
    if monitor is None:
        loss = [name for name in names if name in ("validation_loss", "loss")]
        return loss[0]
    if stop is None:
        raise ValueError(f"monitor={monitor!r} was given without a stop, expected stop= as well")
    if not isinstance(monitor, str):
        kind = type(monitor).__name__
        raise TypeError(f"monitor is of type {kind}, expected a name: one of {', '.join(names)}")
    if monitor.removeprefix("-") not in names:
        raise ValueError(f"monitor is {monitor!r}, expected one of {', '.join(names)}")
    return monitor


@jax.jit
def _look(stop: Any, check: Check, memory: PyTree) -> tuple[jax.Array, PyTree]:
    told, memory = stop.update(check, memory)
    return as_reason(told), memory


class _Told(NamedTuple):
    """What an epoch tells."""

    step: Any  # int32[]: steps taken
    loss: Any  # float[]: the mean over its rows
    finite: Any  # bool[]
    norms: Any  # of the last step's gradient and update, where a stop looks


@partial(jax.jit, static_argnames=("steps", "norms"), donate_argnames="state")
def _epoch(
    solver: Solver, state: State, data: PyTree, *, steps: int, norms: bool = False
) -> tuple[State, _Told]:
    """One epoch; if it was not finite, the state stands still."""

    def kept(_: State, info: Info, batch: Batch) -> Any:
        told = (info.grad_norm, info.update_norm) if norms else ()
        return info.loss, jnp.sum(batch.weight > 0), told

    new, (losses, rows, told) = scan_steps(solver, state, data, kept, steps)
    mean = jnp.sum(losses * rows) / jnp.sum(rows)  # the short last batch counts its own rows
    finite = is_finite((losses, new.params))
    return select(finite, new, state), _Told(new.step, mean, finite, [x[-1] for x in told])


@partial(jax.jit, static_argnames="steps", donate_argnames="state")
def _until_not_finite(solver: Solver, state: State, data: PyTree, *, steps: int) -> State:
    """The epoch once more, up to the step that is not finite."""
    ahead, step = stepping(solver, state, data)
    look = lambda carry, _: (guarded(step, *carry)[:2], None)  # noqa: E731
    ((state, _), _), _ = jax.lax.scan(look, (ahead, jnp.ones((), bool)), length=steps)
    return state


def _metrics(solver: Solver, metrics: Any, validation: PyTree) -> dict[str, Any]:
    """What is evaluated after each epoch."""
    if metrics is not None and not isinstance(metrics, dict):
        raise TypeError(f"metrics is {metrics!r}, expected a dict of functions of (params, row)")
    named = dict(metrics or {})
    if validation is None:
        taken = {"epoch", "step", "loss", "seconds"} & set(named)
        if taken:
            raise ValueError(f"metrics names {taken.pop()!r}, which the history keeps for itself")
        return named
    loss = solver.gradient.loss if isinstance(solver.gradient, Minibatch) else None
    if isinstance(loss, RowLoss | RowsLoss) and not loss.keyed:
        return {"loss": loss} | named
    if not named:
        raise ValueError(
            "validation was given, but this loss (keyed, or of the whole batch) is no function of "
            "(params, row) to average; give metrics={'loss': ...}"
        )
    return named


def _check_scalars(metrics: dict[str, Any], state: State, rows: PyTree) -> None:
    """Refuse metrics that fail or are no numbers before anything is trained."""
    carry = state.carry
    means = jax.eval_shape(
        lambda p, r, c: evaluate(metrics, p, r, carry=c), state.params, rows, carry
    )
    for name, mean in means.items():
        if getattr(mean, "shape", None) != ():
            raise ValueError(
                f"metric {name!r} is of shape {jax.tree.map(jnp.shape, mean)}, expected a number"
            )


class _Bar:
    """tqdm's bar over epochs, or nothing."""

    def __init__(self, show: bool, epochs: int, rows: int):
        self.bar, self.rows = None, rows
        if show:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                told = (
                    "the progress bar needs tqdm: pip install 'jaxsgd[progress]', or progress=False"
                )
                warnings.warn(told, stacklevel=3)
            else:
                self.bar = tqdm(total=epochs, unit="epoch")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, line: str) -> None:
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)

    def update(self, record: dict[str, float]) -> None:
        if self.bar is not None:
            shown = {k: f"{v:.4g}" for k, v in record.items() if "loss" in k}
            speed = f"{self.rows / record['seconds']:.3g}"
            self.bar.set_postfix(shown | {"rows/s": speed}, refresh=False)
            self.bar.update()


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no epoch's donated state is lost half way."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread alone
        return

    def handler(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
