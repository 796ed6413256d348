"""The update: from gradients to what is added to the parameters.

A rule has Optax's protocol, so it can be used in `optax.chain`. `adaptive` has the rules with a
learning rate for each parameter, and `from_optax` makes rules of Optax's transformations. In the
first-order form x_t = x_0 + sum_i Gamma_i g_i, the rules here have one number Gamma_i for all
parameters. Accumulators and numbers are float32 (float64 where the parameter is float64), also for
bfloat16 parameters: in bfloat16 a decay of 0.999 would be 1.
"""

from typing import Any, ClassVar, NamedTuple

import jax
from jaxtyping import Array, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import number, part
from jaxsgd.core.trees import accumulate
from jaxsgd.core.validation import Number
from jaxsgd.rules.base import ScheduledRule, zeros_like
from jaxsgd.schedules import Rate, as_rate, init_count, rate_at, scalar


class SGDState(NamedTuple):
    """The step counter of a scheduled rate; None for a number."""

    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class SGD(ScheduledRule):
    """Gradient descent: `params' = params - learning_rate * grads`.

    Robbins and Monro, "A stochastic approximation method" (1951). Optax: `sgd(learning_rate)`.

    Args:
      learning_rate: a number of at least 0, or a schedule.

    Raises:
      ValueError: a learning rate that is negative or not finite.

    >>> rule = jaxsgd.SGD(0.1)
    >>> updates, state = rule.update(jnp.array([1.0, -2.0]), rule.init(jnp.zeros(2)), jnp.zeros(2))
    >>> updates.round(3).tolist()
    [-0.10000000149011612, 0.20000000298023224]
    """

    _elsewhere: ClassVar[dict[str, str]] = {
        "momentum": "jaxsgd.Momentum(learning_rate, momentum)",
        "nesterov": "jaxsgd.Nesterov(learning_rate, momentum)",
        "weight_decay": "the solver's penalty=jaxsgd.L2(strength)",
    }

    learning_rate: Rate = number(converter=as_rate)

    def init(self, params: PyTree) -> SGDState:
        """The state before the first step."""
        return SGDState(init_count(self.learning_rate))

    def update(
        self, grads: PyTree, state: SGDState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, SGDState]:
        """The updates, in the accumulator's dtype, and the state after them."""
        rate, count = rate_at(self.learning_rate, state.count)
        updates = jax.tree.map(lambda g: -rate.astype(g.dtype) * g, accumulate(grads))
        return updates, SGDState(count)


class MomentumState(NamedTuple):
    """The velocity (like params, accumulator's dtype), and the counter of a scheduled rate."""

    velocity: PyTree
    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class Momentum(ScheduledRule):
    """Momentum, velocity form: `v' = momentum v - learning_rate grads`, `params' = params + v'`.

    The rate is inside the velocity: a change of rate acts on new gradients only. Optax's
    `sgd(learning_rate, momentum)` has it outside, which is the same until the rate changes. The
    updates of a constant gradient g converge to `-learning_rate * g / (1 - momentum)`.

    Polyak, "Some methods of speeding up the convergence of iteration methods" (1964).

    Args:
      learning_rate: a number of at least 0, or a schedule.
      momentum: a number, 0 to 1.

    Raises:
      ValueError: a negative rate, or a momentum outside 0 to 1.

    >>> rule = jaxsgd.Momentum(0.5, 0.5)
    >>> state = rule.init(jnp.zeros(()))
    >>> for _ in range(3):
    ...     updates, state = rule.update(jnp.ones(()), state)
    >>> float(updates)
    -0.875
    """

    learning_rate: Rate = number(converter=as_rate)
    momentum: Number = number(default=0.9, converter=validation.real(0, 1))

    def init(self, params: PyTree) -> MomentumState:
        """The state before the first step: no velocity."""
        return MomentumState(zeros_like(params), init_count(self.learning_rate))

    def update(
        self, grads: PyTree, state: MomentumState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, MomentumState]:
        """The updates, which are the new velocity, and the state after them."""
        rate, count = rate_at(self.learning_rate, state.count)
        momentum = scalar(self.momentum, "momentum")
        velocity = jax.tree.map(
            lambda v, g: momentum.astype(v.dtype) * v - rate.astype(v.dtype) * g,
            state.velocity,
            accumulate(grads),
        )
        return velocity, MomentumState(velocity, count)


class NesterovState(NamedTuple):
    """The velocity (like params, accumulator's dtype), and the counter of a scheduled rate."""

    velocity: PyTree
    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class Nesterov(ScheduledRule):
    """Nesterov's momentum: the gradient is taken at the point ahead, `theta + momentum v`.

    `v' = momentum v - learning_rate grad(theta + momentum v)`, `theta' = theta + v'`. A rule is
    given the gradient at the parameters, so these are the points ahead, `x = theta + momentum v`,
    and the same steps read `x' = x + momentum v' - learning_rate grads`; the textbook's theta is
    `params - momentum * state.velocity`. Optax's `sgd(learning_rate, momentum, nesterov=True)` has
    the rate outside the velocity, which is the same until the rate changes.

    Nesterov (1983), in the form of Sutskever, Martens, Dahl and Hinton, "On the importance of
    initialization and momentum in deep learning" (2013).

    Args: as `Momentum`.

    Raises:
      ValueError: a negative rate, or a momentum outside 0 to 1.

    >>> rule = jaxsgd.Nesterov(0.5, 0.5)
    >>> updates, state = rule.update(jnp.ones(()), rule.init(jnp.zeros(())))
    >>> float(updates), float(state.velocity)
    (-0.75, -0.5)
    """

    learning_rate: Rate = number(converter=as_rate)
    momentum: Number = number(default=0.9, converter=validation.real(0, 1))

    def init(self, params: PyTree) -> NesterovState:
        """The state before the first step: no velocity."""
        return NesterovState(zeros_like(params), init_count(self.learning_rate))

    def update(
        self, grads: PyTree, state: NesterovState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, NesterovState]:
        """The updates, `momentum v' - learning_rate grads`, and the state after them."""
        rate, count = rate_at(self.learning_rate, state.count)
        momentum = scalar(self.momentum, "momentum")
        step = lambda v, g: momentum.astype(v.dtype) * v - rate.astype(v.dtype) * g  # noqa: E731
        grads = accumulate(grads)
        velocity = jax.tree.map(step, state.velocity, grads)
        return jax.tree.map(step, velocity, grads), NesterovState(velocity, count)
