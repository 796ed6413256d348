"""The records that flow between the parts of a step: `Batch`, `Estimate`, `Info`, `State`."""

from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree


class Batch(NamedTuple):
    """A weighted set of rows; `sum_i weight[i] * grad loss(row[index[i]])` estimates the gradient.

    A random sampler sets the weights so that this sum is an unbiased estimate of the gradient of
    the mean loss; nothing downstream divides. Padding repeats a row of the batch with weight 0.
    """

    index: jax.Array  # type: ignore[assignment]  # int32[B]; tuple.index is not meant
    weight: jax.Array  # float[B]: float32, or float64 in x64 mode


class Estimate(NamedTuple):
    """What a gradient makes of a batch. `grads` are in the accumulator's dtype."""

    loss: jax.Array  # float[]: the weighted sum of the losses
    grads: PyTree  # like params, float32 (float64 where the parameter is float64)
    aux: PyTree = None  # the weighted sum of the loss's aux, where it has any
    noise: Any = None  # a `NoiseEstimate`, of `NoiseScaleGradient`


class Info(NamedTuple):
    """Diagnostics of one step. What is not recorded is not computed in a compiled run."""

    step: Any = None  # int32[]: 0 is the first step
    loss: Any = None  # float[]: of the batch, before the update, without the penalty
    penalty: Any = None  # float[]: of the parameters before the update; 0 without a penalty
    grad_norm: Any = None  # float[]: Euclidean norm of the gradient of loss + solver's penalty
    update_norm: Any = None  # float[]: Euclidean norm of the updates that the rule returned
    aux: Any = None  # of the loss, averaged with the weights
    learning_rate: Any = None  # float[]: of this step; None where the rule reports none
    noise: Any = None  # a `NoiseEstimate`, of a `NoiseScaleGradient`
    finite: Any = None  # bool[]: loss, gradient and the parameters after the step are all finite


class State(NamedTuple):
    """Everything a run needs to go on: a pytree of arrays and keys, nothing else."""

    params: PyTree
    step: jax.Array  # int32[]: the number of steps taken, at most 2**31 - 1
    rule: PyTree
    sampler: PyTree
    gradient: PyTree

    @property
    def model_state(self) -> PyTree:
        """The model state of a loss with `has_model_state` (batch statistics, say), else None."""
        return self.gradient.model_state
