"""The smoothness of an objective, and the constant learning rate that it allows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from jaxsgd.core import programs, validation
from jaxsgd.core.part import as_callable, number, part, static
from jaxsgd.core.trees import accumulate, as_arguments, like, squared_norm
from jaxsgd.core.validation import Number
from jaxsgd.data.arrays import as_rows, require_resident
from jaxsgd.gradients.svrg import full_gradient
from jaxsgd.losses import RowLoss, as_loss

CHUNK = 256  # rows whose curvature is estimated at a time


@part
class Smoothness:
    """The smoothness constants L of an objective of n rows, and learning rates from them.

    For batches of B rows without replacement the constant is between that of the least smooth row
    and that of the mean: `L_B = (n (B - 1) L + (n - B) L_row) / (B (n - 1)) + L_penalty`. A
    linear model has `L = c |eigenvalue of X^T X / n|` and `L_row = c max |x|^2`, X with a column of
    ones for the bias, c = 1 for `l2_loss`, 1/4 for a logistic and 1/2 for a softmax loss; the
    constant of `L2(s)` is s.

    Args:
      mean: L, of the mean loss; a leaf.
      row: L_row, the largest of the rows' constants; a leaf.
      size: n, the number of rows.
      penalty: L_penalty; a leaf.

    Gower et al., "SGD: general analysis and improved rates" (2019); Gazagnadou et al., "Optimal
    mini-batch and step sizes for SAGA" (2019).

    >>> smoothness = jaxsgd.diagnostics.Smoothness(mean=1.0, row=10.0, size=101)
    >>> smoothness.minibatch(1), smoothness.minibatch(101), round(smoothness.rate(1), 4)
    (10.0, 1.0, 0.0333)
    """

    mean: Number = number(converter=validation.real())
    row: Number = number(converter=validation.real())
    size: int = static(converter=validation.whole(1))
    penalty: Number = number(default=0.0, converter=validation.real())

    def minibatch(self, batch_size: int) -> Number:
        """L_B, the constant for batches of `batch_size` rows."""
        n, size = self.size, validation.integer(batch_size, "batch_size", 1, self.size)
        if n == 1:
            return self.row + self.penalty
        whole, rest = n * (size - 1) / (size * (n - 1)), (n - size) / (size * (n - 1))
        return whole * self.mean + rest * self.row + self.penalty

    def rate(self, batch_size: int) -> Number:
        """`1 / (3 L_B)`: the constant learning rate of `SAGA` and `SVRG`."""
        return 1 / (3 * self.minibatch(batch_size))


def estimate_smoothness(
    loss: RowLoss | Callable[[PyTree, PyTree], Float[Array, ""]],
    params: PyTree,
    data: PyTree,
    *,
    key: PRNGKeyArray,
    penalty: Callable[[PyTree], Float[Array, ""]] | None = None,
    iterations: int = 50,
) -> Smoothness:
    """The `Smoothness` of a loss at some params, by power iteration on Hessian-vector products.

    `v <- H v / |H v|`: `|H v|` grows to the largest absolute eigenvalue of the Hessian of the mean
    loss, of that of each row, and of that of the penalty. The estimates are those at the given
    params: a logistic loss of a linear model has its largest curvature where all params are 0; a
    softmax of more than two classes does not, and c = 1/2 bounds it. Do not give the penalty of a
    `Proximal` rule. The cost is `iterations` passes of about four gradients, twice.

    Args:
      loss: a function of `(params, row)`, or a `RowLoss` without key or model state.
      params: the parameters.
      data: the rows, arrays.
      key: for the random start of the iterations.
      penalty: None, or a function `params -> scalar`.
      iterations: the number of iterations, at least 1; with few, the estimates are too small, and
        so the rates too large.

    Raises:
      TypeError: the loss is of another form, or the rows are on the host.

    >>> x = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> loss = lambda w, x: (x @ w) ** 2 / 2
    >>> found = jaxsgd.diagnostics.estimate_smoothness(loss, jnp.zeros(2), x, key=jax.random.key(0))
    >>> round(float(found.mean), 2), round(float(found.row), 2), found.size
    (4.5, 9.0, 2)
    """
    form = as_loss(loss)
    if not isinstance(form, RowLoss) or form.has_model_state or form.keyed:
        raise TypeError(
            f"smoothness's loss is {loss!r}, expected a function of (params, row), or a RowLoss "
            "without a key or a model state"
        )
    validation.params(params)
    size = require_resident(data, "smoothness").size
    penalty = None if penalty is None else as_callable(penalty, "penalty")
    iterations = validation.integer(iterations, "iterations", 1)
    args = as_arguments((form, params, data, validation.key(key), penalty))
    mean, row, of_penalty = _constants(*args, iterations=iterations)
    return Smoothness(mean, row, size, of_penalty)


@programs.jit()
def _constants(
    loss: RowLoss,
    params: PyTree,
    data: PyTree,
    key: Key[Array, ""],
    penalty: Callable[[PyTree], Float[Array, ""]] | None,
    *,
    iterations: int,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """The constants of the mean loss, of the least smooth row, and of the penalty."""
    wide = accumulate(params)
    leaves, tree = jax.tree.flatten(wide)
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    normals = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    start = jax.tree.unflatten(tree, normals)

    def largest(gradient: Callable[[PyTree], PyTree]) -> Float[Array, ""]:
        """The largest absolute eigenvalue of the Hessian, the derivative of `gradient`."""

        def iterate(
            _: Int[Array, ""], found: tuple[PyTree, Float[Array, ""]]
        ) -> tuple[PyTree, Float[Array, ""]]:
            product = jax.jvp(gradient, (wide,), (found[0],))[1]
            norm = jnp.sqrt(squared_norm(product))
            scale = 1 / jnp.where(norm > 0, norm, 1)
            return jax.tree.map(lambda x: x * scale.astype(x.dtype), product), norm

        norm = jnp.sqrt(squared_norm(start))
        unit = jax.tree.map(lambda x: x / norm.astype(x.dtype), start)
        return jax.lax.fori_loop(0, iterations, iterate, (unit, jnp.zeros_like(norm)))[1]

    def of_row(row: PyTree) -> Float[Array, ""]:
        return largest(jax.grad(lambda wide: loss.one(like(wide, params), row, None, None)[0]))

    mean = largest(lambda wide: full_gradient(loss, like(wide, params), data))
    row = jnp.max(jax.lax.map(of_row, data, batch_size=min(CHUNK, as_rows(data).size)))
    return mean, row, jnp.zeros_like(mean) if penalty is None else largest(jax.grad(penalty))
