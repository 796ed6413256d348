"""Small plain models, for the command and the examples: functions of a pytree of arrays.

A model holds its sizes, which are static; its parameters are a separate pytree: `params =
model.init(key)`, then `model(params, x)` for one row `x`. Models of Equinox, Flax or any other
library can be used as well.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jaxtyping import Array, Float, Num, PRNGKeyArray, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable, field, number, part, static
from jaxsgd.core.trees import accumulator
from jaxsgd.core.validation import Number
from jaxsgd.losses import RowLoss
from jaxsgd.schedules import scalar

Activation = Callable[[jax.Array], jax.Array]
ACTIVATIONS: dict[str, Activation] = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
}

# by name: the weights of a layer (fan_in, fan_out); biases start at 0
INITS: dict[str, initializers.Initializer] = {
    "zeros": initializers.zeros,
    "normal": initializers.normal(0.01),  # standard deviation
    "lecun": initializers.variance_scaling(1.0, "fan_in", "normal"),
    "xavier": initializers.variance_scaling(1.0, "fan_avg", "normal"),
    "glorot": initializers.variance_scaling(1.0, "fan_avg", "normal"),
    "he": initializers.variance_scaling(2.0, "fan_in", "normal"),
}


@part
class Linear:
    """A linear model: `weight @ x + bias`, linear, logistic or softmax regression by its loss.

    Args:
      features: d, the number of entries of a row.
      outputs: k, the number of outputs, or None for one number.
      initialise: `"zeros"` (the default: the problem is convex), or normal of mean 0: `"normal"` of
        standard deviation 0.01, `"lecun"` of variance 1/fan_in (LeCun et al. 1998), `"xavier"`,
        which is also called `"glorot"`, of 2/(fan_in + fan_out) (Glorot and Bengio 2010), `"he"` of
        2/fan_in (He et al. 2015). Some lectures call 1/fan_in Xavier; here that is `"lecun"`. The
        biases start at 0.

    Params: `{"weight": float32[k, d] or float32[d], "bias": float32[k] or float32[]}`, with a row
    of weights per output.

    Raises:
      ValueError: sizes below 1, or an unknown initialisation.

    >>> model = jaxsgd.models.Linear(3)
    >>> model(model.init(jax.random.key(0)), jnp.ones(3))
    Array(0., dtype=float32)
    """

    features: int = static()
    outputs: int | None = static(default=None)
    initialise: str = static(default="zeros", kw_only=True)

    def __post_init__(self) -> None:
        validation.integer(self.features, "Linear's features", 1)
        if self.outputs is not None:
            validation.integer(self.outputs, "Linear's outputs", 1)
        _check_init(self.initialise)

    def init(self, key: PRNGKeyArray) -> PyTree:
        """The parameters to start from; the key is consumed."""
        layer = _layer(key, self.features, self.outputs or 1, self.initialise)
        if self.outputs is None:
            return {"weight": layer["weight"][0], "bias": layer["bias"][0]}
        return layer

    def __call__(self, params: PyTree, x: Num[Array, "... d"] | np.ndarray) -> Float[Array, "..."]:
        """The output (float[k] or float[]) for a row, or the outputs for several rows."""
        return x @ params["weight"].T + params["bias"]

    def layers(self, params: PyTree) -> tuple[PyTree, ...]:
        """The layers of params: one."""
        return (params,)

    def of_layers(self, layers: tuple[PyTree, ...]) -> PyTree:
        """The params that have these layers."""
        return layers[0]


def _as_sizes(sizes: tuple[int, ...] | list[int], name: str = "sizes") -> tuple[int, ...]:
    if not isinstance(sizes, tuple | list):
        raise TypeError(f"{name} are {sizes!r}, expected a tuple such as (784, 128, 10)")
    if len(sizes) < 2:
        raise ValueError(f"{name} are {sizes}, expected features and outputs at least")
    return tuple(validation.integer(size, f"each of {name}", 1) for size in sizes)


def _as_activation(
    activation: Activation | str | None, name: str = "activation"
) -> Activation | str | None:
    is_function = callable(activation) and not isinstance(activation, type | partial)
    is_name = isinstance(activation, str) and activation in ACTIVATIONS
    if activation is None or is_name or is_function:
        return activation
    raise TypeError(
        f"{name} is {activation!r}, expected one of {', '.join(ACTIVATIONS)}, a function of an "
        "array, or None"
    )


def _activated(model: "Linear | MLP", x: jax.Array) -> jax.Array:
    """The activation of hidden units."""
    activation = "relu" if isinstance(model, Linear) else model.activation
    if activation is None:
        return x
    return ACTIVATIONS[activation](x) if isinstance(activation, str) else activation(x)


@part
class MLP:
    """A multilayer perceptron: linear layers with an activation between them, and dropout.

    `h = activation(weight @ h + bias)` for each hidden layer. With a key, a hidden unit is 0 with
    probability `dropout`, and divided by `1 - dropout` otherwise (Srivastava et al. 2014); without
    one, as in evaluation, all units stay as they are. A loss with a key trains with dropout:
    `RowLoss(lambda params, row, key: fn(model(params, row[0], key), row[1]), keyed=True)`.

    Args:
      sizes: features, hidden units and outputs: `(784, 128, 10)`.
      initialise: `"lecun"` (the default) or another, as in `Linear`; `"he"` keeps the variance
        through relu. `"zeros"` is refused: all hidden units would remain equal.
      activation: `"relu"` (the default), `"tanh"`, `"sigmoid"`, `"gelu"`, `"silu"`, `"softplus"`, a
        function of an array, or None for a deep linear network; static.
      dropout: the probability that a hidden unit is left out, at least 0 and below 1; a leaf. None
        for no dropout.

    Params: a tuple of `{"weight": float32[k, m], "bias": float32[k]}`, one per layer.

    Raises:
      ValueError: fewer than two sizes, `"zeros"` where there are hidden units, a dropout outside
        of 0 to 1.

    >>> model = jaxsgd.models.MLP((4, 16, 3), activation=jnp.tanh, dropout=0.5)
    >>> params = model.init(jax.random.key(0))
    >>> model(params, jnp.ones(4)).shape, model(params, jnp.ones(4), jax.random.key(1)).shape
    ((3,), (3,))
    """

    sizes: tuple[int, ...] = static(converter=_as_sizes)
    initialise: str = static(default="lecun", kw_only=True)
    activation: Activation | str | None = static(
        default="relu", converter=_as_activation, kw_only=True
    )
    dropout: Number | None = number(default=None, converter=validation.real(below=1), kw_only=True)

    def __post_init__(self) -> None:
        _check_init(self.initialise)
        if self.initialise == "zeros" and len(self.sizes) > 2:
            raise ValueError(
                "MLP's initialise is 'zeros', with which all hidden units would remain "
                "equal; expected 'lecun', 'xavier', 'he' or 'normal'"
            )
        if isinstance(self.dropout, int | float) and np.float32(self.dropout) == 1:
            raise ValueError(f"MLP's dropout is {self.dropout}, which is 1 in float32")

    def init(self, key: PRNGKeyArray) -> PyTree:
        """The parameters to start from; the key is consumed."""
        keys = jax.random.split(key, len(self.sizes) - 1)
        sizes = zip(keys, self.sizes[:-1], self.sizes[1:], strict=True)
        return tuple(_layer(k, fan_in, fan_out, self.initialise) for k, fan_in, fan_out in sizes)

    def __call__(
        self,
        params: PyTree,
        x: Num[Array, "... d"] | np.ndarray,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "... k"]:
        """The outputs for a row, or for several rows; with a key hidden units are dropped."""
        *hidden, last = params
        for i, layer in enumerate(hidden):
            x = _activated(self, x @ layer["weight"].T + layer["bias"])
            if key is not None and self.dropout is not None:
                # in bfloat16 a dropout of 0.001 would be 0
                dtype = accumulator(x.dtype)
                kept = 1 - scalar(self.dropout, "MLP's dropout").astype(dtype)
                is_kept = jax.random.bernoulli(jax.random.fold_in(key, i), kept, x.shape)
                x = jnp.where(is_kept, (x.astype(dtype) / kept).astype(x.dtype), 0)
        return x @ last["weight"].T + last["bias"]

    def layers(self, params: PyTree) -> tuple[PyTree, ...]:
        """The layers of params: params itself."""
        return tuple(params)

    def of_layers(self, layers: tuple[PyTree, ...]) -> PyTree:
        """The params that have these layers."""
        return layers


@part
class ModelLoss:
    """The loss of a model's output: `fn(model(params, x), y)` of a row `(x, y)`.

    A function of `(params, row)` as any loss, whose layers a gradient can use: the gradient of a
    row with respect to a layer's weights is the outer product of the row's error and input. So
    `PerExampleClipped` computes its norm from theirs, and `SAGA` stores the error of a row instead
    of its gradient.

    Args:
      model: `Linear` or `MLP`.
      fn: `fn(output, y) -> scalar`, such as `optax.squared_error`; a function or callable pytree.

    >>> model = jaxsgd.models.Linear(2)
    >>> loss = jaxsgd.models.ModelLoss(model, optax.sigmoid_binary_cross_entropy)
    >>> float(loss(model.init(jax.random.key(0)), (jnp.ones(2), 1.0)))
    0.6931471824645996
    """

    model: Linear | MLP = field()
    fn: Callable[..., jax.Array] = field(converter=as_callable)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Linear | MLP):
            raise TypeError(
                f"ModelLoss's model is {self.model!r}, expected models.Linear or models.MLP; for "
                "another model a loss is a function of (params, row)"
            )
        dropout = self.model.dropout if isinstance(self.model, MLP) else None
        if dropout is not None and not (isinstance(dropout, int | float) and dropout == 0):
            raise ValueError(
                f"ModelLoss's model is {self.model!r}, whose dropout needs a key, expected "
                "RowLoss(lambda params, row, key: fn(model(params, row[0], key), row[1]), "
                "keyed=True)"
            )

    def __call__(self, params: PyTree, row: PyTree) -> jax.Array:
        """The loss (float[]) of a row (x, y)."""
        x, y = row
        return self.fn(self.model(params, x), y)

    def errors(
        self, params: PyTree, rows: PyTree
    ) -> tuple[Float[Array, " B"], tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """The losses, and each layer's errors (float[B, k]) and inputs (float[B, m]).

        An error is the gradient of a row's loss with respect to the outputs of the layer before
        the activation (backpropagation's delta).
        """
        one = jax.tree.map(lambda x: x[0], rows)
        jax.eval_shape(lambda row: RowLoss(self).one(params, row, None, None), one)  # checks
        x, y = rows
        layers = self.model.layers(params)

        def losses(
            shifts: tuple[jax.Array, ...],
        ) -> tuple[Float[Array, " B"], tuple[jax.Array, ...]]:
            inputs: list[jax.Array] = []
            output = x
            for layer, shift in zip(layers, shifts, strict=True):
                inputs.append(_activated(self.model, output) if inputs else output)
                output = inputs[-1] @ layer["weight"].T + layer["bias"] + shift
            return jax.vmap(self.fn)(output, y), tuple(inputs)

        count = x.shape[:1]
        shifts = tuple(jnp.zeros(count + x["bias"].shape, x["bias"].dtype) for x in layers)
        values, back, inputs = jax.vjp(losses, shifts, has_aux=True)
        return values, back(jnp.ones_like(values))[0], inputs

    def summed(self, weighted: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]) -> PyTree:
        """The weighted sum of the rows' gradients, from their weighted errors and inputs."""
        layers = zip(weighted, inputs, strict=True)
        return self.model.of_layers(
            tuple({"bias": e.sum(0), "weight": jnp.tensordot(e, x, (0, 0))} for e, x in layers)
        )


def weights_only(params: PyTree) -> PyTree:
    """A penalty's mask that leaves out what is named `bias`: `L2(1e-3, mask=weights_only)`.

    A leaf is left out if the last name of its path in the tree is `bias`, as in `Linear` and `MLP`.
    For other names, or for tuples, write a custom mask.

    >>> jaxsgd.models.weights_only({"weight": jnp.ones(2), "bias": jnp.ones(())})
    {'bias': False, 'weight': True}
    """

    def is_weight(path: tuple[object, ...], _: PyTree) -> bool:
        last = path[-1] if path else None  # None for a bare array
        return getattr(last, "key", getattr(last, "name", None)) != "bias"

    return jax.tree_util.tree_map_with_path(is_weight, params)


def _layer(key: PRNGKeyArray, fan_in: int, fan_out: int, initialise: str) -> PyTree:
    weight = INITS[initialise](key, (fan_in, fan_out), jnp.float32)
    # A row of weights per output: XLA's CPU backend contracts the gradient of `x @ w.T`, with w of
    # shape (10, 784), in a quarter of the time of that of `x @ w` (batch 64; 0.55 of a step).
    return {"weight": weight.T, "bias": jnp.zeros(fan_out, jnp.float32)}


def _check_init(initialise: str) -> None:
    if initialise not in INITS:
        raise ValueError(f"initialise is {initialise!r}, expected one of {', '.join(INITS)}")
