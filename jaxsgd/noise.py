"""How noisy a gradient is: the variance over rows, and the batch size that it speaks for."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsgd import checks
from jaxsgd.accumulation import for_part, linear
from jaxsgd.clipping import squared_norms
from jaxsgd.gradients import Gathered, GradientState
from jaxsgd.losses import RowLoss, as_loss
from jaxsgd.pairs import (
    Batch,
    Estimate,
    PyTree,
    accumulator_of,
    as_arguments,
    number,
    part,
    squared_norm,
)
from jaxsgd.variance import full_gradient


class Noise(NamedTuple):
    """The noise of a gradient: B rows estimate it with a variance of `variance / B`.

    >>> jaxsgd.Noise(variance=8.0, signal=0.5, scale=16.0)
    Noise(variance=8.0, signal=0.5, scale=16.0)
    """

    variance: jax.Array  # float[]: tr(Sigma), Sigma the covariance of the gradients of the rows
    signal: jax.Array  # float[]: |G|^2, the squared norm of the mean gradient
    scale: jax.Array  # float[]: rows; variance / signal


def noise_scale(loss: Any, params: PyTree, data: PyTree, *, key: Any = None) -> Noise:
    """The simple noise scale `tr(Sigma) / |G|^2` at some params, exact over the rows.

    `Sigma = 1/n sum_i g_i g_i^T - G G^T`. A batch of so many rows has as much noise as signal: far
    smaller ones need proportionally more steps, far larger ones save few (McCandlish et al. 2018).
    Costs a gradient of each row, a few at a time.

    Args:
      loss: a function of `(params, row)`, or a `RowLoss` without a carry.
      params: the parameters.
      data: the rows, arrays.
      key: a key for a `keyed` loss.

    Returns:
      `Noise(variance, signal, scale)`, float[] each.

    Raises:
      TypeError: another loss, a `keyed` one without a key, or rows that stay on the host.

    >>> y = jnp.array([1.0, 3.0])  # gradients -1 and -3
    >>> noise = jaxsgd.noise_scale(lambda theta, y: (theta - y) ** 2 / 2, jnp.zeros(()), y)
    >>> float(noise.variance), float(noise.signal), float(noise.scale)
    (1.0, 4.0, 0.25)
    """
    form = as_loss(loss)
    if not isinstance(form, RowLoss) or form.stateful:
        raise TypeError(
            f"noise_scale's loss is {loss!r}, expected a function of (params, row), or a RowLoss "
            "without a carry: only then has a row a gradient of its own"
        )
    if form.keyed and key is None:
        raise TypeError("noise_scale was given no key, expected one: the loss is keyed")
    key = checks.key(key) if form.keyed else None
    checks.params(params)
    checks.rows(data)
    checks.on_device(data, "noise_scale")
    return _noise_scale(*as_arguments((form, params, data, key)))


@jax.jit
def _noise_scale(loss: RowLoss, params: PyTree, data: PyTree, key: Any) -> Noise:
    mean = full_gradient(loss, params, data, key)
    signal = squared_norm(mean)
    again = None if key is None else jax.random.clone(key)
    # centred before they are squared, as the difference of two large numbers would be rounding
    variance = jnp.mean(squared_norms(loss, params, data, again, mean))
    return Noise(variance, signal, variance / signal)


class NoiseState(NamedTuple):
    """The state of the gradient within, and sums over the steps, the last ones weighing most."""

    gradient: Any
    variance: jax.Array  # float[]
    signal: jax.Array  # float[]
    weight: jax.Array  # float[]: of 1

    @property
    def carry(self) -> PyTree:
        """The model state of the gradient within."""
        return self.gradient.carry


@part
class NoiseScale:
    """Another gradient, which also tells how noisy it is: `Info.noise`.

    The batch is taken in two halves, every other slot, with gradients g1 and g2 of b1 and b2 rows.
    Without bias `|G|^2` is `g1 . g2` and `tr(Sigma)` is `|g1 - g2|^2 / (1/b1 + 1/b2)`, which is
    McCandlish's form for any halves. Single steps are noisy, so both are running means, and `scale`
    is their ratio (the mean of ratios would be biased). A step with an empty half changes nothing;
    before the first one without, they are NaN. They come `1 / (1 - decay)` steps late, and a
    `scale` below 0 says that they are too noisy to tell. Rows drawn without replacement from n give
    `n / (n - 1)` of the variance, and that over n less of the signal: too large a scale where it is
    not far below n. Of `Stratified` and `Sharded` batches it is the variance within classes and
    shards, of `ImportanceSampled` ones that of the weighted gradients; rows of `Poisson` come in
    order, so shuffle sorted data before, and of q n rows the signal is `1 / (q n)` too large.

    Told to `record`; after `fit` the sums are in `result.state.gradient`. The gradient is the same
    to rounding, and costs up to half more.

    Args:
      gradient: a gradient that is a sum over rows, or a loss, which becomes `Minibatch(loss)`.
      decay: of the running means, 0 (a step's own) to below 1 (0.99: some hundred steps). A leaf.

    Raises:
      TypeError: a gradient that is no sum over rows.
      ValueError: batches of one row.

    McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training" (2018).

    >>> y = jnp.array([1.0, 3.0])
    >>> gradient = jaxsgd.NoiseScale(lambda theta, y: (theta - y) ** 2 / 2)
    >>> solver = jaxsgd.Solver(gradient, jaxsgd.WithReplacement(8), jaxsgd.SGD(0.0))
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> record = lambda state, info: info.noise
    >>> state, noise = jaxsgd.run(solver, state, y, 40_000, record=record)
    >>> round(float(noise.variance.mean() / noise.signal.mean()), 2)  # 1 / 4
    0.25
    """

    gradient: Any
    decay: Any = number(default=0.99)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gradient", linear(self.gradient, "NoiseScale"))
        checks.number(self.decay, "NoiseScale's decay", below=1)

    def init(self, params: PyTree, data: PyTree, key: Any, carry: PyTree = None) -> NoiseState:
        """The state before the first step."""
        zero = lambda: jnp.zeros((), accumulator_of(params))  # noqa: E731
        return NoiseState(self.gradient.init(params, data, key, carry), zero(), zero(), zero())

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: NoiseState
    ) -> tuple[Estimate, NoiseState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        if len(batch.index) == 1:
            raise ValueError("NoiseScale is given batches of 1 row, expected 2 to compare, or more")
        estimates, counts, inner = [], [], state.gradient
        for rows, half, own in _halves(data, batch, state.gradient):
            estimate, after = self.gradient.update(params, rows, half, own)
            estimates.append(estimate)
            counts.append(jnp.sum(half.weight != 0).astype(accumulator_of(params)))
            change = jax.tree.map(jnp.subtract, after.carry, state.carry)
            inner = after._replace(carry=jax.tree.map(jnp.add, inner.carry, change))
        if isinstance(inner, GradientState):
            inner = inner._replace(key=state.gradient.key)
        is_told = (counts[0] > 0) & (counts[1] > 0)  # a half may be all padding
        counts = [jnp.where(is_told, count, 1) for count in counts]
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
                jnp.where(is_told, decay * old + (1 - decay) * new, old)
                for old, new in zip(state[1:], found, strict=True)
            ),
        )
        variance, signal = after.variance / after.weight, after.signal / after.weight
        noise = Noise(variance, signal, variance / signal)
        total = jax.tree.map(jnp.add, *estimates)
        return total._replace(noise=noise), after

    def value(self, params: PyTree, data: PyTree, batch: Batch, state: NoiseState) -> jax.Array:
        """The loss (float[]) of the same batch, under the same key and carry, at other params."""
        halves = _halves(data, batch, state.gradient)
        one, other = (self.gradient.value(params, *half) for half in halves)
        return one + other


def _halves(data: PyTree, batch: Batch, state: Any) -> Iterator[tuple[PyTree, Batch, Any]]:
    """Every other slot, and the rest: data, batch and state. So strata are in both."""
    for i in range(2):
        cut = lambda x, i=i: x[i::2]  # noqa: E731
        rows = Gathered(jax.tree.map(cut, data.rows)) if isinstance(data, Gathered) else data
        yield rows, jax.tree.map(cut, batch), for_part(state, i)


def _dot(one: PyTree, other: PyTree) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), one, other)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))
