"""When a run stops, and why.

A stop is a pair, `init() -> state` and `update(check, state) -> (reason, state)`. Its reason is an
int32[]: `Reason.RUNNING` (0) to continue, any other code to stop. It gets a `Check` from
`run_until` at regular steps, or from `fit` after each epoch. A smaller monitored value is better.
Tolerances are leaves.
"""

import abc
import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_contract, field, number, part, set_fields
from jaxsgd.core.validation import Number
from jaxsgd.schedules import scalar


class Reason(enum.IntEnum):
    """Why a run ended. `Reason(int(ending.reason))` is the reason that a compiled run returned.

    >>> print(jaxsgd.Reason.SMALL_STEP)
    the norm of the last update is at most the tolerance
    """

    RUNNING = 0
    CONVERGED = 1
    SMALL_GRADIENT = 2
    SMALL_STEP = 3
    NO_IMPROVEMENT = 4
    DIVERGED = 5
    STOPPED = 6
    MAX_STEPS = 7
    EPOCHS = 8
    INTERRUPTED = 9
    FAILED = 10

    @classmethod
    def _missing_(cls, value: object) -> "Reason | None":
        """The code of a custom stop, so that no code makes the end of a run fail."""
        return cls.STOPPED if isinstance(value, int) else None

    def __str__(self) -> str:
        return SENTENCES[self]

    def __format__(self, spec: str) -> str:
        return format(int(self) if spec.endswith("d") else str(self), spec)


SENTENCES = {
    Reason.RUNNING: "still running",
    Reason.CONVERGED: "the monitored value changed by at most the tolerance",
    Reason.SMALL_GRADIENT: "the norm of the last gradient is at most the tolerance",
    Reason.SMALL_STEP: "the norm of the last update is at most the tolerance",
    Reason.NO_IMPROVEMENT: "the monitored value did not improve for `patience` checks",
    Reason.DIVERGED: "diverged: a value is not finite, or the monitored one is far above its start",
    Reason.STOPPED: "a custom stop ended the run",
    Reason.MAX_STEPS: "all steps were run",
    Reason.EPOCHS: "all epochs were run",
    Reason.INTERRUPTED: "interrupted; the result is that of the last whole epoch",
    Reason.FAILED: "an error was raised",
}


class Check(NamedTuple):
    """What a stop gets. Floats are float32, or float64 in x64 mode; `fit` gives NumPy arrays."""

    step: Int[Array, ""] | np.ndarray  # steps taken
    monitor: Float[Array, ""] | np.ndarray  # the objective, or another value to be monitored
    grad_norm: Float[Array, ""] | np.ndarray  # of the last step, as in `Info`
    update_norm: Float[Array, ""] | np.ndarray  # of the last step


class Ending(NamedTuple):
    """How a run ended."""

    reason: Int[Array, ""]  # a `Reason`
    step: Int[Array, ""]  # steps taken; where diverged, the step that was not finite counts too
    checks: Int[Array, ""]  # checks made, the valid length of the trace

    def __str__(self) -> str:
        if isinstance(self.reason, Tracer) or jnp.ndim(self.reason):
            return repr(self)  # traced, or of many runs
        reason = Reason(int(self.reason))
        return f"stopped at step {int(self.step)}, check {int(self.checks)}: {reason}"


class Stop(abc.ABC):
    """When a run stops, and why. A custom stop subclasses this contract.

    It gets a `Check` at regular steps of `run_until`, or after each epoch of `fit`.

    >>> @jaxsgd.part
    ... class Below(jaxsgd.Stop):
    ...     target: float = jaxsgd.number()
    ...     def init(self):
    ...         return ()
    ...     def update(self, check, state):
    ...         return check.monitor <= self.target, state
    """

    @abc.abstractmethod
    def init(self) -> PyTree:
        """The state before the first check."""

    @abc.abstractmethod
    def update(
        self, check: Check, state: PyTree
    ) -> tuple[Int[Array, ""] | Bool[Array, ""], PyTree]:
        """The reason, and the state after the check.

        The reason is an int32[] (`Reason.RUNNING`, 0, to continue), or a bool[]: True is
        `Reason.STOPPED`.
        """


class ConvergedState(NamedTuple):
    """The last check's monitor, and whether there was one."""

    monitor: Float[Array, ""]
    seen: Bool[Array, ""]


