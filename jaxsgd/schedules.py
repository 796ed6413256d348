"""Numbers that depend on the step.

Wherever a rule takes a rate, it takes a number or a schedule: any callable of the step t (int32[],
0 at the first step) that returns a number. A plain function, such as one of Optax's schedules, is
static: another function compiles again. The parts below, and any callable pytree, keep their
constants as leaves: another constant compiles nothing, and constants can be swept and
differentiated.

    LinearDecay         (1 - t/n) a + (t/n) b, then b    CosineDecay    half a cosine from a to b
    InverseTimeDecay    a / (1 + rho t)                  WarmRestarts   cosines, one after another
    CompoundDecay       a(t+1) = a(t) / (1 + rho t)      StepDecay      a factor^floor(t / period)
    ExponentialDecay    a exp(-rho t)                    Warmup         a ramp before another

Each returns float32[], or float64[] in x64 mode, and refuses negative or infinite constants with a
ValueError.

>>> rates = jax.vmap(jaxsgd.LinearDecay(1.0, 0.2, steps=4))(jnp.arange(6))
>>> rates.round(3).tolist()
[1.0, 0.8, 0.6, 0.4, 0.2, 0.2]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable, field, no_class, number, part
from jaxsgd.core.validation import Number

Schedule = Callable[[Int[Array, ""]], ArrayLike]  # ArrayLike, as those of Optax
Rate = Number | Schedule


def as_rate(rate: Rate, name: str = "learning_rate") -> Rate:
    """A number of at least 0 or a schedule, unchanged; a plain function as a static part."""
    no_class(rate, name)
    if callable(rate):
        return as_callable(rate, name)
    if hasattr(rate, "init") and hasattr(rate, "update"):
        raise TypeError(
            f"{name} is an optimizer, expected a number or a schedule; give it as the rule: "
            "fit(rule=...), Solver(loss, sampler, rule)"
        )
    validation.number(rate, name)
    return rate


def init_count(rate: Rate | None) -> Int[Array, ""] | None:
    """The step counter that a rate needs: None for a number."""
    return jnp.zeros((), jnp.int32) if callable(rate) else None


def rate_at(
    rate: Rate, count: Int[Array, ""] | None
) -> tuple[Float[Array, ""], Int[Array, ""] | None]:
    """A rate, whether number or schedule, at a step count, and the count after the step.

    For custom rules: a rule keeps the count in its state.

    Args:
      rate: a number, or a schedule.
      count: int32[], the number of steps taken; None in the state of a rule that counts none.

    Returns:
      The rate (float[]), and `count + 1` (int32[]), or None.

    Raises:
      ValueError: the rate is a schedule, and the count is None; or it is several numbers.

    >>> [float(x) for x in jaxsgd.rate_at(jaxsgd.InverseTimeDecay(0.5, 1.0), jnp.int32(1))]
    [0.25, 2.0]
    """
    if not callable(rate):
        return _float_scalar(rate, "learning_rate"), None if count is None else count + 1
    if count is None:
        raise ValueError(
            f"the rate is the schedule {rate!r}, but the rule's state counts no steps: it was made "
            "for a rate that is a number; make one with the rule's init"
        )
    return _rate_of(rate, count), count + 1


def _rate_of(schedule: Schedule, count: Int[Array, ""]) -> Float[Array, ""]:
    """The rate of a schedule; one that is a number already, and no rate, is refused."""
    what, name = f"the schedule {schedule!r}", f"the rate of the schedule {schedule!r}"
    instead = "write jnp.where(step < 100, 0.1, 0.01), or use jaxsgd.StepDecay"
    needs = "needs the value of the step or of one of its numbers (in an if, int() or NumPy)"
    with validation.traced(f"{what} {needs}", instead):
        value = schedule(count)
    if hasattr(value, "__jax_array__"):
        value = jnp.asarray(value)
    if not isinstance(value, jax.Array):
        validation.number(value, name)
    elif not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"{name} is of {value.dtype}, expected a real number")
    return _float_scalar(value, name)


def scalar(value: ArrayLike | None, name: str) -> Num[Array, ""]:
    """A number as an array, where it is used.

    Raises:
      TypeError: it is None.
      ValueError: it is several numbers, which no `jax.vmap` has mapped over.
    """
    if value is None:
        raise TypeError(f"{name} is None, expected a number")
    value = jnp.asarray(value)
    if value.ndim:
        raise ValueError(
            f"{name} has shape {value.shape}, expected one number; map over several with jax.vmap"
        )
    return value


def _float_scalar(value: ArrayLike | None, name: str) -> Float[Array, ""]:
    value = scalar(value, name)
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def _as_floats(schedule: object, step: Int[Array, ""] | int, *names: str) -> list[Float[Array, ""]]:
    """The step and constants of a schedule in the default float dtype, in which it is computed."""
    kind, dtype = type(schedule).__name__, jax.dtypes.canonicalize_dtype(float)
    constants = [scalar(getattr(schedule, n), f"{kind}'s {n}").astype(dtype) for n in names]
    return [jnp.asarray(step).astype(dtype), *constants]


@part
class LinearDecay:
    """`(1 - t/steps) initial + (t/steps) final` up to t = steps, then `final`.

    Goodfellow, Bengio and Courville, "Deep Learning" (2016), equation 8.14.

    Args:
      initial: the rate of the first step.
      final: the rate from step `steps` on.
      steps: at least 1; a leaf.

    >>> float(jaxsgd.LinearDecay(0.1, 0.02, steps=100)(50))
    0.06
    """

    initial: Number = number(converter=validation.real())
    final: Number = number(converter=validation.real())
    steps: Number = number(converter=validation.real(1))

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, initial, final, steps = _as_floats(self, step, "initial", "final", "steps")
        passed = jnp.minimum(step / steps, 1)
        return (1 - passed) * initial + passed * final


@part
class CosineDecay:
    """`final + (initial - final) (1 + cos(pi t/steps)) / 2` up to t = steps, then `final`.

    Half a cosine, as in Loshchilov and Hutter, "SGDR" (2017), without restarts. Optax:
    `cosine_decay_schedule(initial, steps, alpha=final / initial)`.

    Args: as `LinearDecay`.

    >>> float(jaxsgd.CosineDecay(0.1, 0.0, steps=100)(50))
    0.05
    """

    initial: Number = number(converter=validation.real())
    final: Number = number(converter=validation.real())
    steps: Number = number(converter=validation.real(1))

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, initial, final, steps = _as_floats(self, step, "initial", "final", "steps")
        return _cosine(initial, final, jnp.minimum(step / steps, 1))


@part
class WarmRestarts:
    """Cosines from `initial` to `final`, one after another, each `factor` times as long.

    `final + (initial - final) (1 + cos(pi u)) / 2`, where u is the fraction of the cycle that has
    passed; cycle i has `steps * factor^i` steps and starts at `initial` again.
    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2017).

    Args:
      initial: the rate at each restart.
      final: the rate that each cycle runs down to.
      steps: the length of the first cycle, at least 1.
      factor: at least 1. In float32 a restart may come one step early where t exceeds 100,000.
        Derivatives with respect to steps and factor are those within a cycle; jumps have none.

    >>> rates = jax.vmap(jaxsgd.WarmRestarts(1.0, 0.0, steps=2, factor=2.0))(jnp.arange(7))
    >>> rates.round(3).tolist()
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    initial: Number = number(converter=validation.real())
    final: Number = number(converter=validation.real())
    steps: Number = number(converter=validation.real(1))
    factor: Number = number(default=1.0, converter=validation.real(1))

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, initial, final, steps, factor = _as_floats(
            self, step, "initial", "final", "steps", "factor"
        )
        is_growing = factor > 1
        growth = jnp.where(is_growing, factor, 2.0)  # 2 where unused: no division by 0

        def start(cycle: Float[Array, ""]) -> Float[Array, ""]:
            return steps * jnp.where(is_growing, (growth**cycle - 1) / (growth - 1), cycle)

        grown = jnp.floor(jnp.log1p(step * (growth - 1) / steps) / jnp.log(growth))
        cycle = jnp.where(is_growing, grown, jnp.floor(step / steps))
        # the logarithm may be off by a rounding at a restart, which must not come one step late
        slack = jnp.where(is_growing, step * (1 + 8 * jnp.finfo(steps.dtype).eps), step)
        cycle = jnp.where(start(cycle + 1) <= slack, cycle + 1, cycle)
        cycle = jnp.where(start(cycle) > slack, cycle - 1, cycle)
        cycle = jax.lax.stop_gradient(cycle)
        passed = (step - start(cycle)) / (steps * jnp.where(is_growing, growth**cycle, 1.0))
        return _cosine(initial, final, jnp.clip(passed, 0, 1))


