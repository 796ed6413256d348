"""The front door: a whole training run in one call, with validation and a history."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import checks
from jaxsgd.checkpoints import own_folder
from jaxsgd.epochs import Course, Work, params_of
from jaxsgd.evaluation import evaluate
from jaxsgd.losses import RowLoss, RowsLoss
from jaxsgd.pairs import PyTree, State, as_arguments
from jaxsgd.progress import Bar, interrupts
from jaxsgd.rules import SGD
from jaxsgd.samplers import Shuffled
from jaxsgd.solver import Solver
from jaxsgd.stopping import Reason, as_stop
from jaxsgd.streaming import HostRows


class Result(NamedTuple):
    """What a fit found."""

    params: PyTree  # the best where a stop watches validation, else the last; or their averages
    last: PyTree  # after the last step
    state: State  # goes on: run(solver, result.state, data, steps)
    history: dict[str, np.ndarray]  # one entry an epoch
    reason: Reason
    carry: PyTree  # the model state of a `stateful` loss that belongs to `params`

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
    row_weight: jax.Array | None = None,
    validation: PyTree = None,
    validation_weight: jax.Array | None = None,
    metrics: Any = None,
    stop: Any = None,
    monitor: str | None = None,
    log: Callable[[dict[str, float]], Any] | None = None,
    checkpoint: Any = None,
    every: int | None = None,
    progress: bool = True,
) -> Result:
    """Train for a number of epochs, with one compiled program for any number of steps.

    The second call with the same loss and shapes compiles nothing, whatever the key, the rate and
    the number of epochs. The caller's params, data and key stay alive. Ctrl-C ends it after the
    epoch at hand (a second one at once), and the result so far is returned. A run that is not
    finite any more ends too, with the last finite state, whose `step` is the one that was not.

    With `checkpoint` a run that was killed goes on where its last checkpoint was when it is called
    again, and ends bit for bit (on one CPU; `seconds` aside) as if it had never been; a run that
    has ended is handed out at once, or goes on where `epochs` is now larger.

    Args:
      loss_or_gradient: as `Solver`'s.
      params: a pytree of float arrays to start from.
      data: a pytree of arrays that share their leading axis, or `HostRows`.
      key: a typed key.
      epochs: how many in all, at least 0.
      batch_size: rows in a batch of the `Shuffled` sampler; unused where a sampler is given.
      learning_rate: the rate (a number or schedule) of plain `SGD`; or give
      rule: a rule, or any Optax transformation.
      sampler: another sampler.
      penalty: as `Solver`'s.
      carry: the model state that a `stateful` loss starts from.
      row_weight: as `Solver`'s: the training loss is a weighted mean over the rows.
      validation: held-out rows, evaluated after each epoch.
      validation_weight: a weight for each of them, as in `evaluate`.
      metrics: a dict of functions of `(params, row)` to a number, evaluated after each epoch on
        `validation`, or on `data` where there is none; of `(params, row, carry)` for a `stateful`
        loss. One named `loss` takes the place of the validation loss.
      stop: when to stop before the last epoch, such as `EarlyStopping(5)`; it looks once an epoch.
      monitor: what it watches, an entry of the history, the smaller the better; with a minus before
        the name, the larger: `"-validation_accuracy"`. By default `validation_loss`, or `loss` (the
        penalty is in neither) where there is none.
      log: called once an epoch with a dict of floats (`wandb.log` fits).
      checkpoint: a folder of its own for the newest three checkpoints (needs Orbax). What it holds
        must be of the same parts, numbers, functions, key and shapes; whether the data, the start
        and the functions that a loss calls are the same is not looked at.
      every: steps between checkpoints, also within an epoch; one epoch if not given.
      progress: a progress bar with the loss and rows per second (needs tqdm).

    Returns:
      `Result(params, last, state, history, reason, carry)`, and `message`, which says why it ended.
      `params` are those of the best epoch where a stop watches an entry of the validation, and
      those of the last epoch otherwise; the averages, of a rule that keeps them
      (validation and metrics are theirs too). History: `epoch` and `step` (counted from 1: so many
      are done), `loss` (the mean over the epoch's rows, each before the update it was part of),
      `seconds` of the epoch's training (the first one's include compilation), and
      `validation_loss`, `validation_<metric>` (or `<metric>` on `data`).

    Raises:
      ValueError, TypeError: both or none of learning_rate and rule, and all that `Solver` refuses;
        a checkpoint of another run.
      ImportError, FileExistsError: no Orbax, or a checkpoint folder that holds other things.
      OSError: rows on the host could not be read. This, and any error of `log` or a metric, has the
        `Result` so far in its attribute `result`, and is raised after a checkpoint was written.

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
    for name, value, needed in [
        ("every", every, checkpoint),
        ("validation_weight", validation_weight, validation),
    ]:
        if value is not None and needed is None:
            other = name.replace("every", "checkpoint").removesuffix("_weight")
            raise ValueError(f"fit was given {name} without {other}, expected {other}= as well")
    sampler = Shuffled(batch_size) if sampler is None else sampler
    epochs = checks.integer(epochs, "epochs", 0)
    solver = Solver(loss_or_gradient, sampler, rule, penalty, row_weight)
    checks.concrete((solver, params, data, key), "fit")
    metrics = _metrics(solver, metrics, validation)
    state = solver.init(params, data, key=key, carry=carry)
    if validation is not None:
        checks.alike(validation, data, "validation")
    solver = as_arguments(solver)
    data, validation = (
        x if isinstance(x, HostRows) else as_arguments(x) for x in (data, validation)
    )
    steps = solver.sampler_for(data).steps_per_epoch
    if steps == 0:
        raise ValueError(f"{sampler} has no step in an epoch of {checks.rows(data)} rows")
    rows, weight = data, solver.row_weight
    if validation is not None:
        rows, weight = validation, validation_weight
        if weight is not None:
            checks.weights(weight, "validation_weight")
            checks.one_a_row(weight, checks.rows(rows), "validation_weight")
    _check_scalars(metrics, state, rows)
    prefix = "" if validation is None else "validation_"
    monitor = _monitor(stop, monitor, [*(f"{prefix}{name}" for name in metrics), "loss"])
    work = Work(
        solver=solver,
        data=data,
        steps=steps,
        metrics=metrics,
        prefix=prefix,
        rows=rows,
        weight=None if weight is None else as_arguments(weight),
        stop=None if stop is None else as_arguments(as_stop(stop)),
        monitor=monitor,
        log=log,
        checkpoint=None if checkpoint is None else own_folder(checkpoint),
        every=steps if every is None else checks.integer(every, "every", 1),
        key=checks.key(key),
    )
    start = course = work.begin(state)
    bar = Bar(progress, epochs, checks.rows(data), done=len(start.history["epoch"]))
    with bar, interrupts() as interrupted:
        try:
            for course in work.courses(start, epochs, interrupted):
                bar.show(course.history)
        except Exception as error:
            if any(x.is_deleted() for x in jax.tree.leaves(course.state)):
                error.add_note("fit lost its state in the compiled call that failed")
            elif course.step:  # else there is nothing to lose
                if course is not start:
                    work.keep(course)
                failed = course._replace(reason=int(Reason.FAILED))
                error.result = _result(failed)  # type: ignore[attr-defined]
                error.add_note(work.standing(course))
            raise
        result = _result(course)
        if result.reason != Reason.EPOCHS:
            bar.say(result.message)
    return result


def _result(course: Course) -> Result:
    state, found_best = course.state, course.best is not None and course.best_value < math.inf
    params, carry = course.best if found_best else (params_of(state), state.carry)
    return Result(params, state.params, state, course.history, Reason(course.reason), carry)


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
    gradient = solver.gradient
    while hasattr(gradient, "gradient"):  # one around another
        gradient = gradient.gradient
    loss = getattr(gradient, "loss", None)
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
    evaluated = lambda p, r, c: evaluate(metrics, p, r, carry=c)  # noqa: E731
    means = jax.eval_shape(evaluated, state.params, checks.shapes(rows), carry)
    for name, mean in means.items():
        if getattr(mean, "shape", None) != ():
            raise ValueError(
                f"metric {name!r} is of shape {jax.tree.map(jnp.shape, mean)}, expected a number"
            )
