"""The contract of a stop: when a run stops, and why.

A stop gets a `Check` at regular steps of `run_until`, or after each epoch of `fit`. It returns a
reason, an int32[]: `Reason.RUNNING` (0) to continue, any other code to stop. Tolerances are leaves.
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
from jaxsgd.core.part import Contract, as_contract


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
    PREEMPTED = 11

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
    Reason.PREEMPTED: "the process was asked to end; call fit again to continue",
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
    step: Int[Array, ""]  # int32[]: steps taken, without a step that was not finite
    checks: Int[Array, ""]  # checks made, the valid length of the trace

    def __str__(self) -> str:
        if isinstance(self.reason, Tracer) or jnp.ndim(self.reason):
            return repr(self)  # traced, or of many runs
        reason = Reason(int(self.reason))
        return f"stopped at step {int(self.step)}, check {int(self.checks)}: {reason}"


class Stop(Contract, abc.ABC):
    """When a run stops, and why. A custom stop subclasses this contract.

    It gets a `Check` at regular steps of `run_until`, or after each epoch of `fit`.

    Attributes with defaults:
      watches_monitor: it reads `check.monitor`. True.

    >>> @jaxsgd.part
    ... class Below(jaxsgd.Stop):
    ...     target: float = jaxsgd.number()
    ...     def init(self):
    ...         return ()
    ...     def update(self, check, state):
    ...         return check.monitor <= self.target, state
    """

    watches_monitor: bool = True

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


def as_stop(stop: Stop, name: str = "stop") -> Stop:
    """A stop, unchanged; anything else is refused."""
    stop = as_contract(stop, Stop, name, "jaxsgd.Converged(1e-4) or AnyOf(a, b) of two")
    validation.numbers_held(stop, jax.dtypes.canonicalize_dtype(float), name)
    return stop


def as_reason(
    reason: Int[Array, ""] | Bool[Array, ""] | int, where: str = "a stop's update"
) -> Int[Array, ""]:
    """A stop's reason as an int32[]; True is `Reason.STOPPED`.

    Raises:
      TypeError: it is neither an integer nor a bool, or not a scalar.
    """
    reason = jnp.asarray(reason)
    if reason.shape != () or not (
        reason.dtype == bool or jnp.issubdtype(reason.dtype, jnp.integer)
    ):
        raise TypeError(
            f"{where} returned a reason of {reason.dtype} and shape {reason.shape}, "
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
    instead = "write jnp.where(check.monitor < 0.1, 1, 0), or return the bool itself"
    what = f"{type(stop).__name__}.update needs the value of an array (in an if, bool() or NumPy)"
    with validation.traced(what, instead):
        returned = stop.update(check, state)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"{type(stop).__name__}.update returned {type(returned).__name__}, expected the tuple "
            "(reason, state)"
        )
    reason, after = returned
    if jax.tree.structure(after) != jax.tree.structure(state):
        raise TypeError(
            f"{type(stop).__name__}.update returned a state of the structure "
            f"{jax.tree.structure(after)}, expected that of init, {jax.tree.structure(state)}"
        )
    return as_reason(reason, f"{type(stop).__name__}.update"), after
