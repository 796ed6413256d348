"""The gradient of a batch in parts, one after the other."""

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import field, part, static
from jaxsgd.core.records import Batch, Estimate
from jaxsgd.gradients.base import Gradient
from jaxsgd.gradients.minibatch import as_linear_gradient
from jaxsgd.gradients.partial_sums import in_sequence, update_in_parts, value_in_parts


@part
class Accumulated(Gradient):
    """Another gradient of the same batch, in `chunks` sequential parts that need less memory.

    `sum_c gradient(part c of the batch)`: the same estimate to rounding, as a gradient that is
    linear in the weights is the sum of its parts. Any batch size works: the last part is padded
    with rows of weight 0. A `keyed` loss draws different random numbers in each part.

    Args:
      gradient: a gradient, or a loss, which becomes `MinibatchGradient(loss)`.
      chunks: how many parts, at least 1; a batch with fewer rows has one part per row.

    Raises:
      TypeError: not a sum over rows (`BatchLoss`, a `RowsLoss` with a model state).

    >>> y = jnp.array([1.0, 3.0])
    >>> gradient = jaxsgd.Accumulated(lambda theta, y: (theta - y) ** 2, chunks=2)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.FullBatch(), jaxsgd.SGD(0.5))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> float(jaxsgd.run(solver, state, y, 1)[0].params)
    2.0
    """

    gradient: Gradient = field(converter=as_linear_gradient, wraps=True)
    chunks: int = static(converter=validation.whole(1))

    is_linear = True

    @property
    def is_keyed(self) -> bool:
        """Whether the gradient draws random numbers."""
        return self.gradient.is_keyed

    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> PyTree:
        """The gradient's state before the first step."""
        return self.gradient.init(params, data, key, model_state)

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        parts = in_sequence(data, batch, self.chunks)
        return update_in_parts(self.gradient, parts, params, state)

    def value(self, params: PyTree, data: PyTree, batch: Batch, state: PyTree) -> Float[Array, ""]:
        """The loss of the same batch, with the same key and model state, at other params."""
        return value_in_parts(self.gradient, in_sequence(data, batch, self.chunks), params, state)
