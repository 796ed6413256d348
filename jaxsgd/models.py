"""Small plain models, for the command and the examples: functions of a pytree of arrays.

A model is static (its sizes), its parameters are a pytree of their own: `params = model.init(key)`,
then `model(params, x)` for one row `x`. Models from Equinox, Flax or anywhere else do as well.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import initializers

from jaxsgd import checks
from jaxsgd.pairs import PyTree, part, static

# by name: the weights of a layer (fan_in, fan_out); biases start at 0
INITS = {
    "zeros": initializers.zeros,
    "normal": initializers.normal(0.01),  # standard deviation
    "xavier": initializers.variance_scaling(1.0, "fan_in", "normal"),
    "glorot": initializers.variance_scaling(1.0, "fan_avg", "normal"),
    "he": initializers.variance_scaling(2.0, "fan_in", "normal"),
}


@part
class Linear:
    """A linear model: `weight @ x + bias`, linear, logistic or softmax regression by its loss.

    Args:
      features: d, the entries of a row.
      outputs: k, or None for one number.
      initialise: `"zeros"` (the default: the problem is convex), or normal of mean 0: `"normal"` of
        standard deviation 0.01, `"xavier"` of variance 1/fan_in, the inputs alone, `"glorot"` of
        2/(fan_in + fan_out) (Glorot and Bengio 2010), `"he"` of 2/fan_in (He et al. 2015). The
        biases start at 0.

    Params: `{"weight": float32[k, d] or float32[d], "bias": float32[k] or float32[]}`. A row of
    weights an output: so a CPU contracts the gradient of a batch several times as fast.

    Raises:
      ValueError: sizes below 1, or an unknown initialisation.

    >>> model = jaxsgd.Linear(3)
    >>> model(model.init(jax.random.key(0)), jnp.ones(3))
    Array(0., dtype=float32)
    """

    features: int = static()
    outputs: int | None = static(default=None)
    initialise: str = static(default="zeros", kw_only=True)

    def __post_init__(self) -> None:
        checks.integer(self.features, "Linear's features", 1)
        if self.outputs is not None:
            checks.integer(self.outputs, "Linear's outputs", 1)
        _check_init(self.initialise)

    def init(self, key: jax.Array) -> PyTree:
        """The parameters to start from; the key is consumed."""
        layer = _layer(key, self.features, self.outputs or 1, self.initialise)
        if self.outputs is None:
            return {"weight": layer["weight"][0], "bias": layer["bias"][0]}
        return layer

    def __call__(self, params: PyTree, x: jax.Array) -> jax.Array:
        """The output (float[k] or float[]) for a row (float[d]); rows (float[..., d]) do too."""
        return x @ params["weight"].T + params["bias"]


@part
class MLP:
    """A multilayer perceptron: linear layers with `relu(z) = max(z, 0)` between them.

    Args:
      sizes: features, hidden units and outputs: `(784, 128, 10)`.
      initialise: `"xavier"` (the default) or another, as in `Linear`; `"he"` keeps the variance
        through relu. `"zeros"` is refused: all hidden units would stay alike.

    Params: a tuple of `{"weight": float32[k, m], "bias": float32[k]}`, a layer each.

    Raises:
      ValueError: fewer than two sizes, or zeros where there are hidden units.

    >>> model = jaxsgd.MLP((4, 16, 3))
    >>> model(model.init(jax.random.key(0)), jnp.ones(4)).shape
    (3,)
    """

    sizes: tuple[int, ...] = static()
    initialise: str = static(default="xavier", kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, tuple | list):
            raise TypeError(
                f"MLP's sizes are {self.sizes!r}, expected a tuple such as (784, 128, 10)"
            )
        object.__setattr__(self, "sizes", tuple(self.sizes))
        if len(self.sizes) < 2:
            raise ValueError(
                f"MLP's sizes are {self.sizes}, expected features and outputs at least"
            )
        for size in self.sizes:
            checks.integer(size, "each of MLP's sizes", 1)
        _check_init(self.initialise)
        if self.initialise == "zeros" and len(self.sizes) > 2:
            raise ValueError(
                "MLP's initialise is 'zeros', with which all hidden units would stay "
                "alike; expected 'xavier', 'glorot', 'he' or 'normal'"
            )

    def init(self, key: jax.Array) -> PyTree:
        """The parameters to start from; the key is consumed."""
        keys = jax.random.split(key, len(self.sizes) - 1)
        pairs = zip(keys, self.sizes[:-1], self.sizes[1:], strict=True)
        return tuple(_layer(k, fan_in, fan_out, self.initialise) for k, fan_in, fan_out in pairs)

    def __call__(self, params: PyTree, x: jax.Array) -> jax.Array:
        """The outputs (float[k]) for a row (float[d]); rows (float[..., d]) do too."""
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["weight"].T + layer["bias"])
        return x @ last["weight"].T + last["bias"]


def weights_only(params: PyTree) -> PyTree:
    """A penalty's mask that leaves out what is named `bias`: `L2(1e-3, mask=weights_only)`.

    By the last name in the tree, as `Linear` and `MLP` have it; for other names, or for tuples,
    write a mask of your own.

    >>> jaxsgd.weights_only({"weight": jnp.ones(2), "bias": jnp.ones(())})
    {'bias': False, 'weight': True}
    """

    def is_weight(path: tuple[Any, ...], _: Any) -> bool:
        last = path[-1] if path else None  # a bare array
        return getattr(last, "key", getattr(last, "name", None)) != "bias"

    return jax.tree_util.tree_map_with_path(is_weight, params)


def _layer(key: jax.Array, fan_in: int, fan_out: int, initialise: str) -> PyTree:
    weight = INITS[initialise](key, (fan_in, fan_out), jnp.float32)
    return {"weight": weight.T, "bias": jnp.zeros(fan_out, jnp.float32)}


def _check_init(initialise: str) -> None:
    if initialise not in INITS:
        raise ValueError(f"initialise is {initialise!r}, expected one of {', '.join(INITS)}")
