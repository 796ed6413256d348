"""SVRG: a gradient whose variance vanishes at the optimum, by full gradients at times."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import field, part, static
from jaxsgd.core.records import Batch, Estimate
from jaxsgd.core.trees import accumulate
from jaxsgd.data.arrays import BatchRows, as_rows, take
from jaxsgd.gradients.accumulated import Accumulated
from jaxsgd.gradients.base import Gradient, GradientState, refuse_model_state
from jaxsgd.gradients.minibatch import MinibatchGradient
from jaxsgd.losses import Loss, RowLoss, RowsLoss, as_loss

ROWS = 4096  # of a part of a full gradient: it bounds the memory


def as_fixed_loss(loss: Loss | Callable[..., PyTree], name: str = "loss") -> RowLoss | RowsLoss:
    """A loss whose gradient at given params is always the same, row by row."""
    loss = as_loss(loss, name)
    if not isinstance(loss, RowLoss | RowsLoss) or loss.has_model_state or loss.keyed:
        raise TypeError(
            f"{name} is {loss!r}, expected a function of (params, row), a RowLoss or a RowsLoss "
            "without a key or a model state: it is compared with itself at other params"
        )
    return loss


class SVRGState(NamedTuple):
    """The parameters of the last full gradient, that gradient, and the number of steps taken."""

    params: PyTree
    grads: PyTree
    step: Int[Array, ""]
    model_state: PyTree = None


@part
class SVRG(Gradient):
    """SVRG: the change of a batch's gradient since the last full gradient, plus that gradient.

    `sum_i weight[i] (g_i(params) - g_i(before)) + 1/n sum_j g_j(before)`, `before` the params at a
    multiple of `period` steps, where the gradient of all rows is taken, in parts of 4,096.
    It is unbiased if the batch is. Its variance goes to 0 as params and `before` converge: with a
    constant rate (`Smoothness.rate`) it converges linearly where the objective is strongly convex.
    Each step costs two gradients of the batch, and every `period` steps one of all rows. If `vmap`
    batches the step counter, as in a vmapped `run_until`, each step computes the full gradient.

    Args:
      loss: a function of `(params, row)`, a `RowLoss` or a `RowsLoss`, without key or model state.
      period: steps between full gradients, at least 1: those of one or two epochs, say.

    Raises:
      TypeError: another loss, or rows that stay on the host or lie on a mesh.

    Johnson and Zhang, "Accelerating stochastic gradient descent using predictive variance
    reduction" (2013).

    >>> y = jnp.array([1.0, 3.0, 5.0, 7.0])
    >>> gradient = jaxsgd.SVRG(lambda theta, y: (theta - y) ** 2 / 2, period=4)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(1), jaxsgd.SGD(0.5))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> round(float(jaxsgd.run(solver, state, y, 40)[0].params), 3)  # the mean, not around it
    4.0
    """

    loss: RowLoss | RowsLoss = field(converter=as_fixed_loss)
    period: int = static(converter=validation.whole(1))

    sample_weight_refusal = "averages all rows by itself"
    needs_row_index = True

    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> SVRGState:
        """The state before the first step, which takes the first full gradient."""
        refuse_model_state(model_state, self)
        if not as_rows(data).is_resident:
            raise TypeError(f"SVRG's data are {data!r}, expected arrays; SAGA takes HostRows")
        wide = accumulate(params)
        zeros = jax.tree.map(jnp.zeros_like, wide)
        return SVRGState(jax.tree.map(jnp.copy, params), zeros, jnp.zeros((), jnp.int32))

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: SVRGState
    ) -> tuple[Estimate, SVRGState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        plain, none = MinibatchGradient(self.loss), GradientState()
        before, full = lax.cond(
            state.step % self.period == 0,
            lambda: (params, full_gradient(self.loss, params, data)),
            lambda: (state.params, state.grads),
        )
        rows = BatchRows(take(data, batch.index))
        estimate, _ = plain.update(params, rows, batch, none)
        old, _ = plain.update(before, rows, batch, none)
        grads = jax.tree.map(lambda g, o, f: g - o + f, estimate.grads, old.grads, full)
        return estimate._replace(grads=grads), SVRGState(before, full, state.step + 1)

    def value(self, params: PyTree, data: PyTree, batch: Batch, state: PyTree) -> Float[Array, ""]:
        """The plain loss of the same batch at other params."""
        return MinibatchGradient(self.loss).value(params, data, batch, GradientState())


def full_gradient(
    loss: Loss | Callable[..., PyTree],
    params: PyTree,
    data: PyTree,
    key: PRNGKeyArray | None = None,
) -> PyTree:
    """The gradient of the mean loss over all rows, in parts."""
    n = as_rows(data).size
    plain = MinibatchGradient(loss)
    parts = Accumulated(plain, -(-n // ROWS))
    batch = Batch(jnp.arange(n, dtype=jnp.int32), jnp.full(n, 1 / n, float))
    is_keyed = plain.is_keyed
    state = parts.init(params, data, validation.key(key)) if is_keyed else GradientState()
    return parts.update(params, data, batch, state)[0].grads
