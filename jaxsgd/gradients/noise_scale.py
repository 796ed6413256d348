"""How noisy a gradient is: its variance over rows, and the batch size that this suggests."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import field, number, part
from jaxsgd.core.records import Batch, Estimate, NoiseEstimate
from jaxsgd.core.trees import accumulator_of, squared_norm
from jaxsgd.core.validation import Number
from jaxsgd.gradients.base import Gradient
from jaxsgd.gradients.minibatch import as_linear_gradient
from jaxsgd.gradients.partial_sums import estimate_of_part, for_part, halves, joined


class NoiseState(NamedTuple):
    """The state of the wrapped gradient, and exponentially weighted sums over the steps."""

    gradient: PyTree
    variance: Float[Array, ""]
    signal: Float[Array, ""]
    weight: Float[Array, ""]  # the sum of 1, which the others are divided by

    @property
    def model_state(self) -> PyTree:
        """The model state of the wrapped gradient."""
        return self.gradient.model_state


@part
class NoiseScaleGradient(Gradient):
    """Another gradient, which also estimates how noisy it is: `Info.noise`.

    The even and odd positions of the batch are two halves, with gradients g1 and g2 of b1 and b2
    rows. `|G|^2` is estimated without bias by `g1 . g2`, and `tr(Sigma)` by `|g1 - g2|^2 /
    (1/b1 + 1/b2)`: McCandlish's estimator, for halves of any sizes. Single steps are noisy, so both
    are running means, and `scale` is their ratio (the mean of ratios would be biased). A step with
    an empty half is skipped; until a step has two nonempty halves, all three are NaN. The means lag
    by `1 / (1 - decay)` steps, and a `scale` below 0 means that they are too noisy for an estimate.

    With rows drawn without replacement from n, the variance is too large by a factor `n / (n - 1)`,
    and the signal too small by that variance over n: `scale` is too large unless it is far below n.
    With `Stratified` and `Sharded` batches it is the variance within classes and shards, with
    `ImportanceSampled` that of the weighted gradients. `Poisson` batches keep the order of the
    data, so shuffle sorted data beforehand; the signal is too large by about `1 / (q n)` of itself.

    The estimate is `Info.noise`, for `record`; after `fit` the sums are in
    `result.state.gradient`. The gradient is the same to rounding, and costs up to half more.

    Args:
      gradient: a gradient that is a sum over rows, or a loss.
      decay: of the running means, 0 (the last step) to below 1 (0.99: some hundred steps). A leaf.

    Raises:
      TypeError: a gradient that is not a sum over rows.
      ValueError: batches of one row.

    McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training" (2018).

    >>> y = jnp.array([1.0, 3.0])
    >>> gradient = jaxsgd.NoiseScaleGradient(lambda theta, y: (theta - y) ** 2 / 2)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.WithReplacement(8), jaxsgd.SGD(0.0))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> record = lambda state, info: info.noise
    >>> state, noise = jaxsgd.run(solver, state, y, 40_000, record=record)
    >>> round(float(noise.variance.mean() / noise.signal.mean()), 2)  # 1 / 4
    0.25
    """

    gradient: Gradient = field(converter=as_linear_gradient, wraps=True)
    decay: Number = number(default=0.99, converter=validation.real(below=1))

    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> NoiseState:
        """The state before the first step."""
        zero = lambda: jnp.zeros((), accumulator_of(params))  # noqa: E731
        return NoiseState(
            self.gradient.init(params, data, key, model_state), zero(), zero(), zero()
        )

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: NoiseState
    ) -> tuple[Estimate, NoiseState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        if len(batch.index) == 1:
            raise ValueError(
                "NoiseScaleGradient is given batches of 1 row, expected 2 to compare, or more"
            )
        parts, dtype = list(halves(data, batch)), accumulator_of(params)
        counts = [jnp.sum(half.weight != 0).astype(dtype) for _, _, half in parts]
        first, last = (
            estimate_of_part(self.gradient, i, rows, half, params, state.gradient)
            for i, rows, half in parts
        )
        estimates = first[0][0], last[0][0]
        total, change = jax.tree.map(jnp.add, first[0], last[0])
        inner = joined(self.gradient, state.gradient, last[1], change)
        is_known = (counts[0] > 0) & (counts[1] > 0)  # a half may be all padding
        counts = [jnp.where(is_known, count, 1) for count in counts]
        one, other = (  # a half of the rows has half of the weight
            jax.tree.map(lambda x, count=count: x * (sum(counts) / count), estimate.grads)
            for estimate, count in zip(estimates, counts, strict=True)
        )
        apart = squared_norm(jax.tree.map(jnp.subtract, one, other))
        found = apart / (1 / counts[0] + 1 / counts[1]), _dot(one, other), jnp.ones_like(apart)
        decay = jnp.asarray(self.decay, apart.dtype)
        after = NoiseState(
            inner,
            *(
                jnp.where(is_known, decay * old + (1 - decay) * new, old)
                for old, new in zip(state[1:], found, strict=True)
            ),
        )
        variance, signal = after.variance / after.weight, after.signal / after.weight
        noise = NoiseEstimate(variance, signal, variance / signal)
        return total._replace(noise=noise), after

    def value(
        self, params: PyTree, data: PyTree, batch: Batch, state: NoiseState
    ) -> Float[Array, ""]:
        """The loss of the same batch, with the same key and model state, at other params."""

        def of_part(i: int, rows: PyTree, half: Batch) -> Float[Array, ""]:
            own = for_part(self.gradient, state.gradient, i)
            return self.gradient.value(params, rows, half, own)

        one, other = (of_part(*half) for half in halves(data, batch))
        return one + other


def _dot(one: PyTree, other: PyTree) -> Float[Array, ""]:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), one, other)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))
