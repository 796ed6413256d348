"""The contract of a gradient: what a step makes of a batch of rows."""

import abc
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from jaxsgd.core.part import Contract
from jaxsgd.core.records import Batch, Estimate
from jaxsgd.losses import Loss


class GradientState(NamedTuple):
    """The state of a gradient with nothing else to remember.

    Any state of a gradient has the field `model_state`, and, where the gradient is keyed, `key`.
    """

    key: Key[Array, ""] | None = None  # only folded; None where no random numbers are drawn
    step: Int[Array, ""] | None = None  # None where there is no key
    model_state: PyTree = None  # of a loss that has one

    @property
    def step_key(self) -> Key[Array, ""]:
        """The key of this step.

        Raises:
          ValueError: the state has no key.
        """
        if self.key is None or self.step is None:
            raise ValueError(
                "the state has no key: it was made for a gradient that draws no numbers"
            )
        return jax.random.fold_in(self.key, self.step)


class Gradient(Contract, abc.ABC):
    """The gradient of a weighted set of rows. A custom gradient subclasses this contract.

    It reads the rows of a batch by `jaxsgd.take(data, batch.index)`; `data` need not be arrays.
    `jaxsgd.as_rows(data).size` is n, the number of rows.

    Attributes with defaults:
      is_linear: the estimate is `sum_i weight[i] f(row[i])`, so it may be computed in parts and
        added: by `Accumulated`, on `MeshRows`. False.
      is_keyed: it draws random numbers. `init` returns
        `GradientState(key, jnp.int32(0), model_state)`; `update` draws by `state.step_key`, and
        returns the state with `step + 1` and the same key. False.
      needs_row_index: it remembers rows by their index, so rows from another loader, which have
        none, are refused. False.
      sample_weight_refusal: None, or why a solver's `sample_weight` is refused: words that follow
        the class's name in the error message. None.
      loss: the loss that it differentiates, which `fit` reports on validation rows. None.

    >>> @jaxsgd.part
    ... class SignGradient(jaxsgd.Gradient):
    ...     loss: jaxsgd.Loss = jaxsgd.field(converter=jaxsgd.as_loss)
    ...     def init(self, params, data, key, model_state=None):
    ...         return jaxsgd.GradientState()
    ...     def value(self, params, data, batch, state):
    ...         rows = jaxsgd.take(data, batch.index)
    ...         return self.loss.total(params, rows, batch.weight, None, None)[0]
    ...     def update(self, params, data, batch, state):
    ...         loss, grads = jax.value_and_grad(self.value)(params, data, batch, state)
    ...         return jaxsgd.Estimate(loss, jax.tree.map(jnp.sign, grads)), state
    """

    is_linear: bool = False
    is_keyed: bool = False
    needs_row_index: bool = False
    sample_weight_refusal: str | None = None
    loss: Loss | None = None

    @abc.abstractmethod
    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> PyTree:
        """The state before the first step, such as `GradientState()`.

        Args:
          params: a pytree of float arrays.
          data: the rows; only shapes and dtypes are read.
          key: for random numbers; only folded.
          model_state: the state that the loss's model starts from.
        """

    @abc.abstractmethod
    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: PyTree
    ) -> tuple[Estimate, PyTree]:
        """The estimate from a batch of rows of `data`, and the state after it."""

    @abc.abstractmethod
    def value(self, params: PyTree, data: PyTree, batch: Batch, state: PyTree) -> Float[Array, ""]:
        """The loss of the same batch, with the same key and model state, at other params."""


def refuse_model_state(model_state: PyTree, gradient: Gradient) -> None:
    """Refuse the model state of a loss that has none."""
    if model_state is not None:
        raise ValueError(
            f"model_state was given, but {type(gradient).__name__}'s loss has none, expected no "
            "model_state"
        )


def check_size(held: int, size: int, gradient: Gradient) -> None:
    """Refuse a state that was made for another number of rows."""
    if held != size:
        raise ValueError(
            f"{type(gradient).__name__}'s state is of {held} rows, but the data have {size}"
        )
