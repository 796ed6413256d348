"""When a run stops, and why.

A stop is a pair, `init() -> state` and `update(check, state) -> (reason, state)`. Its reason is an
int32[]: `Reason.RUNNING` (0) to go on, any other code to stop. It looks at a `Check`, made every so
many steps by `run_until` or once an epoch by `fit`; smaller is better, so hand a score to maximise
over negated. Tolerances are leaves.
"""

import abc
import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_contract, field, number, part, set_fields
from jaxsgd.core.validation import Number
from jaxsgd.schedules import scalar


class Reason(enum.IntEnum):
    """Why a run ended. `Reason(int(ending.reason))` tells what a compiled run returned.

    >>> print(jaxsgd.Reason.SMALL_STEP)
    the step became as small as asked for
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
        """A code of a stop of one's own, so that the end of a run never fails on it."""
        return cls.STOPPED if isinstance(value, int) else None

    def __str__(self) -> str:
        return SENTENCES[self]

    def __format__(self, spec: str) -> str:
        return format(int(self) if spec.endswith("d") else str(self), spec)


SENTENCES = {
    Reason.RUNNING: "still running",
    Reason.CONVERGED: "the monitored objective hardly changes any more",
    Reason.SMALL_GRADIENT: "the gradient became as small as asked for",
    Reason.SMALL_STEP: "the step became as small as asked for",
    Reason.NO_IMPROVEMENT: "the monitored value did not improve for as long as asked for",
    Reason.DIVERGED: "diverged: not finite any more, or too far above the start",
    Reason.STOPPED: "a stop of your own said so",
    Reason.MAX_STEPS: "all steps were run",
    Reason.EPOCHS: "all epochs were run",
    Reason.INTERRUPTED: "interrupted; the result is that of the last whole epoch",
    Reason.FAILED: "an error was raised",
}


class Check(NamedTuple):
    """What a stop sees. Floats are float32, or float64 in x64 mode."""

    step: Any  # int32[]: steps taken
    monitor: Any  # float[]: the objective, or what was chosen to be watched
    grad_norm: Any  # float[]: of the last step, as `Info` has it
    update_norm: Any  # float[]: of the last step


class Ending(NamedTuple):
    """How a run ended."""

    reason: Any  # int32[]: a `Reason`
    step: Any  # int32[]: steps taken; where diverged, also the step that was not finite
    checks: Any  # int32[]: checks made, the valid length of the trace

    def __str__(self) -> str:
        if isinstance(self.reason, jax.core.Tracer) or jnp.ndim(self.reason):
            return repr(self)  # traced, or of many lanes
        reason = Reason(int(self.reason))
        return f"stopped at step {int(self.step)}, check {int(self.checks)}: {reason}"


class Stop(abc.ABC):
    """When a run stops, and why. A custom stop subclasses this contract.

    It sees a `Check` every so many steps of `run_until`, or once an epoch of `fit`.

    >>> @jaxsgd.part
    ... class Below(jaxsgd.Stop):
    ...     target: float = jaxsgd.number()
    ...     def init(self):
    ...         return ()
    ...     def update(self, check, state):
    ...         return check.monitor <= self.target, state
    """

    @abc.abstractmethod
    def init(self) -> Any:
        """The state before the first check."""

    @abc.abstractmethod
    def update(self, check: Check, state: Any) -> tuple[Any, Any]:
        """The reason, and the state after the check.

        The reason is an int32[] (`Reason.RUNNING`, 0, to go on), or a bool[]: True is
        `Reason.STOPPED`.
        """


class ConvergedState(NamedTuple):
    """The last check's monitor, and whether there was one."""

    monitor: jax.Array
    seen: jax.Array


