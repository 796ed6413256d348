"""Penalties, which are added to the loss to keep parameters small or zero.

Each is a function `params -> scalar` for `Solver(penalty=...)`, which adds it once per step,
whatever the batch; and each has `prox(params, rate) = argmin_q penalty(q) + |q - params|^2 / (2
rate)`, for `Proximal`. All parameters count, biases too, unless a mask leaves them out.
"""

import abc
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import Contract, number, part, static
from jaxsgd.core.trees import accumulate, accumulator_of
from jaxsgd.core.validation import Number
from jaxsgd.schedules import scalar

Mask = Callable[[PyTree], PyTree] | None


class ProximalPenalty(Contract, abc.ABC):
    """A penalty that has a proximal step: `L2`, `L1`, `ElasticNet`, or a custom one."""

    @abc.abstractmethod
    def __call__(self, params: PyTree) -> Float[Array, ""]:
        """The penalty of the parameters, in the accumulator's dtype."""

    @abc.abstractmethod
    def prox(self, params: PyTree, rate: Float[Array, ""]) -> PyTree:
        """`argmin_q penalty(q) + |q - params|^2 / (2 rate)`, in the dtypes of params."""


def _as_mask(mask: Mask, name: str = "mask") -> Mask:
    if mask is not None and not callable(mask):
        raise TypeError(f"{name} is {mask!r}, expected a function of params")
    if isinstance(mask, partial) and not isinstance(mask, jax.tree_util.Partial):
        raise TypeError(f"{name} is a functools.partial, expected a function, which is static")
    return mask


@part
class L2(ProximalPenalty):
    """Tikhonov's penalty `strength / 2 * sum_j params_j ** 2`, of gradient `strength * params`.

    Over n rows, the `alpha` of ridge regression `|y - X w|^2 + alpha |w|^2` is strength `alpha / n`
    with `optax.l2_loss`; scikit-learn's logistic `C` is `1 / (C n)`. Its proximal step shrinks:
    `params / (1 + rate strength)`.

    Args:
      strength: at least 0; a leaf.
      mask: which parameters count: a function of params to a tree of bools that is a prefix of
        params, as Optax's masks are (static); None for all.

    Raises:
      ValueError: a negative strength.

    >>> float(jaxsgd.L2(0.1)({"weight": jnp.array([1.0, 3.0]), "bias": jnp.array(10.0)}))
    5.5
    >>> penalty = jaxsgd.L2(0.1, mask=lambda params: {"weight": True, "bias": False})
    >>> float(penalty({"weight": jnp.array([1.0, 3.0]), "bias": jnp.array(10.0)}))
    0.5
    """

    strength: Number = number(converter=validation.real())
    mask: Mask = static(default=None, converter=_as_mask)

    def __call__(self, params: PyTree) -> Float[Array, ""]:
        """The penalty of the parameters, in the accumulator's dtype."""
        return _total(self, params, lambda x, strength: strength / 2 * jnp.sum(x * x))

    def prox(self, params: PyTree, rate: Number) -> PyTree:
        """The proximal step, in the dtypes of params."""
        shrunk = lambda x, strength: x / (1 + jnp.asarray(rate, x.dtype) * strength)  # noqa: E731
        return _each(self, params, shrunk)


@part
class L1(ProximalPenalty):
    """The lasso's penalty `strength * sum_j |params_j|`.

    As a solver's penalty its gradient is `strength * sign(params)`, 0 at 0, and parameters
    fluctuate around zero. In `Proximal` they become exactly zero: its proximal step is
    `sign(params) max(|params| - rate strength, 0)`.
    Tibshirani, "Regression shrinkage and selection via the lasso" (1996).

    Args, Raises: as `L2`.

    >>> penalty = jaxsgd.L1(0.5)
    >>> float(penalty(jnp.array([1.0, -3.0])))
    2.0
    >>> penalty.prox(jnp.array([1.0, -3.0, 0.25]), jnp.array(1.0)).tolist()
    [0.5, -2.5, 0.0]
    """

    strength: Number = number(converter=validation.real())
    mask: Mask = static(default=None, converter=_as_mask)

    def __call__(self, params: PyTree) -> Float[Array, ""]:
        """The penalty of the parameters, in the accumulator's dtype."""
        # not jnp.abs, whose derivative at 0 is 1 in JAX and would move zeros away from 0
        return _total(self, params, lambda x, strength: strength * jnp.sum(x * jnp.sign(x)))

    def prox(self, params: PyTree, rate: Number) -> PyTree:
        """The proximal step, in the dtypes of params."""
        return _each(self, params, lambda x, strength: _soft_threshold(x, rate, strength))


