"""Textbook problems with known answers, for tests, notebooks and benchmarks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int32, Num, PyTree

from jaxsgd.models import Linear


class Problem(NamedTuple):
    """A loss of one row, a start, rows, and the parameters at the minimum of the mean loss."""

    loss: Callable[[PyTree, PyTree], Float[Array, ""]]
    params: PyTree
    data: PyTree
    solution: PyTree


def _squared_distance(theta: Float[Array, ""], target: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.square(theta - target)


def two_targets() -> Problem:
    """`(theta - y)^2` with the targets y = 1 and 3, from theta = 0; the minimum is at 2.

    With `Sequential(1)` and rate 0.1, theta is 0.2, 0.76, 0.808, 1.2464 and approaches a two-cycle
    of 17/9 and 19/9 around the minimum: a constant rate does not converge.

    >>> jaxsgd.problems.two_targets().data.tolist()
    [1.0, 3.0]
    """
    return Problem(_squared_distance, jnp.zeros(()), jnp.array([1.0, 3.0]), jnp.array(2.0))


_line = Linear(1)


def _squared_error(params: PyTree, row: tuple[jax.Array, jax.Array]) -> Float[Array, ""]:
    x, y = row
    return optax.squared_error(_line(params, x), y)


def _half_squared_error(params: PyTree, row: tuple[jax.Array, jax.Array]) -> Float[Array, ""]:
    x, y = row
    return optax.l2_loss(_line(params, x), y)


def line(*, half: bool = False) -> Problem:
    """`y = 3.5 x + 1.2 + 0.5 noise`, x = 2 rand: 1,000 rows by NumPy's seed 42, from zeros.

    The least-squares solution is about (3.46, 1.29). Twenty epochs in batches of 64 at rate 0.01
    do not reach it: they end at about (3.2, 1.6) for `(y - yhat)^2` and (3.0, 1.9) for half of it.
    That is due to the rate, not an error; two hundred more epochs reach it.

    Args:
      half: the loss is `(y - yhat)^2 / 2` (`optax.l2_loss`), otherwise `(y - yhat)^2`
        (`optax.squared_error`); both have the same minimum.

    Data: `(x: float32[1000, 1], y: float32[1000])`.

    >>> problem = jaxsgd.problems.line()
    >>> [round(float(x), 2) for x in (problem.solution["weight"][0], problem.solution["bias"])]
    [3.46, 1.29]
    """
    rng = np.random.RandomState(42)
    x = 2 * rng.rand(1000, 1)
    y = 3.5 * x[:, 0] + 1.2 + 0.5 * rng.randn(1000)
    design = np.column_stack([x, np.ones(1000)])
    weight, bias = np.linalg.lstsq(design, y, rcond=None)[0]
    solution = {"weight": jnp.array([weight], float), "bias": jnp.array(bias, float)}
    params = {"weight": jnp.zeros(1), "bias": jnp.zeros(())}
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    return Problem(_half_squared_error if half else _squared_error, params, data, solution)


def quadratic(eigenvalues: Sequence[float] | np.ndarray | Num[Array, " d"]) -> Problem:
    """`1/2 sum_j l_j theta_j^2` with the given eigenvalues, from ones; one row, minimum 0 at 0.

    The best constant rate is 2 / (l_min + l_max); above 2 / l_max gradient descent diverges.

    >>> problem = jaxsgd.problems.quadratic([1.0, 10.0])
    >>> float(problem.loss(problem.params, problem.data[0]))
    5.5
    """
    eigenvalues = jnp.asarray(eigenvalues, float)
    ones = jnp.ones_like(eigenvalues)
    return Problem(_weighted_squares, ones, eigenvalues[None], jnp.zeros_like(ones))


def _weighted_squares(theta: Float[Array, " d"], row: Float[Array, " d"]) -> Float[Array, ""]:
    return jnp.sum(row * jnp.square(theta)) / 2


def digits() -> tuple[Float32[np.ndarray, "1797 64"], Int32[np.ndarray, "1797"]]:
    """The 1,797 handwritten digits of scikit-learn: float32[1797, 64] and int32[1797].

    Alpaydin and Kaynak (1998), 8 x 8 pixels of 0 to 16.

    Raises:
      ImportError: scikit-learn is missing; the extra `cli` installs it.

    >>> x, y = jaxsgd.problems.digits()
    >>> x.shape, sorted(set(y.tolist()))
    ((1797, 64), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits need scikit-learn: pip install 'jaxsgd[cli]'") from error
    x, y = load_digits(return_X_y=True)
    return np.asarray(x, np.float32), np.asarray(y, np.int32)
