"""Averages of the parameters along a run, for any rule; the run itself is unchanged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import field, number, part
from jaxsgd.core.records import State
from jaxsgd.core.trees import accumulate
from jaxsgd.core.validation import Number
from jaxsgd.rules.base import Rule
from jaxsgd.rules.from_optax import as_rule
from jaxsgd.schedules import scalar


class AverageState(NamedTuple):
    """The state of the rule inside, and the average (like params, accumulator's dtype)."""

    rule: PyTree
    average: PyTree
    count: Int[Array, ""]  # pyright: ignore[reportIncompatibleMethodOverride]


@part
class TailAverage(Rule):
    """The mean of the parameters after each of the steps from `start` on; before, the parameters.

    `average' = average + (params' - average) / (t - start + 1)`. With a constant rate, or one that
    falls slowly, the loss of the average goes below the floor at which that of SGD fluctuates. The
    first steps, far from the minimum, do not belong in it, so start late. `averaged(state)` returns
    it. An average of a lasso's parameters has few exact zeros.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992).

    Args:
      rule: a rule, or any Optax transformation. This wrapper is the outermost: it sees the updates
        that are added to the parameters.
      start: the first step whose parameters count, at least 0; a leaf.

    >>> rule = jaxsgd.TailAverage(jaxsgd.SGD(0.5), start=1)
    >>> solver = jaxsgd.Solver(lambda theta, y: (theta - y) ** 2, jaxsgd.Sequential(1), rule)
    >>> y = jnp.array([1.0, 3.0])
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> state, path = jaxsgd.run(solver, state, y, 5, lambda state, info: state.params)
    >>> path.tolist(), float(jaxsgd.averaged(state))
    ([1.0, 3.0, 1.0, 3.0, 1.0], 2.0)
    """

    rule: Rule = field(converter=as_rule, wraps=True)
    start: Number = field(default=0, converter=validation.whole_number(0))

    def init(self, params: PyTree) -> AverageState:
        """The state before the first step: the average is the start."""
        return _init(self, params)

    def update(
        self, grads: PyTree, state: AverageState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        """The rule's updates, and the state after them."""
        start = scalar(self.start, "TailAverage's start")
        seen = jnp.maximum(state.count - start, 0) + 1
        return _update(self, grads, state, params, extra, lambda dtype: 1 / seen.astype(dtype))


@part
class EMA(Rule):
    """The exponential moving average `m' = decay m + (1 - decay) params'` from m = 0, unbiased.

    The average is `m' / (1 - decay^(t+1))`, as in Adam: the mean of the parameters after the steps
    0 to t, with weights that fall by the factor `decay` per step into the past, which is about the
    last 1 / (1 - decay) steps. `averaged(state)` returns it.

    Args:
      rule: a rule, or any Optax transformation; as in `TailAverage`.
      decay: 0 or more and below 1.

    >>> rule = jaxsgd.EMA(jaxsgd.SGD(0.5), decay=0.5)
    >>> params = jnp.array(1.0)
    >>> state = rule.init(params)
    >>> for params in (jnp.array(1.0), jnp.array(0.0)):
    ...     _, state = rule.update(jnp.array(2.0), state, params)  # to 0, then to -1
    >>> float(state.average)
    -0.6666667
    """

    rule: Rule = field(converter=as_rule, wraps=True)
    decay: Number = number(default=0.999, converter=validation.real(below=1))

    def init(self, params: PyTree) -> AverageState:
        """The state before the first step: the average is the start."""
        return _init(self, params)

    def update(
        self, grads: PyTree, state: AverageState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        """The rule's updates, and the state after them."""
        decay = scalar(self.decay, "EMA's decay")

        def weight(dtype: np.dtype) -> Float[Array, ""]:
            kept = decay.astype(dtype)
            return (1 - kept) / (1 - kept ** (state.count + 1).astype(dtype))

        return _update(self, grads, state, params, extra, weight)


def averaged(state: State) -> PyTree:
    """The averaged parameters of a run's state, in the dtypes of its parameters.

    Raises:
      TypeError: the argument is not a `State`, but a fit's result, say.
      ValueError: the rule of the run keeps no average.

    >>> solver = jaxsgd.Solver(lambda theta, y: (theta - y) ** 2, jaxsgd.FullBatch(),
    ...                        jaxsgd.EMA(jaxsgd.SGD(0.5), decay=0.5))
    >>> state = solver.init(jnp.zeros(()), jnp.ones(1), key=jax.random.key(0))
    >>> float(jaxsgd.averaged(jaxsgd.run(solver, state, jnp.ones(1), 1)[0]))
    1.0
    """
    if not isinstance(state, State):
        raise TypeError(
            f"averaged was given a {type(state).__name__}, expected a State, such as result.state"
        )
    average = find_average(state.rule)
    if average is None:
        raise ValueError(
            "the state holds no averaged parameters, expected that of a run whose rule is "
            "TailAverage(rule) or EMA(rule)"
        )
    return jax.tree.map(lambda x, p: x.astype(p.dtype), average.average, state.params)


def find_average(rule_state: PyTree) -> AverageState | None:
    """The outermost average in a rule's state, or None."""
    is_average = lambda node: isinstance(node, AverageState)  # noqa: E731
    leaves = jax.tree.leaves(rule_state, is_leaf=is_average)
    return next((leaf for leaf in leaves if is_average(leaf)), None)


def _init(wrapper: TailAverage | EMA, params: PyTree) -> AverageState:
    average = jax.tree.map(jnp.copy, accumulate(params))  # a separate buffer, so it can be donated
    return AverageState(wrapper.rule.init(params), average, jnp.zeros((), jnp.int32))


def _update(
    wrapper: TailAverage | EMA,
    grads: PyTree,
    state: AverageState,
    params: PyTree,
    extra: dict[str, PyTree],
    weight: Callable[[np.dtype], Float[Array, ""]],
) -> tuple[PyTree, AverageState]:
    """The rule's updates, and the average moved by a weight towards the new parameters."""
    if params is None:
        name = type(wrapper).__name__
        raise ValueError(f"{name}.update was given no params, expected the parameters")
    updates, inner = wrapper.rule.update(grads, state.rule, params, **extra)
    after = accumulate(optax.apply_updates(params, updates))  # rounded as the solver rounds them
    move = lambda average, x: average + weight(x.dtype) * (x - average)  # noqa: E731
    average = jax.tree.map(move, state.average, after)
    return updates, AverageState(inner, average, state.count + 1)