@part
class Converged(Stop):
    """The monitor changed little since the last check: `|f' - f| <= atol + rtol |f|`.

    A change between checks, not between steps: a mean over few minibatches changes by its noise.

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

    def update(self, check: Check, state: ConvergedState) -> tuple[jax.Array, ConvergedState]:
        """The reason (int32[]), and the state after the check."""
        atol, rtol = (scalar(x, "Converged's tolerance") for x in (self.atol, self.rtol))
        monitor = jnp.asarray(check.monitor, _float())
        change = jnp.abs(monitor - state.monitor)
        is_near = jnp.isfinite(change) & (change <= atol + rtol * jnp.abs(state.monitor))
        after = ConvergedState(monitor, jnp.ones((), bool))
        return _reason(Reason.CONVERGED, state.seen & is_near), after


@part
class SmallGradient(Stop):
    """The last step's gradient is small: `|grads| <= atol`, Euclidean.

    Of the loss and the solver's penalty: with `FullBatch` the gradient of the objective; of a
    minibatch it has the noise of its rows. A penalty in `Proximal` has none, and that of the loss
    alone does not vanish there: use `SmallStep`.

    >>> reason, _ = jaxsgd.SmallGradient(0.1).update(jaxsgd.Check(0, 1.0, 0.05, 1.0), ())
    >>> int(reason) == jaxsgd.Reason.SMALL_GRADIENT
    True
    """

    atol: Number = number(default=1e-6, converter=validation.real())

    def init(self) -> tuple[()]:
        """No state."""
        return ()

    def update(self, check: Check, state: tuple[()]) -> tuple[jax.Array, tuple[()]]:
        """The reason (int32[]), and the state after the check."""
        is_small = check.grad_norm <= scalar(self.atol, "SmallGradient's atol")
        return _reason(Reason.SMALL_GRADIENT, is_small), state


@part
class SmallStep(Stop):
    """The parameters hardly change: `|params' - params| <= atol` in the last step, Euclidean.

    A decaying rate makes steps small anywhere: a small step is no sign of a minimum.

    >>> reason, _ = jaxsgd.SmallStep(0.1).update(jaxsgd.Check(0, 1.0, 1.0, 0.05), ())
    >>> int(reason) == jaxsgd.Reason.SMALL_STEP
    True
    """

    atol: Number = number(default=1e-6, converter=validation.real())

    def init(self) -> tuple[()]:
        """No state."""
        return ()

    def update(self, check: Check, state: tuple[()]) -> tuple[jax.Array, tuple[()]]:
        """The reason (int32[]), and the state after the check."""
        is_small = check.update_norm <= scalar(self.atol, "SmallStep's atol")
        return _reason(Reason.SMALL_STEP, is_small), state


class EarlyStoppingState(NamedTuple):
    """The best monitor so far, and the checks since."""

    best: jax.Array
    since: jax.Array


@part
class EarlyStopping(Stop):
    """No improvement for `patience` checks in a row; one is `monitor < best - min_delta`.

    Prechelt, "Early stopping, but when?" (1998). A monitor that is not a number is none.

    Args:
      patience: checks without improvement after which to stop, at least 1; a leaf.
      min_delta: in the units of the monitor, at least 0.

    >>> stop = jaxsgd.EarlyStopping(patience=2)
    >>> state, reasons = stop.init(), []
    >>> for f in (3.0, 2.0, 2.5, 2.0):
    ...     reason, state = stop.update(jaxsgd.Check(0, f, 0.0, 0.0), state)
    ...     reasons.append(int(reason))
    >>> reasons, float(state.best)
    ([0, 0, 0, 4], 2.0)
    """

    patience: Any = field(converter=validation.whole_number(1))
    min_delta: Number = number(default=0.0, converter=validation.real())

    def init(self) -> EarlyStoppingState:
        """The state before the first check."""
        return EarlyStoppingState(jnp.full((), jnp.inf, _float()), jnp.zeros((), jnp.int32))

    def update(
        self, check: Check, state: EarlyStoppingState
    ) -> tuple[jax.Array, EarlyStoppingState]:
        """The reason (int32[]), and the state after the check."""
        monitor = jnp.asarray(check.monitor, _float())
        min_delta = scalar(self.min_delta, "EarlyStopping's min_delta").astype(monitor.dtype)
        is_better = monitor < state.best - min_delta
        best = jnp.where(is_better, monitor, state.best)
        since = jnp.where(is_better, 0, state.since + 1).astype(jnp.int32)
        patience = scalar(self.patience, "EarlyStopping's patience")
        return _reason(Reason.NO_IMPROVEMENT, since >= patience), EarlyStoppingState(best, since)


class DivergedState(NamedTuple):
    """The first check's monitor, and whether there was one."""

    start: jax.Array
    seen: jax.Array


@part
class Diverged(Stop):
    """The monitor is not finite, or above the first check's by `factor` times its size.

    `f - f_0 > (factor - 1) |f_0|`, which is `f > factor f_0` for a positive start, and holds for a
    negative one; a start of exactly 0 has no size, and only what is not finite counts. Where loss,
    gradient or parameters are not finite, `run_until` and `fit` stop without being asked.

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

    def update(self, check: Check, state: DivergedState) -> tuple[jax.Array, DivergedState]:
        """The reason (int32[]), and the state after the check."""
        monitor = jnp.asarray(check.monitor, _float())
        start = jnp.where(state.seen, state.start, monitor)
        factor = scalar(self.factor, "Diverged's factor")
        is_far = (monitor - start > (factor - 1) * jnp.abs(start)) & (start != 0)
        after = DivergedState(start, jnp.ones((), bool))
        return _reason(Reason.DIVERGED, is_far | ~jnp.isfinite(monitor)), after


@part
class AnyOf(Stop):
    """The first of several stops, in their order, that says so.

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
    ) -> tuple[jax.Array, tuple[PyTree, ...]]:
        """The reason (int32[]), and the states after the check."""
        results = [
            check_stop(*each) for each in zip(self.stops, [check] * len(state), state, strict=True)
        ]
        reason = jnp.zeros((), jnp.int32)
        for other, _ in results:
            reason = jnp.where(reason == Reason.RUNNING, other, reason)
        return reason, tuple(inner for _, inner in results)


def as_stop(stop: Any, name: str = "stop") -> Stop:
    """A stop as it is; anything else is refused."""
    if not isinstance(stop, type | Stop):
        raise TypeError(
            f"{name} is {stop!r}, expected one such as jaxsgd.Converged(1e-4), or AnyOf(a, b) of "
            "two; a custom stop subclasses jaxsgd.Stop"
        )
    return as_contract(stop, Stop, name, "jaxsgd.Converged(1e-4)")


def as_reason(reason: Any) -> Int[Array, ""]:
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
            "expected an int32 or a bool scalar: jaxsgd.Reason.RUNNING (0) to go on"
        )
    if reason.dtype == bool:
        reason = jnp.where(reason, int(Reason.STOPPED), int(Reason.RUNNING))
    return reason.astype(jnp.int32)


def check_stop(stop: Stop, check: "Check", state: Any) -> tuple[Int[Array, ""], Any]:
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


def _float() -> Any:
    return jax.dtypes.canonicalize_dtype(float)


def _reason(reason: Reason, is_met: jax.Array) -> jax.Array:
    return jnp.where(is_met, int(reason), int(Reason.RUNNING)).astype(jnp.int32)
