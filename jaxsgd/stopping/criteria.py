"""Stops: convergence, small gradients and steps, no improvement, divergence, any of several."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import field, number, part, set_fields
from jaxsgd.core.validation import Number
from jaxsgd.schedules import scalar
from jaxsgd.stopping.base import Check, Reason, Stop, as_stop, check_stop


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

    watches_monitor = False
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

    A decaying rate makes updates small anywhere: a small update does not indicate a minimum.

    >>> reason, _ = jaxsgd.SmallStep(0.1).update(jaxsgd.Check(0, 1.0, 1.0, 0.05), ())
    >>> int(reason) == jaxsgd.Reason.SMALL_STEP
    True
    """

    watches_monitor = False
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

    @property
    def watches_monitor(self) -> bool:
        """Whether any of the stops reads the monitor."""
        return any(stop.watches_monitor for stop in self.stops)

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


def _float() -> np.dtype:
    return jax.dtypes.canonicalize_dtype(float)


def _reason(reason: Reason, is_met: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where(is_met, int(reason), int(Reason.RUNNING)).astype(jnp.int32)