@part
class ElasticNet(ProximalPenalty):
    """Both: `l1 * sum_j |params_j| + l2 / 2 * sum_j params_j ** 2`.

    Zou and Hastie, "Regularization and variable selection via the elastic net" (2005).
    scikit-learn's `alpha` and `l1_ratio` are `l1 = alpha l1_ratio`, `l2 = alpha (1 - l1_ratio)`
    with `optax.l2_loss`.

    Args:
      l1, l2: at least 0; leaves.
      mask: as in `L2`.

    Raises:
      ValueError: a negative strength.

    >>> float(jaxsgd.ElasticNet(0.5, 0.1)(jnp.array([1.0, -3.0])))
    2.5
    """

    l1: Number = number(converter=validation.real())
    l2: Number = number(converter=validation.real())
    mask: Mask = static(default=None, converter=_as_mask)

    def __call__(self, params: PyTree) -> Float[Array, ""]:
        """The penalty of the parameters, in the accumulator's dtype."""
        return L1(self.l1, self.mask)(params) + L2(self.l2, self.mask)(params)

    def prox(self, params: PyTree, rate: Number) -> PyTree:
        """The proximal step, in the dtypes of params: the lasso's, then Tikhonov's."""
        return L2(self.l2, self.mask).prox(L1(self.l1, self.mask).prox(params, rate), rate)


def _soft_threshold(x: jax.Array, rate: Number, strength: Float[Array, ""]) -> jax.Array:
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - jnp.asarray(rate, x.dtype) * strength, 0)


def selected(mask: Mask, params: PyTree) -> PyTree:
    """Which leaves of params a mask selects: a tree of bools like params."""
    prefix = True if mask is None else mask(params)
    for path, keep in jax.tree_util.tree_leaves_with_path(prefix):
        is_array = isinstance(keep, np.ndarray | jax.Array) and not isinstance(keep, Tracer)
        is_one = is_array and keep.shape == () and keep.dtype == bool
        if not is_one and not isinstance(keep, bool | np.bool_):
            where = f"the mask {mask!r} returned{jax.tree_util.keystr(path)}"
            raise TypeError(f"{where} {keep!r}, expected True or False")
    try:
        return jax.tree.map(lambda keep, sub: jax.tree.map(lambda _: keep, sub), prefix, params)
    except ValueError as error:
        raise ValueError(
            f"the mask {mask!r} returned the structure {jax.tree.structure(prefix)}, expected a "
            f"prefix of that of params, {jax.tree.structure(params)}"
        ) from error


def _total(
    penalty: L1 | L2,
    params: PyTree,
    fn: Callable[[jax.Array, Float[Array, ""]], Float[Array, ""]],
) -> Float[Array, ""]:
    """The sum over the selected leaves of `fn(leaf, strength)`."""
    is_selected = jax.tree.leaves(selected(penalty.mask, params))
    leaves = zip(is_selected, jax.tree.leaves(accumulate(params)), strict=True)
    values = (fn(x, _strength(penalty, x)) for keep, x in leaves if keep)
    return sum(values, start=jnp.zeros((), accumulator_of(params)))


def _each(
    penalty: L1 | L2, params: PyTree, fn: Callable[[jax.Array, Float[Array, ""]], jax.Array]
) -> PyTree:
    """`fn(leaf, strength)` of each selected leaf; the others unchanged."""
    change = lambda keep, x: fn(x, _strength(penalty, x)) if keep else x  # noqa: E731
    return jax.tree.map(change, selected(penalty.mask, params), params)


def _strength(penalty: L1 | L2, x: jax.Array) -> Float[Array, ""]:
    """The strength in the dtype of a parameter."""
    return scalar(penalty.strength, f"{type(penalty).__name__}'s strength").astype(x.dtype)
