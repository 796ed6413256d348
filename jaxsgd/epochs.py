"""Epoch after epoch: the host loop behind `fit`, and all that it goes on from."""

import math
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import checks
from jaxsgd.averaging import averaged, find_average
from jaxsgd.checkpoints import checkpoints, restore, save
from jaxsgd.chunks import Piece, advances
from jaxsgd.evaluation import means_over
from jaxsgd.outlines import Outline, outline
from jaxsgd.pairs import Batch, Function, Info, PyTree, State, as_arguments
from jaxsgd.solver import Solver
from jaxsgd.stopping import Check, Reason, as_reason


class Course(NamedTuple):
    """Where a fit stands. Cut anywhere, it goes on bit for bit the same."""

    state: State
    step: int  # of the state, on the host
    memory: PyTree  # of the stop
    best: PyTree  # the best parameters and their carry, where the stop watches validation
    best_value: float
    norms: tuple[float, float]  # of the last step's gradient and update, where a stop looks
    loss: float  # of the epoch at hand: the sum over its rows so far,
    rows: int  # their number,
    seconds: float  # and the time they took
    reason: int
    history: dict[str, np.ndarray]

    def is_at_end_of_epoch(self, steps: int) -> bool:
        """Whether all steps of an epoch are taken, or all that can be, and it has no record yet."""
        ended = self.reason == Reason.DIVERGED or self.step % steps == 0
        return ended and self.rows > 0