@part
class Converged(Stop):
    """The monitor changed little since the last check: `|f' - f| <= atol + rtol |f|`.

    f and f' are the monitors of two checks in a row, not of two steps. A mean over few minibatches
    changes by its noise.

    Args:
      atol: in the units of the monitor, at least 0.
      rtol: at least 0.

    >>> stop = jaxsgd.Converged(atol=0.1)
    >>> state = stop.init()
    >>> for f in (3.0, 2.0, 1.95):
    ...     reason, state = stop.update(jaxsgd.Check(0, f, 0.0, 0.0), state)
    >>> int(reason) == jaxsgd.Reason.CONVERGED
    True
    """

    atol: Number = number(default=1e-4, converter=validation.real())
    rtol: Number = number(default=0.0, converter=validation.real())

    def init(self) -> ConvergedState:
        """The state before the first check."""
        return ConvergedState(jnp.zeros((), _float()), jnp.zeros((), bool))

    def update(self, check: Check, state: ConvergedState) -> tuple[Int[Array, ""], ConvergedState]:
        """The reason, and the state after the check."""
        atol, rtol = (scalar(x, "Converged's tolerance") for x in (self.atol, self.rtol))
        monitor = jnp.asarray(check.monitor, _float())
        change = jnp.abs(monitor - state.monitor)
        is_near = jnp.isfinite(change) & (change <= atol + rtol * jnp.abs(state.monitor))
        after = ConvergedState(monitor, jnp.ones((), bool))
        return _reason(Reason.CONVERGED, state.seen & is_near), after


@part
class SmallGradient(Stop):
    """The gradient of the last step is small: `|grads| <= atol` in the Euclidean norm.

    The gradient is that of the loss and the solver's penalty: of the full objective with
    `FullBatch`, of the batch otherwise, with the noise of its rows. A penalty in `Proximal` is not
    a part of it, and the gradient of the loss alone is not 0 at the minimum: use `SmallStep`.

    >>> reason, _ = jaxsgd.SmallGradient(0.1).update(jaxsgd.Check(0, 1.0, 0.05, 1.0), ())
    >>> int(reason) == jaxsgd.Reason.SMALL_GRADIENT
    True
    """

    atol: Number = number(default=1e-6, converter=validation.real())

    def init(self) -> tuple[()]:
        """No state."""
        return ()

    def update(self, check: Check, state: tuple[()]) -> tuple[Int[Array, ""], tuple[()]]:
        """The reason, and the state after the check."""
        is_small = jnp.asarray(check.grad_norm) <= scalar(self.atol, "SmallGradient's atol")
        return _reason(Reason.SMALL_GRADIENT, is_small), state


@part
class SmallStep(Stop):
    """The last update is small: `|params' - params| <= atol` in the Euclidean norm.

    A decaying rate makes updates small anywhere: a small update is no sign of a minimum.

    >>> reason, _ = jaxsgd.SmallStep(0.1).update(jaxsgd.Check(0, 1.0, 1.0, 0.05), ())
    >>> int(reason) == jaxsgd.Reason.SMALL_STEP
    True
    """

    atol: Number = number(default=1e-6, converter=validation.real())

    def init(self) -> tuple[()]:
        """No state."""
        return ()

    def update(self, check: Check, state: tuple[()]) -> tuple[Int[Array, ""], tuple[()]]:
        """The reason, and the state after the check."""
        is_small = jnp.asarray(check.update_norm) <= scalar(self.atol, "SmallStep's atol")
        return _reason(Reason.SMALL_STEP, is_small), state


class EarlyStoppingState(NamedTuple):
    """The best monitor so far, and the number of checks since."""

    best: Float[Array, ""]
    since: Int[Array, ""]


@part
class EarlyStopping(Stop):
    """No improvement, `monitor < best - min_delta`, for `patience` checks in a row.

    A monitor of NaN is not an improvement. Prechelt, "Early stopping, but when?" (1998).

    Args:
      patience: the number of checks without improvement after which to stop, at least 1; a leaf.
      min_delta: in the units of the monitor, at least 0.

    >>> stop = jaxsgd.EarlyStopping(patience=2)
    >>> state, reasons = stop.init(), []
    >>> for f in (3.0, 2.0, 2.5, 2.0):
    ...     reason, state = stop.update(jaxsgd.Check(0, f, 0.0, 0.0), state)
    ...     reasons.append(int(reason))
    >>> reasons, float(state.best)
    ([0, 0, 0, 4], 2.0)
    """

    patience: Number = field(converter=validation.whole_number(1))
    min_delta: Number = number(default=0.0, converter=validation.real())

    def init(self) -> EarlyStoppingState:
        """The state before the first check."""
        return EarlyStoppingState(jnp.full((), jnp.inf, _float()), jnp.zeros((), jnp.int32))

    def update(
        self, check: Check, state: EarlyStoppingState
    ) -> tuple[Int[Array, ""], EarlyStoppingState]:
        """The reason, and the state after the check."""
        monitor = jnp.asarray(check.monitor, _float())
        min_delta = scalar(self.min_delta, "EarlyStopping's min_delta").astype(monitor.dtype)
        is_better = monitor < state.best - min_delta
        best = jnp.where(is_better, monitor, state.best)
        since = jnp.where(is_better, 0, state.since + 1).astype(jnp.int32)
        patience = scalar(self.patience, "EarlyStopping's patience")
        return _reason(Reason.NO_IMPROVEMENT, since >= patience), EarlyStoppingState(best, since)