def _cosine(
    initial: Float[Array, ""], final: Float[Array, ""], passed: Float[Array, ""]
) -> Float[Array, ""]:
    return final + (initial - final) * (1 + jnp.cos(jnp.pi * passed)) / 2


@part
class InverseTimeDecay:
    """`initial / (1 + decay t)`: its sum diverges and that of its squares converges.

    Those are the conditions of Robbins and Monro, "A stochastic approximation method" (1951), for
    convergence to the minimum.

    Args:
      initial: the rate of the first step.
      decay: rho, per step.

    >>> float(jaxsgd.InverseTimeDecay(0.1, 0.01)(100))
    0.05
    """

    initial: Number = number(converter=validation.real())
    decay: Number = number(converter=validation.real())

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, initial, decay = _as_floats(self, step, "initial", "decay")
        return initial / (1 + decay * step)


@part
class CompoundDecay:
    """The recursion `a(t+1) = a(t) / (1 + decay t)` from `a(0) = initial`.

    Each step divides the rate of the step before, so that a(t) falls faster than any exponential
    and the sum of all rates is finite: the parameters stop short of the minimum, however long the
    run. This recursion is often used where `InverseTimeDecay` is meant.

    It is computed without a loop. With u = decay t it is `log a(t) = log initial - [((1 + u)
    log1p(u) - u) / decay - log1p(u) / 2 - decay u / (12 (1 + u))]` (Euler and Maclaurin), to 3e-6,
    for decay <= 0.1; for a larger decay the logarithm of the gamma function is used.

    Args: as `InverseTimeDecay`.

    >>> rates = jax.vmap(jaxsgd.CompoundDecay(1.0, 1.0))(jnp.arange(4))  # 1, 1/1, 1/2, 1/6
    >>> rates.round(4).tolist()
    [1.0, 1.0, 0.5, 0.1667]
    """

    initial: Number = number(converter=validation.real())
    decay: Number = number(converter=validation.real())

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, initial, decay = _as_floats(self, step, "initial", "decay")
        slow = jnp.where(decay <= 0.1, decay, 0.1)  # each branch gets values in its domain only
        fast = jnp.where(decay <= 0.1, 1.0, decay)
        u = slow * step
        near, far = jnp.minimum(u, 0.1), jnp.maximum(u, 0.1)
        # the sum's integral; near 0 by its series, where (1 + u) log1p(u) - u cancels
        series = sum((-near) ** k / ((k + 1) * (k + 2)) for k in range(9))
        closed = ((1 + far) * jnp.log1p(far) - far) / jnp.where(u > 0.1, slow, 1.0)
        integral = jnp.where(u > 0.1, closed, step * u * series)
        log_slow = integral - jnp.log1p(u) / 2 - slow * u / (12 * (1 + u))
        log_fast = gammaln(1 / fast + step) - gammaln(1 / fast) + step * jnp.log(fast)
        return initial * jnp.exp(-jnp.where(decay <= 0.1, log_slow, log_fast))