@dataclass(frozen=True)
class Work:
    """What a fit does, and with what."""

    solver: Solver
    data: Any
    steps: int  # of an epoch
    metrics: dict[str, Any]
    prefix: str  # of their names in the history
    rows: Any  # what they are evaluated on
    weight: Any  # of these rows
    stop: Any
    monitor: str
    log: Any
    checkpoint: Path | None
    every: int  # steps between checkpoints
    key: jax.Array

    def begin(self, state: State) -> Course:
        """The course before the first epoch, or the one that the checkpoint holds."""
        names = ("epoch", "step", "loss", "seconds", *(f"{self.prefix}{m}" for m in self.metrics))
        watches_held_out = self.stop is not None and "validation_" in self.monitor
        course = Course(
            state=state,
            step=0,
            memory=None if self.stop is None else as_arguments(self.stop.init()),
            best=self.copied(state) if watches_held_out else None,
            best_value=math.inf,
            norms=(math.inf, math.inf),
            loss=0.0,
            rows=0,
            seconds=0.0,
            reason=int(Reason.EPOCHS),
            history={n: np.zeros(0, int if n in ("epoch", "step") else float) for n in names},
        )
        if self.checkpoint is None:
            return course
        of = self.outline  # before the first trace, for some functions change what they closed over
        self.checkpoint.mkdir(parents=True, exist_ok=True)
        if not checkpoints(self.checkpoint):
            return course
        course = restore(self.checkpoint, course, of=of)
        if course.reason == Reason.INTERRUPTED:
            course = course._replace(reason=int(Reason.EPOCHS))
        return course

    def courses(
        self, course: Course, epochs: int, interrupted: threading.Event
    ) -> Iterator[Course]:
        """The course after each call of the compiled program, and after each epoch's record."""
        kept = at = course.step
        if course.is_at_end_of_epoch(self.steps):
            course, kept = self.end_epoch(course), -1
            yield course
        ahead = course.reason == Reason.EPOCHS
        cuts = _cuts(at, epochs * self.steps, self.steps, self.every) if ahead else iter(())
        record = Function(_told if self.stop is None else _told_norms)
        pieces = advances(
            self.solver,
            course.state,
            self.data,
            cuts,
            record,
            most=min(self.steps, self.every),
            total=epochs * self.steps - at,
            guard=True,
        )
        start = time.perf_counter()
        with closing(pieces):
            for piece in pieces:
                course = self.add(course, piece, start)
                yield course
                if course.is_at_end_of_epoch(self.steps):
                    course = self.end_epoch(course)
                    if interrupted.is_set() and course.reason == Reason.EPOCHS:
                        course = course._replace(reason=int(Reason.INTERRUPTED))
                    yield course
                at = course.step
                if at % self.every == 0 or course.reason != Reason.EPOCHS:
                    self.keep(course)
                    kept = at
                if course.reason != Reason.EPOCHS:
                    return
                start = time.perf_counter()
        if kept != at:
            self.keep(course)

    def add(self, course: Course, piece: Piece, start: float) -> Course:
        """The epoch's sums with those of some more steps, the same however they are cut."""
        losses, rows, *norms = (x[: piece.steps] for x in piece.trace)
        with np.errstate(all="ignore"):
            sums = np.cumsum(np.append(course.loss, losses.astype(float) * rows))  # one by one
        return course._replace(
            state=piece.state,
            step=course.step + piece.steps if piece.finite else int(piece.state.step),
            norms=(float(norms[0][-1]), float(norms[1][-1])) if norms else course.norms,
            loss=float(sums[-1]),
            rows=course.rows + int(rows.sum()),
            seconds=course.seconds + time.perf_counter() - start,
            reason=course.reason if piece.finite else int(Reason.DIVERGED),
        )

    def end_epoch(self, course: Course) -> Course:
        """The epoch's record, and what the stop makes of it."""
        state = course.state
        record: dict[str, Any] = {
            "epoch": len(course.history["epoch"]) + 1,
            "step": course.step,
            "loss": course.loss / course.rows,
            "seconds": course.seconds,
        }
        if self.metrics:
            params, carry = params_of(state), state.carry
            means = means_over(self.metrics, params, self.rows, self.weight, carry)
            means = jax.device_get(means)
            record |= {f"{self.prefix}{name}": float(mean) for name, mean in means.items()}
        if self.log is not None:
            self.log({name: float(value) for name, value in record.items()})
        history = {name: np.append(old, record[name]) for name, old in course.history.items()}
        course = course._replace(history=history, loss=0.0, rows=0, seconds=0.0)
        if self.stop is None or course.reason == Reason.DIVERGED:
            return course
        value = record[self.monitor.removeprefix("-")]
        value = -value if self.monitor.startswith("-") else value
        if course.best is not None and value < course.best_value:
            course = course._replace(best=self.copied(state), best_value=value)
        check = Check(*map(np.asarray, (record["step"], value, *course.norms)))
        code, memory = _look(self.stop, *as_arguments((check, course.memory)))
        return course._replace(memory=memory, reason=int(code) or course.reason)

    def keep(self, course: Course) -> None:
        """A checkpoint; where it cannot be written that is told, and the training goes on."""
        if self.checkpoint is None:
            return
        try:
            save(self.checkpoint, course, of=self.outline)
        except Exception as error:  # a full disk, whatever the libraries make of it
            where = f"the checkpoint of step {course.step} in {self.checkpoint}"
            warnings.warn(f"{where} was not written: {error}", stacklevel=2)

    def standing(self, course: Course) -> str:
        """Where a fit that failed is to be found."""
        told = f"fit stood at step {course.step}: see this error's attribute `result`"
        return told if self.checkpoint is None else f"{told}, and the checkpoint {self.checkpoint}"

    @cached_property
    def outline(self) -> Outline:
        """What a checkpoint belongs to: all that has a part in the numbers, but for the epochs."""
        told = Outline()
        told |= outline(self.solver, "solver") | outline(_shapes(self.data), "data")
        told |= outline(self.key, "key") | outline(_shapes(self.rows), "validation")
        told |= outline(self.weight, "validation_weight") | outline(self.stop, "stop")
        told |= outline(self.metrics, "metrics") | outline(self.monitor, "monitor")
        return told

    def copied(self, state: State) -> PyTree:
        """The parameters to use and the carry, in buffers that no later step is given."""
        return jax.tree.map(jnp.copy, (params_of(state), state.carry))


def params_of(state: State) -> PyTree:
    """The parameters to use: the averages where the rule keeps them."""
    return state.params if find_average(state.rule) is None else averaged(state)


def _shapes(data: PyTree) -> PyTree:
    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
    return jax.tree.map(struct, checks.shapes(data))


def _cuts(at: int, total: int, steps: int, every: int) -> Iterator[int]:
    """Steps up to the next end of an epoch or checkpoint."""
    while at < total:
        end = min((at // steps + 1) * steps, (at // every + 1) * every)
        yield end - at
        at = end


def _told(state: State, info: Info, batch: Batch) -> Any:
    return info.loss, jnp.sum(batch.weight > 0)


def _told_norms(state: State, info: Info, batch: Batch) -> Any:
    return (*_told(state, info, batch), info.grad_norm, info.update_norm)


@jax.jit
def _look(stop: Any, check: Check, memory: PyTree) -> tuple[jax.Array, PyTree]:
    told, memory = stop.update(check, memory)
    return as_reason(told), memory
