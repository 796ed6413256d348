"""The plain gradient of a batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_contract, field, part
from jaxsgd.core.records import Batch, Estimate
from jaxsgd.core.trees import accumulate, accumulator_of, like, strong
from jaxsgd.data.arrays import take
from jaxsgd.gradients.base import Gradient, GradientState
from jaxsgd.losses import Loss, as_loss


def as_gradient(
    gradient: Gradient | Loss | Callable[..., PyTree], name: str = "gradient"
) -> Gradient:
    """A gradient as it is; a loss, or a function of (params, row), as `MinibatchGradient(loss)`."""
    if isinstance(gradient, type) and issubclass(gradient, Gradient | Loss):
        raise TypeError(
            f"{name}: expected a gradient or a loss, got the class {gradient.__name__}; did you "
            f"forget to call it, as in jaxsgd.{gradient.__name__}(loss)?"
        )
    if isinstance(gradient, Gradient):
        return as_contract(gradient, Gradient, name, "jaxsgd.MinibatchGradient(loss)")
    if not isinstance(gradient, Loss) and not callable(gradient):
        raise TypeError(
            f"{name} is {gradient!r} of type {type(gradient).__name__}, expected a loss, such as a "
            "function of (params, row), or a gradient; a custom gradient subclasses jaxsgd.Gradient"
        )
    return MinibatchGradient(gradient)


def as_linear_gradient(
    gradient: Gradient | Loss | Callable[..., PyTree], name: str = "gradient", where: str = ""
) -> Gradient:
    """A gradient whose estimate is a sum over the rows of a batch; any other is refused."""
    gradient = as_gradient(gradient, name)
    if not gradient.is_linear:
        raise TypeError(
            f"{name} is {gradient!r}, expected one that is a sum over rows{where}: a RowLoss, or a "
            "RowsLoss without a model state (a custom gradient sets `is_linear = True`)"
        )
    return gradient


@part
class MinibatchGradient(Gradient):
    """The plain gradient of a batch: `sum_i weight[i] grad loss(params, row[index[i]])`.

    A loss given to a solver as its gradient is one.

    Args:
      loss: `RowLoss`, `RowsLoss`, `BatchLoss`, or a function, which is a `RowLoss`.

    >>> gradient = jaxsgd.MinibatchGradient(lambda theta, y: (theta - y) ** 2)
    >>> y = jnp.array([1.0, 3.0])
    >>> batch = jaxsgd.Batch(index=jnp.array([0, 1]), weight=jnp.array([0.5, 0.5]))
    >>> state = gradient.init(jnp.zeros(()), y, jax.random.key(0))
    >>> estimate, state = gradient.update(jnp.zeros(()), y, batch, state)
    >>> float(estimate.loss), float(estimate.grads)
    (5.0, -4.0)
    """

    loss: Loss = field(converter=as_loss)

    @property
    def is_linear(self) -> bool:
        """Whether the loss is a sum over rows."""
        return self.loss.is_linear

    @property
    def is_keyed(self) -> bool:
        """Whether the loss draws random numbers."""
        return self.loss.keyed

    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> GradientState:
        """The state before the first step, from the model state of a loss that has one."""
        if self.loss.has_model_state and model_state is None:
            raise ValueError(
                "the loss has a model state, expected model_state=, the state it starts from"
            )
        if not self.loss.has_model_state and model_state is not None:
            raise ValueError(
                "model_state was given, but the loss has none; give "
                "RowLoss(fn, has_model_state=True)"
            )
        if not self.loss.keyed:
            return GradientState(model_state=model_state)
        return GradientState(validation.key(key), jnp.zeros((), jnp.int32), model_state)

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> tuple[Estimate, GradientState]:
        """The estimate from a batch of rows of `data`, and the state after it."""

        def objective(accumulated: PyTree) -> tuple[Float[Array, ""], tuple[PyTree, PyTree]]:
            return self._total(like(accumulated, params), data, batch, state)

        # differentiated in the accumulator's dtype: bfloat16 gradients would be rounded twice
        (loss, (aux, model_state)), grads = jax.value_and_grad(objective, has_aux=True)(
            accumulate(params)
        )
        step = None if state.step is None else state.step + 1
        if self.loss.has_model_state:
            model_state = _model_state_like(model_state, state.model_state)
        return Estimate(loss, grads, aux), GradientState(state.key, step, model_state)

    def value(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> Float[Array, ""]:
        """The loss of the same batch, with the same key and model state, at other params."""
        return self._total(params, data, batch, state)[0]

    def _total(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> tuple[Float[Array, ""], tuple[PyTree, PyTree]]:
        key = None if state.key is None else state.step_key
        weight = batch.weight.astype(accumulator_of(params))
        return self.loss.total(params, take(data, batch.index), weight, key, state.model_state)


def _model_state_like(model_state: PyTree, before: PyTree) -> PyTree:
    """The new model state in the dtypes of the old one; another form is refused."""
    if validation.form(model_state) != validation.form(before):
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (model_state, before)]
        raise ValueError(
            f"the loss returned a model state of shapes {shapes[0]}, but was given {shapes[1]}"
        )

    def cast(new: ArrayLike, old: Array) -> Array:
        new = jnp.asarray(new)
        if jnp.issubdtype(new.dtype, jnp.inexact) and not jnp.issubdtype(old.dtype, jnp.inexact):
            raise TypeError(
                f"the loss returned a model state of {new.dtype}, but was given {old.dtype}"
            )
        return strong(new if new.dtype == old.dtype else new.astype(old.dtype))

    return jax.tree.map(cast, model_state, before)
