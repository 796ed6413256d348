"""The host loop behind `fit`, epoch after epoch, and the state that it continues from."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from jaxsgd.checkpoints.background import Call
from jaxsgd.checkpoints.fingerprint import Fingerprint, fingerprint
from jaxsgd.checkpoints.orbax import checked_folder, checkpoints, restored, snapshot, write
from jaxsgd.core import programs
from jaxsgd.core.part import Function
from jaxsgd.core.records import Batch, Info, State
from jaxsgd.core.trees import as_arguments, strong
from jaxsgd.data.arrays import as_rows
from jaxsgd.evaluation import means_over
from jaxsgd.loops.chunks import ChunkResult, advances
from jaxsgd.rules.averaging import averaged, find_average
from jaxsgd.solver import Solver
from jaxsgd.stopping.base import Check, Reason, Stop, check_stop
from jaxsgd.training.divergence import cause_of
from jaxsgd.training.metrics import EpochMetrics
from jaxsgd.training.progress import Signals

LOGGED = ".logged"  # a file in the folder of checkpoints: the last epoch that was logged
# parts of a fingerprint that `checkpoint_strict=False` leaves out
VALUES = "values of the data", "values of the initial params"


class FitState(NamedTuple):
    """The state of a fit. A fit continued from any of its states gives the same bits."""

    state: State
    step: int  # of the state, on the host
    memory: PyTree  # of the stop
    best: PyTree  # (params, model_state) of the best epoch with `restore_best`, otherwise None
    best_value: float
    norms: tuple[float, float]  # of the last step's gradient and update, where a stop looks
    loss: float  # of the current epoch: the sum over its rows so far,
    rows: int  # their number,
    seconds: float  # and the time they took
    reason: int
    history: dict[str, np.ndarray]

    def is_at_end_of_epoch(self, steps: int) -> bool:
        """Whether an epoch has ended, by its last step or by divergence, but has no record yet."""
        ended = self.reason == Reason.DIVERGED or self.step % steps == 0
        return ended and self.rows > 0


@dataclass(frozen=True)
class Trainer:
    """The parts and options of a fit, and its loop."""

    solver: Solver
    data: PyTree
    steps: int  # of an epoch
    metrics: EpochMetrics
    stop: Stop | None
    monitor: str
    mode: str
    restore_best: bool
    log: Callable[[dict[str, float]], object] | None
    checkpoint: Path | None
    checkpoint_every: int  # steps between checkpoints
    checkpoint_tag: str | None
    checkpoint_strict: bool
    key: Key[Array, ""]
    params: PyTree  # the initial ones
    in_background: Call | None = None

    def begin(self, state: State) -> FitState:
        """The fit before the first epoch, or the one that the checkpoint holds."""
        names = ("epoch", "step", "loss", "seconds", *self.metrics.names)
        fit = FitState(
            state=state,
            step=0,
            memory=None if self.stop is None else as_arguments(self.stop.init()),
            best=self.copied(state) if self.restore_best else None,
            best_value=math.inf,
            norms=(math.inf, math.inf),
            loss=0.0,
            rows=0,
            seconds=0.0,
            reason=int(Reason.EPOCHS),
            history={n: np.zeros(0, int if n in ("epoch", "step") else float) for n in names},
        )
        if self.checkpoint is None:
            return fit
        of = self.fingerprint  # an error in it is raised now, not a warning at a checkpoint
        if not checkpoints(self.checkpoint):
            if jax.process_index() == 0:
                (self.checkpoint / LOGGED).unlink(missing_ok=True)
            return fit
        way_out = (
            " To continue with other values of the data or the initial parameters all the same, "
            "pass checkpoint_strict=False."
        )
        fit = restored(
            self.checkpoint,
            fit,
            of,
            self.checkpoint_tag,
            optional=VALUES,
            strict=self.checkpoint_strict,
            way_out=way_out,
        )
        if fit.reason in (Reason.INTERRUPTED, Reason.PREEMPTED):
            fit = fit._replace(reason=int(Reason.EPOCHS))
        return fit

    def fit_states(self, fit: FitState, epochs: int, signals: Signals) -> Iterator[FitState]:
        """The fit after each call of the compiled program, and after each epoch's record."""
        kept = at = fit.step
        if fit.is_at_end_of_epoch(self.steps):
            fit, kept = self.end_epoch(fit), -1
            yield fit
        ahead = fit.reason == Reason.EPOCHS
        cuts = (
            _cuts(at, epochs * self.steps, self.steps, self.checkpoint_every) if ahead else iter(())
        )
        record = Function(_record_loss if self.stop is None else _record_norms)
        pieces = advances(
            self.solver,
            fit.state,
            self.data,
            cuts,
            record,
            most=min(self.steps, self.checkpoint_every),
            total=epochs * self.steps - at,
            guard=True,
        )
        start = time.perf_counter()
        with closing(pieces):
            for chunk in pieces:
                fit = self.add(fit, chunk, start)
                yield fit
                if fit.is_at_end_of_epoch(self.steps):
                    fit = self.end_epoch(fit)
                    if signals.interrupted.is_set() and fit.reason == Reason.EPOCHS:
                        fit = fit._replace(reason=int(Reason.INTERRUPTED))
                    yield fit
                at = fit.step
                is_last = at == epochs * self.steps
                if signals.is_preempted() and fit.reason == Reason.EPOCHS and not is_last:
                    fit = fit._replace(reason=int(Reason.PREEMPTED))
                    yield fit
                if at % self.checkpoint_every == 0 or fit.reason != Reason.EPOCHS:
                    self.keep(fit)
                    kept = at
                if fit.reason != Reason.EPOCHS:
                    return
                start = time.perf_counter()
        if kept != at:
            self.keep(fit)

    def add(self, fit: FitState, chunk: ChunkResult, start: float) -> FitState:
        """The epoch's sums with some more steps added; they do not depend on the cuts."""
        losses, rows, *norms = (x[: chunk.steps] for x in chunk.trace)
        # one by one in float64, so that the sum does not depend on where the epoch was cut
        with np.errstate(all="ignore"):
            sums = np.cumsum(np.append(fit.loss, losses.astype(float) * rows))  # one by one
        return fit._replace(
            state=chunk.state,
            step=fit.step + chunk.steps if chunk.finite else int(chunk.state.step),
            norms=(float(norms[0][-1]), float(norms[1][-1])) if norms else fit.norms,
            loss=float(sums[-1]),
            rows=fit.rows + int(rows.sum()),
            seconds=fit.seconds + time.perf_counter() - start,
            reason=fit.reason if chunk.finite else int(Reason.DIVERGED),
        )

    def end_epoch(self, fit: FitState) -> FitState:
        """Record the epoch, then update the best parameters and the stop."""
        state = fit.state
        record: dict[str, float] = {
            "epoch": len(fit.history["epoch"]) + 1,
            "step": fit.step,
            "loss": fit.loss / fit.rows,
            "seconds": fit.seconds,
        }
        metrics = self.metrics
        if metrics.functions:
            params, model_state = params_of(state), state.model_state
            means = means_over(
                metrics.functions, params, metrics.rows, metrics.sample_weight, model_state
            )
            means = jax.device_get(means)
            record |= {f"{metrics.prefix}{name}": float(mean) for name, mean in means.items()}
        self.log_once(record)
        history = {name: np.append(old, record[name]) for name, old in fit.history.items()}
        fit = fit._replace(history=history, loss=0.0, rows=0, seconds=0.0)
        if fit.reason == Reason.DIVERGED:
            return fit
        value = record[self.monitor] if self.mode == "min" else -record[self.monitor]
        if fit.best is not None and value < fit.best_value:
            fit = fit._replace(best=self.copied(state), best_value=value)
        if self.stop is None:
            return fit
        check = Check(*map(np.asarray, (record["step"], value, *fit.norms)))
        # numbers as arguments take 18 us, where `jax.device_put` takes 110
        with jax.transfer_guard_host_to_device("allow"):
            code, memory = _update_stop(self.stop, check, fit.memory)
        return fit._replace(memory=memory, reason=int(code) or fit.reason)

    def log_once(self, record: dict[str, float]) -> None:
        """Call `log`, unless an earlier run, killed after this epoch, called it.

        Of several processes the first one logs.
        """
        if self.log is None or jax.process_index() > 0:
            return
        mark = None if self.checkpoint is None else self.checkpoint / LOGGED
        if mark is not None and mark.exists() and int(mark.read_text()) >= record["epoch"]:
            return
        self.log({name: float(value) for name, value in record.items()})
        if mark is None:
            return
        try:
            _replace_text(mark, str(record["epoch"]))
        except OSError as error:
            message = f"{mark} was not written, so this epoch may be logged again: {error}"
            warnings.warn(message, stacklevel=2)

    def keep(self, fit: FitState) -> None:
        """Write a checkpoint, while the training goes on.

        Several processes wait for each other here, because the devices of all take part, and an
        error is raised: it would leave the others waiting.
        """
        if self.checkpoint is None:
            return
        name = f"the checkpoint of step {fit.step} in {self.checkpoint}"
        if jax.process_count() > 1:
            write(self.checkpoint, snapshot(fit, of=self.fingerprint, tag=self.checkpoint_tag))
            return
        assert self.in_background is not None
        try:
            taken = snapshot(fit, of=self.fingerprint, tag=self.checkpoint_tag)
            self.in_background(name, write, checked_folder(self.checkpoint), taken)
        except Exception as error:
            not_written(name, error)

    def position(self, fit: FitState) -> str:
        """Where the state of a fit that failed is."""
        where = f"fit failed after step {fit.step}: see this error's attribute `result`"
        return (
            where if self.checkpoint is None else f"{where}, and the checkpoint {self.checkpoint}"
        )

    def message(self, fit: FitState) -> str:
        """Why a fit ended, in one line, with the values that ended it."""
        reason, history = Reason(fit.reason), fit.history
        where = f"ended in epoch {len(history['epoch'])}, after {fit.step} steps: "
        if reason == Reason.DIVERGED:
            try:
                cause = cause_of(self.solver, fit.state, self.data)
            except Exception:  # the result must not be lost by the search for a cause
                cause = None
            return where + (
                f"diverged in step {fit.step} (counted from 0): {cause}" if cause else str(reason)
            )
        is_watched = self.restore_best or (self.stop is not None and self.stop.watches_monitor)
        if not is_watched or not len(history[self.monitor]):
            return where + str(reason)
        values = history[self.monitor] if self.mode == "min" else -history[self.monitor]
        best = int(np.argmin(np.where(np.isnan(values), np.inf, values)))
        last, least = history[self.monitor][-1], history[self.monitor][best]
        return f"{where}{reason} ({self.monitor} {last:.6g}, best {least:.6g} in epoch {best + 1})"

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """What a checkpoint belongs to: all arguments that the numbers depend on, but `epochs`."""
        parts = {
            "solver": self.solver,
            "sampler": self.solver.sampler_for(self.data),  # on a mesh also its shards
            "data": _shapes(self.data),
            "key": self.key,
            "validation": _shapes(self.metrics.rows),
            "validation_sample_weight": self.metrics.sample_weight,
            "stop": self.stop,
            "metrics": self.metrics.functions,
            "monitor": self.monitor,
            "mode": self.mode,
            "restore_best": self.restore_best,
            VALUES[0]: _some_rows(self.data),
            VALUES[1]: self.params,
        }
        result = Fingerprint()
        for name, part in parts.items():
            result |= fingerprint(part, name)
        return result

    def copied(self, state: State) -> PyTree:
        """The parameters to use and the model state, in buffers that no later step is given."""
        return jax.tree.map(jnp.copy, (params_of(state), state.model_state))


