"""The high-level API: a whole training run in one call, with validation and a history."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxsgd import contracts
from jaxsgd.checkpoints.background import one_at_a_time
from jaxsgd.checkpoints.lock import owned
from jaxsgd.checkpoints.orbax import by_first, check_tag, checked_folder
from jaxsgd.core import validation as check
from jaxsgd.core.part import check_call
from jaxsgd.core.records import State, described
from jaxsgd.core.trees import as_arguments
from jaxsgd.core.validation import SampleWeight
from jaxsgd.data.arrays import as_rows
from jaxsgd.evaluation import MetricLike
from jaxsgd.gradients.base import Gradient
from jaxsgd.losses import Loss
from jaxsgd.rules.base import Rule
from jaxsgd.rules.descent import SGD
from jaxsgd.samplers.base import Sampler
from jaxsgd.samplers.epochs import Shuffled
from jaxsgd.schedules import Rate
from jaxsgd.solver import Solver
from jaxsgd.stopping.base import Reason, Stop, as_stop
from jaxsgd.training.metrics import epoch_metrics, monitored_entry
from jaxsgd.training.progress import Bar, received
from jaxsgd.training.trainer import FitState, Trainer, not_written, params_of


class _Fields(NamedTuple):
    params: PyTree  # of the last epoch, or of the best with `restore_best`; or their averages
    state: State  # after the last step: continue with run(solver, result.state, data, steps)
    history: dict[str, np.ndarray]  # one entry per epoch
    reason: Reason
    model_state: PyTree  # that belongs to `params`, of a loss with `has_model_state`


class Result(_Fields):
    """What `fit` returns: `params`, `state`, `history`, `reason` and `model_state`."""

    @property
    def message(self) -> str:
        """Why the run ended, in one line, with the values that ended it where they are known."""
        epochs, steps = len(self.history["epoch"]), int(self.state.step)
        default = f"ended in epoch {epochs}, after {steps} steps: {self.reason}"
        return vars(self).get("_message", default)

    def __repr__(self) -> str:
        parts = [*described({"params": self.params}), f"  state at step {int(self.state.step)}"]
        for name, values in self.history.items():
            if name in ("epoch", "step") or not len(values):
                continue
            low, high = int(np.argmin(values)), int(np.argmax(values))
            parts.append(
                f"  {name}: last {values[-1]:.6g}, least {values[low]:.6g} in epoch {low + 1}, "
                f"most {values[high]:.6g} in epoch {high + 1}"
            )
        return "\n".join((f"Result: {self.message}", *parts))


def fit(
    loss_or_gradient: Gradient | Loss | Callable[..., PyTree],
    params: PyTree,
    data: PyTree,
    *,
    key: PRNGKeyArray,
    epochs: int,
    batch_size: int | None = None,
    learning_rate: Rate | None = None,
    rule: Rule | optax.GradientTransformation | None = None,
    sampler: Sampler | None = None,
    penalty: Callable[[PyTree], Float[Array, ""]] | None = None,
    model_state: PyTree = None,
    sample_weight: SampleWeight | None = None,
    validation: PyTree = None,
    validation_sample_weight: SampleWeight | None = None,
    metrics: Mapping[str, MetricLike] | None = None,
    stop: Stop | None = None,
    monitor: str | None = None,
    mode: Literal["min", "max"] | None = None,
    restore_best: bool = False,
    log: Callable[[dict[str, float]], object] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    checkpoint_tag: str | None = None,
    checkpoint_strict: bool = True,
    progress: bool = True,
) -> Result:
    """Train for a number of epochs, with one compiled program for any number of steps.

    A second call with the same loss and shapes compiles nothing, whatever the key, the rate and the
    number of epochs. The caller's params, data and key stay alive. Ctrl-C ends the run after the
    current epoch, and the result so far is returned; a second Ctrl-C stops immediately. A run whose
    loss or parameters are not finite ends with its last finite state; `state.step` is then the
    index, from 0, of the step that failed.

    With `checkpoint` a run that was killed is continued from its last checkpoint by the same call.
    It ends as if it had not been killed, bit for bit on one CPU (`seconds` aside). A run that has
    ended is returned at once, or continued where `epochs` is larger than it was.

    Args:
      loss_or_gradient: as `Solver`'s `gradient`.
      params: a pytree of float arrays to start from.
      data: a pytree of arrays that share their leading axis, `HostRows` or `MeshRows`.
      key: a typed key.
      epochs: how many in all, at least 0.
      batch_size: rows of a batch of the `Shuffled` sampler; 64, or all where there are fewer, if
        neither this nor `sampler` is given.
      learning_rate: the rate (a number or a schedule) of `SGD`; give this or `rule`.
      rule: a rule, or any Optax transformation.
      sampler: another sampler than `Shuffled`.
      penalty: as `Solver`'s.
      model_state: the model state that a loss with `has_model_state` starts from.
      sample_weight: as `Solver`'s: the training loss is a weighted mean over the rows.
      validation: held-out rows, evaluated after each epoch.
      validation_sample_weight: a weight for each of them, as in `evaluate`.
      metrics: a dict of functions of `(params, row)` to a number, evaluated after each epoch on
        `validation`, or on `data` where there is none; of `(params, row, model_state)` for a loss
        with `has_model_state`. With validation rows, one named `loss` replaces the validation loss.
      stop: when to stop before the last epoch, such as `EarlyStopping(5)`; checked once an epoch.
      monitor: the entry of the history that `stop` and `restore_best` watch. By default
        `validation_loss`, or, without validation, `loss` (the penalty is in neither).
      mode: `"min"` where a smaller value is better, as for a loss, `"max"` where a larger one is;
        then the stop sees the negated value. Needed where `monitor` names a metric.
      restore_best: return the parameters of the epoch with the best monitored value.
      log: called once an epoch with a dict of floats (`wandb.log` fits), on the first process.
      checkpoint: a folder for the newest three checkpoints, which holds nothing else (needs Orbax).
        A checkpoint of other parts, numbers, functions, key, shapes, data or initial parameters is
        refused. Functions are compared by module and qualified name, not by code; data by a few
        thousand rows at a fixed stride. A thread writes while the run goes on. At SIGTERM the fit
        saves and ends with `Reason.PREEMPTED`.
      checkpoint_every: steps between checkpoints, also within an epoch; by default one epoch.
      checkpoint_tag: a string that is saved in each checkpoint. A checkpoint with another tag is
        refused: change the tag when you change the code of a function.
      checkpoint_strict: False to continue from a checkpoint although the values of the data or of
        the initial parameters differ.
      progress: show a progress bar with the loss and the rows per second (needs tqdm).

    Returns:
      `Result(params, state, history, reason, model_state)`, whose `message` says why the run ended:
      what was not finite in which step, or the monitored value and its best epoch. With a rule that
      averages, `params`, validation and metrics use the averaged parameters.
      History: `epoch` and `step` (the number taken so far), `loss` (the mean over the epoch's rows,
      computed before each update), `seconds` (the epoch's training time, in the first epoch with
      compilation), `validation_loss`, and `validation_<metric>` (`<metric>` if on `data`).

    Raises:
      ValueError, TypeError: both or neither of `learning_rate` and `rule`, and all that `Solver`
        refuses; a checkpoint of another run.
      ImportError, FileExistsError, BlockingIOError: Orbax is not installed; the checkpoint folder
        holds other things; another run is using it.
      OSError: rows on the host could not be read. This, and any error of `log` or a metric, has the
        `Result` so far in its attribute `result`, and is raised after a checkpoint was written.

    >>> data = jnp.arange(8.0)[:, None] / 8, 3 * jnp.arange(8.0) / 8 + 1
    >>> model = jaxsgd.models.Linear(1)
    >>> loss = lambda params, row: optax.squared_error(model(params, row[0]), row[1])
    >>> result = jaxsgd.fit(loss, model.init(jax.random.key(0)), data, key=jax.random.key(1),
    ...                     batch_size=4, epochs=500, learning_rate=0.3, progress=False)
    >>> jax.tree.map(lambda x: x.round(2).tolist(), result.params)
    {'bias': 1.0, 'weight': [3.0]}
    """
    _needs(
        "checkpoint",
        checkpoint,
        checkpoint_every=checkpoint_every,
        checkpoint_tag=checkpoint_tag,
        checkpoint_strict=None if checkpoint_strict is True else checkpoint_strict,
    )
    _needs("validation", validation, validation_sample_weight=validation_sample_weight)
    check_tag(checkpoint_tag, "checkpoint_tag")
    epochs = check.integer(epochs, "epochs", 0)
    restore_best = check.flag(restore_best, "restore_best")
    progress = check.flag(progress, "progress")
    solver = Solver(
        loss_or_gradient,
        _sampler(sampler, batch_size, data),
        _rule(rule, learning_rate),
        penalty,
        sample_weight,
    )
    check.concrete((solver, params, data, key), "fit")
    if log is not None:
        check_call(log, "log", ("record",))
    state = solver.init(params, data, key=key, model_state=model_state)
    solver = as_arguments(solver)
    data = _checked_data(solver, state, data)
    evaluated = epoch_metrics(solver, state, data, metrics, validation, validation_sample_weight)
    watched, direction = monitored_entry(monitor, mode, stop, restore_best, evaluated.names)
    steps = solver.sampler_for(data).steps_per_epoch
    check.steps_fit(epochs * steps, f"epochs of {steps} steps each", 0)
    every = steps if checkpoint_every is None else checkpoint_every
    folder = None if checkpoint is None else checked_folder(checkpoint)
    trainer = Trainer(
        solver=solver,
        data=data,
        steps=steps,
        metrics=evaluated,
        stop=None if stop is None else as_arguments(as_stop(stop)),
        monitor=watched,
        mode=direction,
        restore_best=restore_best,
        log=log,
        checkpoint=folder,
        checkpoint_every=check.integer(every, "checkpoint_every", 1),
        checkpoint_tag=checkpoint_tag,
        checkpoint_strict=check.flag(checkpoint_strict, "checkpoint_strict"),
        key=check.key(key),
        params=state.params,
    )
    if folder is None:
        return _train(trainer, trainer.begin(state), epochs, progress)
    with ExitStack() as stack:
        # of several processes the first one holds the folder
        by_first(partial(_held, stack, folder), folder)
        in_background = stack.enter_context(one_at_a_time(not_written))
        trainer = replace(trainer, in_background=in_background)
        return _train(trainer, trainer.begin(state), epochs, progress)


def _held(stack: ExitStack, folder: Path) -> np.ndarray:
    """Hold the folder until the fit ends; there is nothing to tell other processes."""
    stack.enter_context(owned(folder))
    return np.zeros(0, np.int32)


def _rule(
    rule: Rule | optax.GradientTransformation | None, learning_rate: Rate | None
) -> Rule | optax.GradientTransformation:
    """The rule, or `SGD` with the learning rate: exactly one of them is given."""
    if rule is None and learning_rate is not None:
        return SGD(learning_rate)
    if rule is not None and learning_rate is None:
        return rule
    if rule is not None:
        raise ValueError("fit was given both learning_rate and rule, expected one of them")
    raise ValueError(
        "fit was given neither learning_rate nor rule; give learning_rate=..., or rule=...; "
        "without an idea, try rule=jaxsgd.LineSearch() or rule=jaxsgd.Adam(1e-3)"
    )


def _sampler(sampler: Sampler | None, batch_size: int | None, data: PyTree) -> Sampler:
    """The sampler, or `Shuffled` with the batch size."""
    if sampler is None:
        return Shuffled(min(64, as_rows(data).size) if batch_size is None else batch_size)
    if batch_size is not None:
        raise ValueError(
            f"fit was given batch_size={batch_size} and a sampler, expected one of them"
        )
    return sampler


def _needs(other: str, needed: object, **options: object) -> None:
    """Refuse options that are given without the argument that they belong to."""
    for name, value in options.items():
        if value is not None and needed is None:
            raise ValueError(f"fit was given {name} without {other}, expected {other}= as well")


def _train(trainer: Trainer, start: FitState, epochs: int, progress: bool) -> Result:
    """Run the epochs; an error is raised with the result so far, after a checkpoint."""
    current = start
    size = as_rows(trainer.data).size
    bar = Bar(progress, epochs, size, done=len(start.history["epoch"]))
    with bar, received(trainer.checkpoint is not None) as signals:
        try:
            for current in trainer.fit_states(start, epochs, signals):
                bar.show(current.history)
        except Exception as error:
            if any(x.is_deleted() for x in jax.tree.leaves(current.state)):
                error.add_note("fit lost its state in the compiled call that failed")
            elif current.step:  # otherwise there is nothing to lose
                if current is not start and jax.process_count() == 1:  # others are elsewhere
                    trainer.keep(current)
                failed = current._replace(reason=int(Reason.FAILED))
                error.result = _result(trainer, failed)  # pyright: ignore[reportAttributeAccessIssue]
                error.add_note(trainer.position(current))
            raise
        result = _result(trainer, current)
        if result.reason != Reason.EPOCHS:
            bar.say(result.message)
    return result


def _result(trainer: Trainer, current: FitState) -> Result:
    state = current.state
    params, model_state = params_of(state), state.model_state
    if current.best is not None and current.best_value < math.inf:
        params, model_state = current.best
    result = Result(params, state, current.history, Reason(current.reason), model_state)
    vars(result)["_message"] = trainer.message(current)  # no field: text is no leaf of a pytree
    return result


def _checked_data(solver: Solver, state: State, data: PyTree) -> PyTree:
    """The training rows as arguments; their values, and the rows of one batch, are checked."""
    as_rows(data).check_values()
    as_rows(data).check_precision()
    data = as_rows(data).as_arguments()
    sampler = solver.sampler_for(data)
    if sampler.steps_per_epoch == 0:
        raise ValueError(f"{sampler} has no step in an epoch of {as_rows(data).size} rows")
    if contracts.is_custom(sampler):
        batch, _ = sampler.update(state.sampler)
        contracts.check_drawn(sampler, batch, as_rows(data).size)
    return data
