"""The contract of a rule: the update, from gradients to what is added to the parameters."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxsgd.core.part import Contract, default_property, wrapped_name
from jaxsgd.core.trees import accumulate
from jaxsgd.schedules import Rate, rate_at


class Rule(Contract, abc.ABC):
    """The update, by Optax's protocol. A custom rule subclasses this contract.

    A rule has the `init` and `update` of an Optax transformation, so it can be used in
    `optax.chain`; and a solver takes any Optax transformation as its rule.

    >>> @jaxsgd.part
    ... class SignDescent(jaxsgd.Rule):
    ...     learning_rate: float = jaxsgd.number()
    ...     def init(self, params):
    ...         return ()
    ...     def update(self, grads, state, params=None, **extra):
    ...         return jax.tree.map(lambda g: -self.learning_rate * jnp.sign(g), grads), state
    """

    @abc.abstractmethod
    def init(self, params: PyTree) -> PyTree:
        """The state before the first step."""

    @abc.abstractmethod
    def update(
        self, grads: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        """The updates, which are added to the parameters, and the state after them.

        Args:
          grads: like params, float32 (float64 where the parameter is float64).
          state: from `init` or the last update.
          params: the parameters before the update.
          extra: `value` (float[]), the loss and penalty of the batch; `grad`, which is `grads`; and
            `value_fn`, the objective of the batch as a function of params.
        """

    def reported_learning_rate(self, before: PyTree, after: PyTree) -> Float[Array, ""] | None:
        """The learning rate of a step, for `Info.learning_rate`; None where it is not known.

        Args:
          before, after: the states before and after the step. A wrapper's state has a field of the
            same name as the field of the rule that it wraps.
        """
        if (name := wrapped_name(self)) is None:
            return None
        inner: Rule = getattr(self, name)
        return inner.reported_learning_rate(getattr(before, name), getattr(after, name))

    @default_property
    def proximal_penalty(self) -> Callable[[PyTree], Float[Array, ""]] | None:
        """The penalty whose proximal step the rule takes, for `Info.penalty`; None by default."""
        name = wrapped_name(self)
        return None if name is None else getattr(self, name).proximal_penalty


class ScheduledRule(Rule):
    """A rule with one learning rate, a number or a schedule of the `count` in its state.

    A custom rule of this kind has a field `learning_rate`, and a state with the field `count`
    (int32[]): the number of steps taken, which `rate_at` counts. `Info.learning_rate` is the rate
    at that count.

    >>> @jaxsgd.part
    ... class Descent(jaxsgd.ScheduledRule):
    ...     learning_rate: float = jaxsgd.number()
    ...     def init(self, params):
    ...         return jaxsgd.SGD(self.learning_rate).init(params)
    ...     def update(self, grads, state, params=None, **extra):
    ...         rate, count = jaxsgd.rate_at(self.learning_rate, state.count)
    ...         return jax.tree.map(lambda g: -rate * g, grads), state._replace(count=count)
    >>> rule = Descent(jaxsgd.InverseTimeDecay(0.5, 1.0))
    >>> updates, state = rule.update(jnp.array(4.0), rule.init(jnp.array(0.0)))
    >>> float(updates), int(state.count)
    (-2.0, 1)
    """

    learning_rate: Rate

    def reported_learning_rate(self, before: PyTree, after: PyTree) -> Float[Array, ""] | None:
        """The learning rate at the count before the step."""
        return rate_at(self.learning_rate, before.count)[0]


def zeros_like(params: PyTree) -> PyTree:
    """Zeros in the accumulator's dtype."""
    return jax.tree.map(jnp.zeros_like, accumulate(params))
