"""The records that flow between the parts of a step: `Batch`, `Estimate`, `Info`, `State`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

_NOT_RECORDED: Any = None  # in the place of an array


def described(named: dict[str, PyTree]) -> list[str]:
    """A line for each entry: its name, and its tree with `float32[5]` in the place of an array.

    An array of one number is shown with its value.
    """
    width = max(map(len, named), default=0) + 2
    return [f"  {name:{width}}{jax.tree.map(_Text, tree)!r}" for name, tree in named.items()]


class _Text(str):
    """What stands for a leaf, printed without quotes."""

    def __new__(cls, leaf: object) -> "_Text":
        dtype, shape = getattr(leaf, "dtype", None), getattr(leaf, "shape", None)
        if dtype is None or shape is None:
            return super().__new__(cls, repr(leaf))
        value = ""
        if shape == () and isinstance(leaf, jax.Array) and _is_known(leaf):
            value = f" {leaf.item():.6g}"
        return super().__new__(cls, f"{dtype}{list(shape)}{value}")

    def __repr__(self) -> str:
        return str(self)


def _is_known(leaf: jax.Array) -> bool:
    """Whether a number can be printed: computed, not deleted, and no key."""
    if isinstance(leaf, Tracer) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return False
    return not leaf.is_deleted() and leaf.is_fully_addressable


class Batch(NamedTuple):
    """A weighted set of rows; `sum_i weight[i] * grad loss(row[index[i]])` estimates the gradient.

    A random sampler sets the weights so that this sum is an unbiased estimate of the gradient of
    the mean loss; nothing downstream divides. Padding repeats a row of the batch with weight 0.
    """

    index: Int[Array, " B"]  # pyright: ignore[reportIncompatibleMethodOverride]  # int32
    weight: Float[Array, " B"]  # float32, or float64 in x64 mode


class NoiseEstimate(NamedTuple):
    """The noise of a gradient: B rows estimate it with a variance of `variance / B`.

    >>> jaxsgd.NoiseEstimate(variance=8.0, signal=0.5, scale=16.0)
    NoiseEstimate(variance=8.0, signal=0.5, scale=16.0)
    """

    variance: Float[Array, ""]  # tr(Sigma), Sigma the covariance of the gradients of the rows
    signal: Float[Array, ""]  # |G|^2, the squared norm of the mean gradient
    scale: Float[Array, ""]  # rows; variance / signal


class Estimate(NamedTuple):
    """What a gradient makes of a batch. `grads` are in the accumulator's dtype."""

    loss: Float[Array, ""]  # the weighted sum of the losses
    grads: PyTree  # like params, float32 (float64 where the parameter is float64)
    aux: PyTree = None  # the weighted sum of the loss's aux, where it has any
    noise: NoiseEstimate | None = None  # of a `NoiseScaleGradient`


class Info(NamedTuple):
    """Diagnostics of one step. Norms and `finite` are computed only if they are recorded."""

    step: Int[Array, ""] = _NOT_RECORDED  # int32; 0 is the first step
    loss: Float[Array, ""] = _NOT_RECORDED  # of the batch, before the update, without the penalty
    penalty: Float[Array, ""] = _NOT_RECORDED  # before the update; 0 without a penalty
    grad_norm: Float[Array, ""] = _NOT_RECORDED  # of the gradient of loss + solver's penalty
    update_norm: Float[Array, ""] = _NOT_RECORDED  # of the updates that the rule returned
    aux: PyTree = None  # of the loss, averaged with the weights
    learning_rate: Float[Array, ""] | None = None  # of this step; None where the rule reports none
    noise: NoiseEstimate | None = None  # of a `NoiseScaleGradient`
    finite: Bool[Array, ""] = _NOT_RECORDED  # loss, gradient and the parameters after the step


class State(NamedTuple):
    """Everything a run needs to go on: a pytree of arrays and keys, nothing else."""

    params: PyTree
    step: Int[Array, ""]  # int32: the number of steps taken, at most 2**31 - 1
    rule: PyTree
    sampler: PyTree
    gradient: PyTree

    def __repr__(self) -> str:
        return "\n".join(("State", *described(self._asdict())))

    @property
    def model_state(self) -> PyTree:
        """The model state of a loss with `has_model_state` (batch statistics, say), else None."""
        return self.gradient.model_state