class DivergedState(NamedTuple):
    """The first check's monitor, and whether there was one."""

    start: Float[Array, ""]
    seen: Bool[Array, ""]


@part
class Diverged(Stop):
    """The monitor is not finite, or above the first check's by `factor` times its size.

    `f - f_0 > (factor - 1) |f_0|`, which is `f > factor f_0` for a positive start and also covers a
    negative one; from a start of exactly 0 only a monitor that is not finite counts. `run_until`
    and `fit` always stop where the loss, the gradient or the parameters are not finite.

    Args:
      factor: at least 1.

    >>> stop = jaxsgd.Diverged(factor=10.0)
    >>> _, state = stop.update(jaxsgd.Check(0, -2.0, 0.0, 0.0), stop.init())
    >>> [int(stop.update(jaxsgd.Check(0, f, 0.0, 0.0), state)[0]) for f in (15.0, 17.0)]
    [0, 5]
    """

    factor: Number = number(default=1e3, converter=validation.real(1))

    def init(self) -> DivergedState:
        """The state before the first check."""
        return DivergedState(jnp.zeros((), _float()), jnp.zeros((), bool))

    def update(self, check: Check, state: DivergedState) -> tuple[Int[Array, ""], DivergedState]:
        """The reason, and the state after the check."""
        monitor = jnp.asarray(check.monitor, _float())
        start = jnp.where(state.seen, state.start, monitor)
        factor = scalar(self.factor, "Diverged's factor")
        is_far = (monitor - start > (factor - 1) * jnp.abs(start)) & (start != 0)
        after = DivergedState(start, jnp.ones((), bool))
        return _reason(Reason.DIVERGED, is_far | ~jnp.isfinite(monitor)), after


@part
class AnyOf(Stop):
    """Several stops; the reason is that of the first, in their order, that stops.

    >>> stop = jaxsgd.AnyOf(jaxsgd.Converged(1e-3), jaxsgd.EarlyStopping(5), jaxsgd.Diverged())
    >>> reason, state = stop.update(jaxsgd.Check(0, jnp.nan, 0.0, 0.0), stop.init())
    >>> int(reason) == jaxsgd.Reason.DIVERGED
    True
    """

    stops: tuple[Stop, ...]

    def __init__(self, *stops: Stop) -> None:
        set_fields(self, stops=tuple(as_stop(stop, "AnyOf's stop") for stop in stops))

    def init(self) -> tuple[PyTree, ...]:
        """The states before the first check."""
        return tuple(stop.init() for stop in self.stops)

    def update(
        self, check: Check, state: tuple[PyTree, ...]
    ) -> tuple[Int[Array, ""], tuple[PyTree, ...]]:
        """The reason, and the states after the check."""
        results = [
            check_stop(*each) for each in zip(self.stops, [check] * len(state), state, strict=True)
        ]
        reason = jnp.zeros((), jnp.int32)
        for other, _ in results:
            reason = jnp.where(reason == Reason.RUNNING, other, reason)
        return reason, tuple(inner for _, inner in results)


def as_stop(stop: Stop, name: str = "stop") -> Stop:
    """A stop, unchanged; anything else is refused."""
    if not isinstance(stop, type | Stop):
        raise TypeError(
            f"{name} is {stop!r}, expected one such as jaxsgd.Converged(1e-4), or AnyOf(a, b) of "
            "two; a custom stop subclasses jaxsgd.Stop"
        )
    return as_contract(stop, Stop, name, "jaxsgd.Converged(1e-4)")


def as_reason(reason: Int[Array, ""] | Bool[Array, ""] | int) -> Int[Array, ""]:
    """A stop's reason as an int32[]; True is `Reason.STOPPED`.

    Raises:
      TypeError: it is neither an integer nor a bool, or not a scalar.
    """
    reason = jnp.asarray(reason)
    if reason.shape != () or not (
        reason.dtype == bool or jnp.issubdtype(reason.dtype, jnp.integer)
    ):
        raise TypeError(
            f"a stop's update returned a reason of {reason.dtype} and shape {reason.shape}, "
            "expected an int32 or a bool scalar: jaxsgd.Reason.RUNNING (0) to continue"
        )
    if reason.dtype == bool:
        reason = jnp.where(reason, int(Reason.STOPPED), int(Reason.RUNNING))
    return reason.astype(jnp.int32)


def check_stop(stop: Stop, check: Check, state: PyTree) -> tuple[Int[Array, ""], PyTree]:
    """The reason and the new state of a stop's update, checked while tracing.

    Raises:
      TypeError: `update` broke the contract.
    """
    returned = stop.update(check, state)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"{type(stop).__name__}.update returned {type(returned).__name__}, expected the tuple "
            "(reason, state)"
        )
    return as_reason(returned[0]), returned[1]


def _float() -> np.dtype:
    return jax.dtypes.canonicalize_dtype(float)


def _reason(reason: Reason, is_met: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where(is_met, int(reason), int(Reason.RUNNING)).astype(jnp.int32)
