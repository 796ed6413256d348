"""Penalties without a gradient at 0, such as L1, by a proximal step after the rule's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxsgd.core.part import field, innermost, part
from jaxsgd.core.trees import accumulate
from jaxsgd.penalties import L1, ElasticNet, ProximalPenalty
from jaxsgd.rules.base import Rule
from jaxsgd.rules.descent import SGD, Momentum, MomentumState
from jaxsgd.rules.line_search import LineSearch
from jaxsgd.schedules import rate_at


class ProximalState(NamedTuple):
    """The state of the rule inside."""

    rule: PyTree


@part
class Proximal(Rule):
    """A rule's step, then the proximal step: `params' = prox(params + updates, rate)`.

    `prox(z, rate) = argmin_q penalty(q) + |q - z|^2 / (2 rate)` at the rate in use. With `SGD` it
    is ISTA (Daubechies, Defrise and De Mol 2004); with `Momentum` iPiano (Ochs, Chen, Brox and Pock
    2014), whose velocity is the whole step taken, so that both converge to the minimum of loss +
    penalty. The loss alone is differentiated: do not give the penalty to the solver as well.

    Args:
      rule: `SGD` or `Momentum`.
      penalty: `L1`, `ElasticNet`, `L2`, or another `ProximalPenalty`.

    Raises:
      TypeError: the rule is neither, or the penalty is not a `ProximalPenalty`.

    >>> rule = jaxsgd.Proximal(jaxsgd.SGD(0.1), jaxsgd.L1(1.0))
    >>> params = jnp.array([1.0, 0.05])
    >>> updates, _ = rule.update(jnp.zeros(2), rule.init(params), params)
    >>> (params + updates).round(3).tolist()
    [0.9, 0.0]
    """

    rule: SGD | Momentum = field(wraps=True)
    penalty: ProximalPenalty = field()

    def __post_init__(self) -> None:
        if not isinstance(self.rule, SGD | Momentum):
            raise TypeError(
                f"Proximal was given the rule {self.rule!r}, expected SGD or Momentum: the "
                "proximal step needs the one rate that the gradient was multiplied by"
            )
        if not isinstance(self.penalty, ProximalPenalty):
            raise TypeError(
                f"Proximal was given the penalty {self.penalty!r}, expected one with "
                "prox(params, rate), such as jaxsgd.L1(1e-3)"
            )

    def init(self, params: PyTree) -> ProximalState:
        """The state before the first step."""
        return ProximalState(self.rule.init(params))

    def update(
        self, grads: PyTree, state: ProximalState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, ProximalState]:
        """The updates of both steps, in the accumulator's dtype, and the state after them."""
        if params is None:
            raise ValueError("Proximal.update was given no params, expected the parameters")
        rate, _ = rate_at(self.rule.learning_rate, state.rule.count)
        updates, inner = self.rule.update(grads, state.rule, params)
        params = accumulate(params)
        ahead = self.penalty.prox(jax.tree.map(jnp.add, params, updates), rate)
        updates = jax.tree.map(jnp.subtract, ahead, params)
        # The velocity is the whole displacement: with the rule's own, the run would rest where the
        # penalty counts 1 - momentum times.
        if isinstance(inner, MomentumState):
            inner = inner._replace(velocity=updates)
        return updates, ProximalState(inner)

    @property
    def proximal_penalty(self) -> ProximalPenalty:
        """The penalty."""
        return self.penalty


def check_penalty(penalty: object, rule: Rule) -> None:
    """Refuse a solver's penalty that its rule cannot minimise, or adds as well.

    Raises:
      ValueError: `L1` or `ElasticNet` with `LineSearch`, or a penalty of the same kind in both.
    """
    within = rule.proximal_penalty
    if _has_corners(penalty) and isinstance(innermost(rule), LineSearch):
        raise ValueError(
            f"the solver's penalty is {penalty!r} with LineSearch, which stops at the "
            f"corners of |params|, expected the rule Proximal(SGD(rate), {penalty!r}) and no "
            "penalty"
        )
    is_same = within is not None and type(penalty) is type(within)
    if not is_same and not (_has_corners(penalty) and _has_corners(within)):
        return
    if getattr(penalty, "mask", None) is getattr(within, "mask", None):  # of the same params
        raise ValueError(
            f"the solver's penalty is {penalty!r}, and its rule adds {within!r}, expected one of "
            "them: the penalty would count twice"
        )


def _has_corners(penalty: object) -> bool:
    if isinstance(penalty, ElasticNet):
        return not (isinstance(penalty.l1, int | float) and penalty.l1 == 0)
    return isinstance(penalty, L1)
