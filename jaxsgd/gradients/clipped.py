"""Gradients that no row can move far: clipped one by one, with noise (private training)."""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import field, number, part, set_fields, static
from jaxsgd.core.records import Batch, Estimate
from jaxsgd.core.trees import accumulate, accumulator_of, like, squared_norm
from jaxsgd.core.validation import Number
from jaxsgd.data.arrays import as_rows
from jaxsgd.gradients.base import Gradient, GradientState, refuse_model_state
from jaxsgd.losses import Loss, RowLoss, as_loss, weigh
from jaxsgd.models import ModelLoss

CHUNK = 2**22  # bytes of per-row gradients that are computed at a time


def _as_row_loss(loss: Loss | Callable[..., PyTree], name: str = "loss") -> RowLoss:
    """A loss of one row without a model state."""
    loss = as_loss(loss, name)
    if not isinstance(loss, RowLoss) or loss.has_model_state:
        raise TypeError(
            f"{name} is {loss!r}, expected a function of (params, row) or a RowLoss without a "
            "model state: only then has a row a gradient of its own"
        )
    return loss


@part
class PerExampleClipped(Gradient):
    """Each row's gradient clipped to a norm, and Gaussian noise on their sum: the DP-SGD step.

    `sum_i weight[i] g_i min(1, C / |g_i|) + noise C row_scale z`, g_i the gradient of row i and z
    standard normal. With `Poisson(q, ...)`, which the usual accounting assumes, and `row_scale` of
    `1 / (q n)`, adding or removing a row moves the sum by at most `C row_scale`. This holds only if
    no weight is above `row_scale` (not with `ImportanceSampled` or `Stratified`) and while
    `state.sampler.overflows` is 0. Rows are drawn by a hash that is not cryptographic. Compute
    (epsilon, delta) with a privacy library. `Info` is not private, and neither are rules that
    evaluate the loss themselves (`LineSearch`).

    The norms are computed a few rows at a time, then one gradient with the clipped weights: per-row
    gradients are not stored, and a step costs several plain ones. With `ModelLoss` the norms are
    computed from errors and inputs (Goodfellow 2015; Li et al. 2022), and a step costs little more
    than a plain one. Positions of weight 0 have no effect, whatever their rows.

    Args:
      loss: a function of `(params, row)`, `ModelLoss`, or a `RowLoss` without a model state.
      max_norm: C, above 0. A leaf.
      noise: the noise multiplier, at least 0. The number 0 draws no noise; any other is a leaf.
      row_scale: the weight of one row: `1 / (q n)` with `Poisson`, `1 / B` in full batches.
        Required with noise, which an empty batch gets too.

    Raises:
      TypeError: a loss of whole batches, or with a model state: it has no per-row gradients.
      ValueError: a norm or noise below its bound, or noise without a `row_scale`.

    Abadi et al., "Deep learning with differential privacy" (2016).

    >>> gradient = jaxsgd.PerExampleClipped(lambda theta, y: (theta - y) ** 2, max_norm=1.0)
    >>> y = jnp.array([0.1, 3.0])
    >>> batch = jaxsgd.Batch(index=jnp.array([0, 1]), weight=jnp.array([0.5, 0.5]))
    >>> state = gradient.init(jnp.zeros(()), y, jax.random.key(0))
    >>> round(float(gradient.update(jnp.zeros(()), y, batch, state)[0].grads), 3)  # -0.2 and -1
    -0.6
    """

    loss: RowLoss = field(converter=_as_row_loss)
    max_norm: Number = number(converter=validation.real(1e-30))
    noise: Number = number(default=0.0, converter=validation.real())
    row_scale: Number | None = number(default=None, converter=validation.optional_real())
    is_noisy: bool = static(default=False, init=False)

    def __post_init__(self) -> None:
        is_noisy = not (isinstance(self.noise, int | float) and self.noise == 0)
        set_fields(self, is_noisy=is_noisy)
        if is_noisy and self.row_scale is None:
            raise ValueError(
                "PerExampleClipped has noise but no row_scale, expected the weight of one row: "
                "1 / (q n) under Poisson sampling, 1 / B in batches of B"
            )

    @property
    def sample_weight_refusal(self) -> str | None:
        """Why sample weights are refused: rows above `row_scale` would get too little noise."""
        return "has noise for rows of one weight" if self.is_noisy else None

    @property
    def is_linear(self) -> bool:
        """Whether it is a sum over rows: only without noise, which is drawn once per batch."""
        return not self.is_noisy

    @property
    def is_keyed(self) -> bool:
        """Whether it draws numbers for its rows."""
        return self.loss.keyed

    def init(
        self, params: PyTree, data: PyTree, key: PRNGKeyArray, model_state: PyTree = None
    ) -> GradientState:
        """The state before the first step."""
        refuse_model_state(model_state, self)
        if not (self.is_noisy or self.loss.keyed):
            return GradientState()
        return GradientState(validation.key(key), jnp.zeros((), jnp.int32))

    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> tuple[Estimate, GradientState]:
        """The estimate from a batch of rows of `data`, and the state after it."""
        wide, (weight, rows, key) = accumulate(params), self._rows(params, data, batch, state)
        model = self.loss.fn if isinstance(self.loss.fn, ModelLoss) else None
        if model is not None and not (self.loss.has_aux or self.loss.keyed):
            values, errors, inputs = jax.tree.map(
                lambda x: x.astype(weight.dtype), model.errors(like(wide, params), rows)
            )
            pairs = zip(errors, inputs, strict=True)
            squares = reduce(jnp.add, (_squares(e) * (_squares(x) + 1) for e, x in pairs))
            factor = self._factor(weight, squares)
            scaled = tuple(jax.vmap(jnp.multiply)(factor, e) for e in errors)
            grads, aux = model.summed(scaled, inputs), None
        else:
            again = None if key is None else jax.random.clone(key)  # the same draws
            squares = squared_norms(self.loss, params, rows, again)

            def losses(wide: PyTree) -> tuple[Float[Array, " B"], PyTree]:
                return self.loss.each(like(wide, params), rows, key, None)[:2]

            values, back, aux = jax.vjp(losses, wide, has_aux=True)
            grads = back(self._factor(weight, squares).astype(values.dtype))[0]
        # in an empty batch every position holds a row that was not drawn
        grads, loss, aux = jax.tree.map(
            lambda x: jnp.where(jnp.any(weight != 0), x, 0),
            (grads, weigh(weight, values), weigh(weight, aux)),
        )
        if self.is_noisy:
            grads = self._noised(grads, jax.random.fold_in(state.step_key, 1))
        step = None if state.step is None else state.step + 1
        return Estimate(loss, grads, aux), GradientState(state.key, step)

    def value(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> Float[Array, ""]:
        """The loss (float[]) of the same batch at other params, without clipping."""
        weight, rows, key = self._rows(params, data, batch, state)
        loss = weigh(weight, self.loss.each(params, rows, key, None)[0])
        return jnp.where(jnp.any(weight != 0), loss, 0)

    def _rows(
        self, params: PyTree, data: PyTree, batch: Batch, state: GradientState
    ) -> tuple[Float[Array, " B"], PyTree, Key[Array, ""] | None]:
        """The weights; the rows, one with weight in place of those of weight 0; and a key."""
        weight = batch.weight.astype(accumulator_of(params))
        position = jnp.where(weight != 0, jnp.arange(len(weight)), jnp.argmax(weight != 0))
        rows = as_rows(data).take_some(batch.index, position)
        return weight, rows, jax.random.fold_in(state.step_key, 0) if self.loss.keyed else None

    def _factor(
        self, weight: Float[Array, " B"], squares: Float[Array, " B"]
    ) -> Float[Array, " B"]:
        most = jnp.asarray(self.max_norm, weight.dtype)
        is_long = ~(squares <= jnp.square(most))  # NaN too
        factor = jnp.where(is_long, most * jax.lax.rsqrt(jnp.where(is_long, squares, 1)), 1)
        return weight * factor

    def _noised(self, grads: PyTree, key: Key[Array, ""]) -> PyTree:
        assert self.row_scale is not None  # as the constructor checks
        scale = self.noise * self.max_norm * self.row_scale
        leaves, tree = jax.tree.flatten(grads)
        for i, x in enumerate(leaves):
            normal = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
            leaves[i] = x + jnp.asarray(scale, x.dtype) * normal
        return jax.tree.unflatten(tree, leaves)


def squared_norms(
    loss: RowLoss,
    params: PyTree,
    rows: PyTree,
    key: Key[Array, ""] | None,
    centre: PyTree = None,
) -> Float[Array, " B"]:
    """The squared distance of each row's gradient from `centre` or 0, a few rows at a time."""
    wide, count = accumulate(params), jax.tree.leaves(rows)[0].shape[0]
    keys = jax.random.split(validation.key(key), count) if loss.keyed else None

    def square(row_and_key: tuple[PyTree, Key[Array, ""] | None]) -> Float[Array, ""]:
        row, key = row_and_key
        grads = jax.grad(lambda wide: loss.one(like(wide, params), row, key, None)[0])(wide)
        return squared_norm(grads if centre is None else jax.tree.map(jnp.subtract, grads, centre))

    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(wide))
    return jax.lax.map(square, (rows, keys), batch_size=min(count, max(1, CHUNK // size)))


def _squares(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """The squared norm of each row of an array."""
    return jnp.sum(jnp.square(x).reshape(len(x), -1), axis=1)