def not_written(name: str, error: BaseException) -> None:
    """Warn that a checkpoint was not written, and go on: of a full disk, say."""
    reason = f"{type(error).__name__}: {error}"[:300]
    warnings.warn(f"{name} was not written: {reason}", stacklevel=2)


def params_of(state: State) -> PyTree:
    """The parameters to use: the averages where the rule keeps them."""
    return state.params if find_average(state.rule) is None else averaged(state)


def _some_rows(data: PyTree) -> PyTree:
    """The rows whose values a checkpoint belongs to: up to 4,096, and 16 MiB."""
    rows = as_rows(data)
    leaves = jax.tree.leaves(rows.shapes)
    row_bytes = sum(math.prod(s.shape[1:]) * s.dtype.itemsize for s in leaves)
    return rows.some(min(4096, 2**24 // max(row_bytes, 1)))


def _shapes(data: PyTree) -> PyTree:
    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    return jax.tree.map(struct, as_rows(data).shapes)


def _replace_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it: it is never half written."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _cuts(at: int, total: int, steps: int, every: int) -> Iterator[int]:
    """Steps up to the next end of an epoch or checkpoint."""
    while at < total:
        end = min((at // steps + 1) * steps, (at // every + 1) * every)
        yield end - at
        at = end


def _record_loss(state: State, info: Info, batch: Batch) -> tuple[Array, ...]:
    return info.loss, jnp.sum(batch.weight > 0)


def _record_norms(state: State, info: Info, batch: Batch) -> tuple[Array, ...]:
    return (*_record_loss(state, info, batch), info.grad_norm, info.update_norm)


@programs.jit()
def _update_stop(stop: Stop, check: Check, memory: PyTree) -> tuple[Int[Array, ""], PyTree]:
    code, memory = check_stop(stop, check, memory)
    return code, jax.tree.map(strong, memory)
