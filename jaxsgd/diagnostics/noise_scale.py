"""The noise of the gradients of rows at given parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from jaxsgd.core import programs, validation
from jaxsgd.core.records import NoiseEstimate
from jaxsgd.core.trees import as_arguments, squared_norm
from jaxsgd.data.arrays import require_resident
from jaxsgd.gradients.clipped import squared_norms
from jaxsgd.gradients.svrg import full_gradient
from jaxsgd.losses import RowLoss, as_loss


def noise_scale(
    loss: RowLoss | Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    data: PyTree,
    *,
    key: PRNGKeyArray | None = None,
) -> NoiseEstimate:
    """The simple noise scale `tr(Sigma) / |G|^2` at some params, exact over the rows.

    `Sigma = 1/n sum_i g_i g_i^T - G G^T`. A batch of this size has as much noise as signal: far
    smaller batches need proportionally more steps, far larger ones save few steps (McCandlish et
    al. 2018). The cost is a gradient of each row, a few at a time.

    Args:
      loss: a function of `(params, row)`, or a `RowLoss` without a model state.
      params: the parameters.
      data: the rows, arrays.
      key: a key for a `keyed` loss.

    Returns:
      `NoiseEstimate(variance, signal, scale)`, float[] each.

    Raises:
      TypeError: the loss is of another form, it is `keyed` and there is no key, or the rows are on
        the host.

    >>> y = jnp.array([1.0, 3.0])  # gradients -1 and -3
    >>> loss = lambda theta, y: (theta - y) ** 2 / 2
    >>> noise = jaxsgd.diagnostics.noise_scale(loss, jnp.zeros(()), y)
    >>> float(noise.variance), float(noise.signal), float(noise.scale)
    (1.0, 4.0, 0.25)
    """
    form = as_loss(loss)
    if not isinstance(form, RowLoss) or form.has_model_state:
        raise TypeError(
            f"noise_scale's loss is {loss!r}, expected a function of (params, row), or a RowLoss "
            "without a model state: only these define a gradient for each row"
        )
    if form.keyed and key is None:
        raise TypeError("noise_scale was given no key, expected one: the loss is keyed")
    key = None if key is None else validation.key(key)
    key = key if form.keyed else None
    validation.params(params)
    require_resident(data, "noise_scale")
    return _noise_scale(*as_arguments((form, params, data, key)))


@programs.jit()
def _noise_scale(
    loss: RowLoss, params: PyTree, data: PyTree, key: Key[Array, ""] | None
) -> NoiseEstimate:
    mean = full_gradient(loss, params, data, key)
    signal = squared_norm(mean)
    again = None if key is None else jax.random.clone(key)
    # centred before they are squared: the difference of two large numbers would be rounding error
    variance = jnp.mean(squared_norms(loss, params, data, again, mean))
    return NoiseEstimate(variance, signal, variance / signal)