@part
class ExponentialDecay:
    """`initial * exp(-decay t)`; its sum is finite, so that the parameters stop in the end.

    Args: as `InverseTimeDecay`.

    >>> float(jaxsgd.ExponentialDecay(1.0, 0.5)(2))
    0.36787944
    """

    initial: Number = number(converter=validation.real())
    decay: Number = number(converter=validation.real())

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, initial, decay = _as_floats(self, step, "initial", "decay")
        return initial * jnp.exp(-decay * step)


@part
class StepDecay:
    """`initial * factor^floor(t / period)`: a staircase.

    Args:
      initial: the rate of the first `period` steps.
      factor: at least 0.
      period: steps per stair, whole and at least 1; a leaf, whose derivative is 0.

    >>> jax.vmap(jaxsgd.StepDecay(1.0, 0.5, period=2))(jnp.arange(5)).tolist()
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    initial: Number = number(converter=validation.real())
    factor: Number = number(converter=validation.real())
    period: Number = field(converter=validation.whole_number(1))

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        stair = jnp.floor_divide(step, scalar(self.period, "StepDecay's period"))
        _, initial, factor = _as_floats(self, step, "initial", "factor")
        return initial * factor ** stair.astype(initial.dtype)


@part
class Warmup:
    """A ramp `schedule(0) (t + 1) / (steps + 1)` of `steps` steps, then `schedule(t - steps)`.

    The first step has a rate above 0, and the schedule starts at its step 0 after the ramp.
    Goyal et al., "Accurate, large minibatch SGD" (2017).

    Args:
      schedule: a schedule, or a number for a constant rate.
      steps: the length of the ramp, at least 0; a leaf.

    >>> rates = jax.vmap(jaxsgd.Warmup(jaxsgd.StepDecay(1.0, 0.5, period=2), 3))(jnp.arange(7))
    >>> rates.tolist()
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]
    """

    schedule: Rate = number(converter=as_rate)
    steps: Number = field(default=0, converter=validation.whole_number(0))

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        step, steps = jnp.asarray(step), scalar(self.steps, "Warmup's steps")
        rate, _ = rate_at(self.schedule, jnp.maximum(step - steps, 0))
        dtype = jax.dtypes.canonicalize_dtype(float)
        ramp = jnp.minimum((step + 1).astype(dtype) / (steps.astype(dtype) + 1), 1)
        return rate.astype(dtype) * ramp
