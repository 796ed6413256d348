"""Numbers that depend on the step.

Wherever a rule takes a rate, it takes a number or a schedule: any callable of the step t (int32[],
0 at the first step) that returns a number. A plain function, such as Optax's schedules, is static:
another one compiles again. The parts below, and any callable pytree, keep their constants as
leaves: another constant compiles nothing, and they can be swept and differentiated.

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, Int

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable, field, number, part

Number = float | Float[Array, "..."] | np.ndarray  # stacked numbers wait for a vmap
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]
Rate = Number | Schedule


def as_rate(rate: Rate, name: str = "learning_rate") -> Rate:
    """A number of at least 0, or a schedule, as it is; a plain function as a static part."""
    if callable(rate):
        return as_callable(rate, name)
    validation.number(rate, name)
    return rate


def init_count(rate: Any) -> jax.Array | None:
    """The step counter that a rate needs: None for a number."""
    return jnp.zeros((), jnp.int32) if callable(rate) else None


def rate_at(rate: Any, count: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """The rate in use at a count, and the count after it."""
    if not callable(rate):
        return scalar(rate, "learning_rate"), count if count is None else count + 1
    if count is None:
        raise ValueError(
            f"the rate is the schedule {rate!r}, but the rule's state counts no steps: it was made "
            "for a rate that is a number; make one with the rule's init"
        )
    return scalar(rate(count), "the schedule's rate"), count + 1


def scalar(value: Any, name: str) -> jax.Array:
    """A number at its use, where stacked ones have been vmapped."""
    if value is None:
        raise TypeError(f"{name} is None, expected a number")
    value = jnp.asarray(value)
    if value.ndim:
        raise ValueError(
            f"{name} has shape {value.shape}, expected one number; stacked numbers wait for a vmap"
        )
    return value


def _wide(schedule: Any, step: Any, *names: str) -> list[jax.Array]:
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

    def __call__(self, step: Any) -> jax.Array:
        step, initial, final, steps = _wide(self, step, "initial", "final", "steps")
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

    def __call__(self, step: Any) -> jax.Array:
        step, initial, final, steps = _wide(self, step, "initial", "final", "steps")
        return _cosine(initial, final, jnp.minimum(step / steps, 1))


@part
class WarmRestarts:
    """Cosines from `initial` to `final`, one after another, each `factor` times as long.

    `final + (initial - final) (1 + cos(pi u)) / 2`, where u is the part of the cycle that has
    passed; cycle i has `steps * factor^i` steps and starts at `initial` again.
    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts" (2017).

    Args:
      initial: the rate at each restart.
      final: the rate that each cycle runs down to.
      steps: the first cycle's, at least 1.
      factor: at least 1. In float32 a restart may come a step early where t passes 100,000. Slopes
        with respect to steps and factor are those within a cycle: the jumps have none.

    >>> rates = jax.vmap(jaxsgd.WarmRestarts(1.0, 0.0, steps=2, factor=2.0))(jnp.arange(7))
    >>> rates.round(3).tolist()
    [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    initial: Number = number(converter=validation.real())
    final: Number = number(converter=validation.real())
    steps: Number = number(converter=validation.real(1))
    factor: Number = number(default=1.0, converter=validation.real(1))

    def __call__(self, step: Any) -> jax.Array:
        step, initial, final, steps, factor = _wide(
            self, step, "initial", "final", "steps", "factor"
        )
        is_growing = factor > 1
        growth = jnp.where(is_growing, factor, 2.0)  # any other value, where it is not used

        def start(cycle: jax.Array) -> jax.Array:
            return steps * jnp.where(is_growing, (growth**cycle - 1) / (growth - 1), cycle)

        grown = jnp.floor(jnp.log1p(step * (growth - 1) / steps) / jnp.log(growth))
        cycle = jnp.where(is_growing, grown, jnp.floor(step / steps))
        # the logarithm may err by a rounding at a restart, which must not come a step late
        slack = jnp.where(is_growing, step * (1 + 8 * jnp.finfo(steps.dtype).eps), step)
        cycle = jnp.where(start(cycle + 1) <= slack, cycle + 1, cycle)
        cycle = jnp.where(start(cycle) > slack, cycle - 1, cycle)
        cycle = jax.lax.stop_gradient(cycle)
        passed = (step - start(cycle)) / (steps * jnp.where(is_growing, growth**cycle, 1.0))
        return _cosine(initial, final, jnp.clip(passed, 0, 1))


def _cosine(initial: jax.Array, final: jax.Array, passed: jax.Array) -> jax.Array:
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

    def __call__(self, step: Any) -> jax.Array:
        step, initial, decay = _wide(self, step, "initial", "decay")
        return initial / (1 + decay * step)


@part
class CompoundDecay:
    """The recursion `a(t+1) = a(t) / (1 + decay t)` from `a(0) = initial`; it freezes.

    Each step divides what the last one left, so that a(t) falls faster than any exponential and the
    sum of all rates is finite: the parameters stop before the minimum, however long the run. Often
    written where `InverseTimeDecay` is meant.

    Without a loop, with u = decay t: `log a(t) = log initial - [((1 + u) log1p(u) - u) / decay
    - log1p(u) / 2 - decay u / (12 (1 + u))]` (Euler and Maclaurin), to 3e-6, for decay <= 0.1; by
    the logarithm of the gamma function above it.

    Args: as `InverseTimeDecay`.

    >>> rates = jax.vmap(jaxsgd.CompoundDecay(1.0, 1.0))(jnp.arange(4))  # 1, 1/1, 1/2, 1/6
    >>> rates.round(4).tolist()
    [1.0, 1.0, 0.5, 0.1667]
    """

    initial: Number = number(converter=validation.real())
    decay: Number = number(converter=validation.real())

    def __call__(self, step: Any) -> jax.Array:
        step, initial, decay = _wide(self, step, "initial", "decay")
        slow = jnp.where(decay <= 0.1, decay, 0.1)  # each branch sees only what it can take
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
    """`initial * exp(-decay t)`; its sum is finite, so that it freezes in the end.

    Args: as `InverseTimeDecay`.

    >>> float(jaxsgd.ExponentialDecay(1.0, 0.5)(2))
    0.36787944
    """

    initial: Number = number(converter=validation.real())
    decay: Number = number(converter=validation.real())

    def __call__(self, step: Any) -> jax.Array:
        step, initial, decay = _wide(self, step, "initial", "decay")
        return initial * jnp.exp(-decay * step)


@part
class StepDecay:
    """`initial * factor^floor(t / period)`: a staircase.

    Args:
      initial: the rate of the first `period` steps.
      factor: at least 0.
      period: steps per stair, whole and at least 1; a leaf, of slope 0.

    >>> jax.vmap(jaxsgd.StepDecay(1.0, 0.5, period=2))(jnp.arange(5)).tolist()
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    initial: Number = number(converter=validation.real())
    factor: Number = number(converter=validation.real())
    period: Any = field(converter=validation.whole_number(1))

    def __call__(self, step: Any) -> jax.Array:
        stair = jnp.floor_divide(step, scalar(self.period, "StepDecay's period"))
        _, initial, factor = _wide(self, step, "initial", "factor")
        return initial * factor ** stair.astype(initial.dtype)


@part
class Warmup:
    """A ramp `schedule(0) (t + 1) / (steps + 1)` of `steps` steps, then `schedule(t - steps)`.

    The first step is no wasted one of rate 0, and the schedule starts from its own step 0.
    Goyal et al., "Accurate, large minibatch SGD" (2017).

    Args:
      schedule: a schedule, or a number to stay at.
      steps: of the ramp, at least 0; a leaf.

    >>> rates = jax.vmap(jaxsgd.Warmup(jaxsgd.StepDecay(1.0, 0.5, period=2), 3))(jnp.arange(7))
    >>> rates.tolist()
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.5, 0.5]
    """

    schedule: Rate = number(converter=as_rate)
    steps: Any = field(default=0, converter=validation.whole_number(0))

    def __call__(self, step: Any) -> jax.Array:
        steps = scalar(self.steps, "Warmup's steps")
        rate, _ = rate_at(self.schedule, jnp.maximum(step - steps, 0))
        dtype = jax.dtypes.canonicalize_dtype(float)
        ramp = jnp.minimum((step + 1).astype(dtype) / (steps.astype(dtype) + 1), 1)
        return rate.astype(dtype) * ramp
