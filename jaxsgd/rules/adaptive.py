"""Rules with a learning rate for each parameter, from the squares of its gradients.

In the first-order form x_t = x_0 + sum_i Gamma_i g_i their Gamma_i is a diagonal matrix that
follows from the state. `eps` is added to the root, never under it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import number, part
from jaxsgd.core.trees import accumulate
from jaxsgd.core.validation import Number
from jaxsgd.rules.base import ScheduledRule, zeros_like
from jaxsgd.schedules import Rate, as_rate, init_count, rate_at, scalar


class AdaGradState(NamedTuple):
    """The sum of squared gradients (like params), and the counter of a scheduled rate."""

    square: PyTree
    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class AdaGrad(ScheduledRule):
    """AdaGrad: `s' = s + grads^2`, `params' = params - learning_rate grads / (sqrt(s') + eps)`.

    Duchi, Hazan and Singer, "Adaptive subgradient methods" (2011). Optax's `adagrad` starts s at
    0.1 and has eps under the root: with `initial_accumulator_value=0` and eps = 0 it is this.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      eps: at least 0.

    Raises:
      ValueError: a negative rate or eps.

    >>> rule = jaxsgd.AdaGrad(0.5)
    >>> updates, state = rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))
    >>> updates.round(4).tolist(), state.square.tolist()
    ([-0.5, 0.5], [9.0, 16.0])
    """

    learning_rate: Rate = number(default=0.01, converter=as_rate)
    eps: Number = number(default=1e-7, converter=validation.real())

    def init(self, params: PyTree) -> AdaGradState:
        """The state before the first step: no squares."""
        return AdaGradState(zeros_like(params), init_count(self.learning_rate))

    def update(
        self, grads: PyTree, state: AdaGradState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AdaGradState]:
        """The updates, in the accumulator's dtype, and the state after them."""
        rate, count = rate_at(self.learning_rate, state.count)
        grads = accumulate(grads)
        square = jax.tree.map(lambda s, g: s + g * g, state.square, grads)
        updates = jax.tree.map(lambda g, s: _scaled(g, s, rate, self.eps), grads, square)
        return updates, AdaGradState(square, count)


class RMSPropState(NamedTuple):
    """The running mean of squared gradients (like params), and the counter of a scheduled rate."""

    square: PyTree
    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class RMSProp(ScheduledRule):
    """RMSProp: `s' = decay s + (1 - decay) grads^2`, then as AdaGrad.

    `params' = params - learning_rate grads / (sqrt(s') + eps)`. Tieleman and Hinton, lecture 6.5 of
    "Neural networks for machine learning" (2012). Optax: `rmsprop(..., eps_in_sqrt=False)`.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      decay: 0 to 1.
      eps: at least 0.

    Raises:
      ValueError: a negative rate or eps, or a decay outside 0 to 1.

    >>> rule = jaxsgd.RMSProp(0.5, decay=0.75)
    >>> updates, state = rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))
    >>> updates.round(4).tolist(), state.square.tolist()
    ([-1.0, 1.0], [2.25, 4.0])
    """

    learning_rate: Rate = number(default=0.001, converter=as_rate)
    decay: Number = number(default=0.9, converter=validation.real(0, 1))
    eps: Number = number(default=1e-8, converter=validation.real())

    def init(self, params: PyTree) -> RMSPropState:
        """The state before the first step: no squares."""
        return RMSPropState(zeros_like(params), init_count(self.learning_rate))

    def update(
        self, grads: PyTree, state: RMSPropState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, RMSPropState]:
        """The updates, in the accumulator's dtype, and the state after them."""
        rate, count = rate_at(self.learning_rate, state.count)
        grads = accumulate(grads)
        square = jax.tree.map(
            lambda s, g: _running(s, g * g, self.decay, "decay"), state.square, grads
        )
        updates = jax.tree.map(lambda g, s: _scaled(g, s, rate, self.eps), grads, square)
        return updates, RMSPropState(square, count)


class AdamState(NamedTuple):
    """The running means of gradients and their squares (like params), and the step counter."""

    mean: PyTree
    square: PyTree
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class Adam(ScheduledRule):
    """Adam: `m' = b1 m + (1 - b1) grads`, `s' = b2 s + (1 - b2) grads^2`, both without their bias.

    `params' = params - learning_rate mhat / (sqrt(shat) + eps)` with `mhat = m' / (1 - b1^(t+1))`
    and `shat = s' / (1 - b2^(t+1))`, t = 0 at the first step. Kingma and Ba, "Adam: a method for
    stochastic optimization" (2015). Optax: `adam`.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: of the mean, 0 or more and below 1.
      b2: of the squares, 0 or more and below 1.
      eps: at least 0.

    Raises:
      ValueError: a negative rate or eps, or a b1 or b2 that is not 0 or more and below 1.

    >>> rule = jaxsgd.Adam(0.5)
    >>> updates, state = rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))
    >>> updates.round(4).tolist(), int(state.count)
    ([-0.5, 0.5], 1)
    """

    learning_rate: Rate = number(default=0.001, converter=as_rate)
    b1: Number = number(default=0.9, converter=validation.real(below=1))
    b2: Number = number(default=0.999, converter=validation.real(below=1))
    eps: Number = number(default=1e-8, converter=validation.real())

    def init(self, params: PyTree) -> AdamState:
        """The state before the first step: no means."""
        return AdamState(zeros_like(params), zeros_like(params), jnp.zeros((), jnp.int32))

    def update(
        self, grads: PyTree, state: AdamState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AdamState]:
        """The updates, in the accumulator's dtype, and the state after them."""
        rate, _ = rate_at(self.learning_rate, state.count)
        count, grads = state.count + 1, accumulate(grads)
        mean = jax.tree.map(lambda m, g: _running(m, g, self.b1, "b1"), state.mean, grads)
        square = jax.tree.map(lambda s, g: _running(s, g * g, self.b2, "b2"), state.square, grads)

        def unbiased(x: jax.Array, decay: Number) -> jax.Array:
            return x / (1 - jnp.asarray(decay, x.dtype) ** count.astype(x.dtype))

        updates = jax.tree.map(
            lambda m, s: _scaled(unbiased(m, self.b1), unbiased(s, self.b2), rate, self.eps),
            mean,
            square,
        )
        return updates, AdamState(mean, square, count)


def _running(mean: jax.Array, value: jax.Array, decay: Number, name: str) -> jax.Array:
    decay = scalar(decay, name).astype(mean.dtype)
    return decay * mean + (1 - decay) * value


def _scaled(grad: jax.Array, square: jax.Array, rate: Float[Array, ""], eps: Number) -> jax.Array:
    """`-rate grad / (sqrt(square) + eps)`, where 0/0 is 0."""
    # the root has no derivative at 0: where a feature is never seen, that of a run would be NaN
    is_seen = square != 0  # a NaN counts as seen
    root = jnp.where(is_seen, jnp.sqrt(jnp.where(is_seen, square, 1)), 0)
    divisor = root + scalar(eps, "eps").astype(square.dtype)
    return -rate.astype(square.dtype) * jnp.where(
        divisor != 0, grad / jnp.where(divisor != 0, divisor, 1), 0
    )
