"""A learning rate by a search along the gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import number, part, static
from jaxsgd.core.trees import accumulate, accumulator_of
from jaxsgd.core.validation import Number
from jaxsgd.rules.base import Rule
from jaxsgd.schedules import scalar


class LineSearchState(NamedTuple):
    """The learning rate of the last step, 0 before the first."""

    learning_rate: Float[Array, ""]


@part
class LineSearch(Rule):
    """Steepest descent, `params' = params - a grads` with `a = argmin_a f(params - a grads)`.

    On a quadratic that is exact, `a = g.g / g.Hg`, with one Hessian-vector product (Cauchy 1847).
    Otherwise this a is the first guess of Optax's zoom search, which continues until the slope
    along the line has fallen to `slope` of its start, and the loss with it (the strong Wolfe
    conditions; Nocedal and Wright, "Numerical Optimization", 2006, chapter 3). Where no rate is
    found that lowers the loss, the rate is 0 and the parameters stay unchanged.

    f is the loss and penalty of the step's batch: with `FullBatch` the full objective. With small
    batches each step minimises the loss of its batch alone, and the run does not converge. The loss
    must be twice differentiable. A run can be differentiated in forward mode (`jax.jacfwd`), not in
    reverse. For other searches use `optax.scale_by_backtracking_linesearch` or
    `optax.scale_by_zoom_linesearch` after `optax.sgd(1.0)` in `optax.chain`.

    Args:
      slope: the search ends at this fraction of the slope at the start, 0 to 1; a leaf.
      max_steps: the most evaluations of a search; static.

    Raises:
      ValueError: a slope outside 0 to 1.

    >>> problem = jaxsgd.problems.quadratic([1.0, 10.0])
    >>> solver = jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.LineSearch())
    >>> state = solver.init(problem.params, problem.data, key=jax.random.key(0))
    >>> state, info = jaxsgd.run(solver, state, problem.data, 3, lambda state, info: info)
    >>> round(float(info.learning_rate[0]), 4)  # g.g / g.Hg = 101 / 1001
    0.1009
    """

    slope: Number = number(default=0.1, converter=validation.real(0, 1))
    max_steps: int = static(default=20, converter=validation.whole(1))

    def init(self, params: PyTree) -> LineSearchState:
        """The state before the first step."""
        return LineSearchState(jnp.zeros((), accumulator_of(params)))

    def update(
        self,
        grads: PyTree,
        state: LineSearchState,
        params: PyTree = None,
        *,
        value: Float[Array, ""] | None = None,
        value_fn: Callable[[PyTree], Float[Array, ""]] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, LineSearchState]:
        """The updates, in the accumulator's dtype, and the rate they were made with.

        `value` and `value_fn` are the objective at params and as a function of them.
        """
        if params is None or value is None or value_fn is None:
            raise ValueError(
                "LineSearch.update needs params, value= and value_fn=, the objective: use it alone "
                "as a solver's rule, for optax.chain drops them"
            )
        grads, params = accumulate(grads), accumulate(params)
        _, bent = jax.jvp(jax.grad(value_fn), (params,), (grads,))
        square, bend = (jnp.asarray(optax.tree.vdot(grads, x)) for x in (grads, bent))
        guess = square / jnp.where(bend > 0, bend, 1)
        # hardly any curvature makes a far guess: it is evaluated before the search starts from it
        ahead = value_fn(jax.tree.map(lambda p, g: p - guess.astype(g.dtype) * g, params, grads))
        slack = 4 * jnp.finfo(guess.dtype).eps * jnp.abs(value)
        is_good = (bend > 0) & (ahead <= value - 1e-4 * guess * square + slack)
        guess = jnp.where(is_good, guess, 1)
        search = optax.scale_by_zoom_linesearch(
            self.max_steps,
            curv_rtol=scalar(self.slope, "slope").astype(guess.dtype),
            initial_guess_strategy="one",
        )
        step = jax.tree.map(lambda g: -guess.astype(g.dtype) * g, grads)
        updates, found = search.update(
            step, search.init(params), params, value=value, grad=grads, value_fn=value_fn
        )
        found = cast(optax.ScaleByZoomLinesearchState, found)
        is_lower = found.value <= value + slack  # otherwise the search failed
        updates = jax.tree.map(lambda u: jnp.where(is_lower, u, 0), updates)
        rate = jnp.where(is_lower, guess * found.learning_rate, 0)
        return updates, LineSearchState(rate.astype(state.learning_rate.dtype))

    def reported_learning_rate(
        self, before: LineSearchState, after: LineSearchState
    ) -> Float[Array, ""]:
        """The learning rate that the search found."""
        return after.learning_rate
