"""The forms of a loss.

The losses themselves are Optax's: `squared_error` (y - yhat)^2 and half of it, `l2_loss`; logistic,
`sigmoid_binary_cross_entropy`; softmax, `softmax_cross_entropy_with_integer_labels`, or
`softmax_cross_entropy(logits, jax.nn.one_hot(label, k))`, with which a small run on a CPU is one
kernel, as its gradient has no scatter; `huber_loss`; and `hinge_loss` max(0, 1 - y yhat) for y = -1
or 1, whose subgradient in JAX is -y below the hinge, 0 above it, and halfway, -y/2, at it. Here is
how a loss is given to a gradient:

    RowLoss(fn)     fn(params, row) -> scalar            one row: the textbook's sum; the default
    RowsLoss(fn)    fn(params, rows) -> float[B]         a model that is batched already
    BatchLoss(fn)   fn(params, rows, weight) -> scalar   a loss of the whole batch

Each takes the same options, which lengthen the arguments and the result, in this order:

    keyed=True              fn(params, row, key, ...)     a key for dropout: one per row in RowLoss
    has_model_state=True    fn(params, row, ..., state)   a state goes in, and comes out last
    has_aux=True            returns (loss, aux)           aux is averaged with the batch's weights

so all three together are `fn(params, row, key, model_state) -> (loss, aux, model_state)`.
"""

import abc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import (
    Contract,
    Function,
    as_callable,
    check_call,
    field,
    part,
    static,
)

FORMS = (
    "RowLoss(fn(params, row) -> scalar), RowsLoss(fn(params, rows) -> float[B]) "
    "or BatchLoss(fn(params, rows, weight) -> scalar)"
)
OPTIONS = "each with the options keyed (for a key), has_model_state and has_aux"


class Loss(Contract, abc.ABC):
    """What `RowLoss`, `RowsLoss` and `BatchLoss` share. It is not subclassed elsewhere.

    A custom loss is a function, or a callable part, given to one of them.

    Attributes:
      fn: the function.
      has_aux: it returns `(loss, aux)`.
      keyed: it takes a key.
      has_model_state: it takes a model state, and returns the new one last.
      is_linear: the loss of a batch is `sum_i weight[i] loss(row[i])`.
      rows_name: what the function calls its second argument.
    """

    fn: Callable[..., PyTree]
    has_aux: bool
    keyed: bool
    has_model_state: bool
    is_linear: bool = True
    rows_name: str = "rows"

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if not cls.__module__.startswith("jaxsgd."):
            raise TypeError(
                f"{cls.__name__} subclasses jaxsgd.Loss, expected a function or a callable part, "
                "given to jaxsgd.RowLoss, RowsLoss or BatchLoss"
            )

    @abc.abstractmethod
    def total(
        self,
        params: PyTree,
        rows: PyTree,
        weight: Float[Array, " B"],
        key: Key[Array, ""] | None,
        model_state: PyTree,
    ) -> tuple[Float[Array, ""], tuple[PyTree, PyTree]]:
        """The loss of a batch, its aux and the new model state."""


@part
class RowLoss(Loss):
    """A loss of one row, averaged over the batch: `sum_i weight[i] fn(params, row[i])`.

    A plain function given as a loss is one. Linear in the weights. The model state is averaged
    over the rows with the weights.

    Args:
      fn: `fn(params, row[, key][, model_state]) -> scalar`, a function or callable pytree.

    Raises:
      TypeError: `fn` is no function, hides arrays in a `functools.partial`, or its result is no
        scalar (raised when the run is traced).

    >>> loss = jaxsgd.RowLoss(lambda theta, y: (theta - y) ** 2)
    >>> solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.5))
    >>> y = jnp.array([1.0, 3.0])
    >>> state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    >>> float(jaxsgd.run(solver, state, y, 1)[0].params)
    2.0
    """

    fn: Callable[..., PyTree] = field(converter=as_callable)
    has_aux: bool = static(default=False, kw_only=True, converter=validation.flag)
    keyed: bool = static(default=False, kw_only=True, converter=validation.flag)
    has_model_state: bool = static(default=False, kw_only=True, converter=validation.flag)

    rows_name = "row"

    def __post_init__(self) -> None:
        _check_arguments(self)

    def one(
        self, params: PyTree, row: PyTree, key: Key[Array, ""] | None, model_state: PyTree
    ) -> tuple[Float[Array, ""], PyTree, PyTree]:
        """The loss, aux and model state of one row; the key is the row's."""
        loss, aux, new = _call(self, (params, row), key, model_state)
        if jnp.shape(loss) != ():
            raise TypeError(
                f"the loss {self.fn!r} returned {_shape_of(loss)} for one row, expected a "
                f"scalar: it is given one row, of shape {jax.tree.map(jnp.shape, row)}; the "
                f"forms of a loss are {FORMS}"
            )
        return _float(loss, self), aux, new if self.has_model_state else None

    def each(
        self, params: PyTree, rows: PyTree, key: Key[Array, ""] | None, model_state: PyTree
    ) -> tuple[Float[Array, " B"], PyTree, PyTree]:
        """The losses, aux and model states of each row."""
        one = lambda row, key: self.one(params, row, key, model_state)  # noqa: E731
        if not self.keyed:
            return jax.vmap(one, (0, None))(rows, None)
        count = jax.tree.leaves(rows)[0].shape[0]
        return jax.vmap(one)(rows, jax.random.split(validation.key(key), count))

    def total(
        self,
        params: PyTree,
        rows: PyTree,
        weight: Float[Array, " B"],
        key: Key[Array, ""] | None,
        model_state: PyTree,
    ) -> tuple[Float[Array, ""], tuple[PyTree, PyTree]]:
        """The weighted sum of the losses, with the aux and the model state averaged alike."""
        values, aux, model_states = self.each(params, rows, key, model_state)
        if self.has_model_state:
            model_state = _average(weight, model_states, model_state)
        return weigh(weight, values), (weigh(weight, aux), model_state)


@part
class RowsLoss(Loss):
    """A loss of many rows at once: `sum_i weight[i] fn(params, rows)[i]`.

    For models that are batched already. Linear in the weights. `aux` has a leading axis B too; a
    `has_model_state` model_state and the `key` are the whole batch's.

    Args:
      fn: `fn(params, rows[, key][, model_state]) -> float[B]`, a function or callable pytree.

    Raises:
      TypeError: as `RowLoss`, or a result that is not of shape (B,).

    >>> loss = jaxsgd.RowsLoss(lambda w, rows: (rows[0] @ w - rows[1]) ** 2)
    >>> data = jnp.eye(2), jnp.array([1.0, 3.0])
    >>> result = jaxsgd.fit(loss, jnp.zeros(2), data, key=jax.random.key(0), batch_size=2,
    ...                     epochs=50, learning_rate=0.5, progress=False)
    >>> result.params.round(3).tolist()
    [1.0, 3.0]
    """

    fn: Callable[..., PyTree] = field(converter=as_callable)
    has_aux: bool = static(default=False, kw_only=True, converter=validation.flag)
    keyed: bool = static(default=False, kw_only=True, converter=validation.flag)
    has_model_state: bool = static(default=False, kw_only=True, converter=validation.flag)

    def __post_init__(self) -> None:
        _check_arguments(self)

    @property
    def is_linear(self) -> bool:
        """Whether the loss is a sum over rows: without a model state, which is the batch's."""
        return not self.has_model_state

    def each(
        self, params: PyTree, rows: PyTree, key: Key[Array, ""] | None, model_state: PyTree
    ) -> tuple[Float[Array, " B"], PyTree, PyTree]:
        """The losses and aux of each row, and the batch's model state."""
        values, aux, model_state = _call(self, (params, rows), key, model_state)
        count = jax.tree.leaves(rows)[0].shape[0]
        for name, leaf in [("loss", values), *(("aux", x) for x in jax.tree.leaves(aux))]:
            if jnp.shape(leaf)[:1] != (count,) or (name == "loss" and jnp.ndim(leaf) != 1):
                raise TypeError(
                    f"RowsLoss's {self.fn!r} returned {_shape_of(leaf)} as {name} of "
                    f"{count} rows, expected one a row; the forms are {FORMS}"
                )
        return _float(values, self), aux, model_state

    def total(
        self,
        params: PyTree,
        rows: PyTree,
        weight: Float[Array, " B"],
        key: Key[Array, ""] | None,
        model_state: PyTree,
    ) -> tuple[Float[Array, ""], tuple[PyTree, PyTree]]:
        """The weighted sum of the losses, the aux averaged alike, and the new model state."""
        values, aux, model_state = self.each(params, rows, key, model_state)
        return weigh(weight, values), (weigh(weight, aux), model_state)


@part
class BatchLoss(Loss):
    """A loss that needs the whole batch: `fn(params, rows, weight)`, as with batch normalisation.

    It must weigh its rows by `weight` (float[B], 0 on padding) itself. It need not be linear in
    the weights, so a short last batch, accumulation and importance sampling are as exact as `fn`.

    Args:
      fn: `fn(params, rows, weight[, key][, model_state]) -> scalar`, a function or callable pytree.

    Raises:
      TypeError: as `RowLoss`.

    >>> loss = jaxsgd.BatchLoss(lambda w, x, weight: jnp.sum(weight * (x - w) ** 2))
    """

    fn: Callable[..., PyTree] = field(converter=as_callable)
    has_aux: bool = static(default=False, kw_only=True, converter=validation.flag)
    keyed: bool = static(default=False, kw_only=True, converter=validation.flag)
    has_model_state: bool = static(default=False, kw_only=True, converter=validation.flag)

    is_linear = False

    def __post_init__(self) -> None:
        _check_arguments(self)

    def total(
        self,
        params: PyTree,
        rows: PyTree,
        weight: Float[Array, " B"],
        key: Key[Array, ""] | None,
        model_state: PyTree,
    ) -> tuple[Float[Array, ""], tuple[PyTree, PyTree]]:
        """The loss of the batch, its aux as returned, and the new model state."""
        loss, aux, model_state = _call(self, (params, rows, weight), key, model_state)
        if jnp.shape(loss) != ():
            raise TypeError(
                f"BatchLoss's {self.fn!r} returned {_shape_of(loss)}, expected a scalar; "
                f"the forms are {FORMS}"
            )
        return _float(loss, self).astype(weight.dtype), (aux, model_state)


def as_loss(loss: Loss | Callable[..., PyTree], name: str = "loss") -> Loss:
    """A loss as it is; a function of (params, row) or a callable pytree as `RowLoss`.

    Raises:
      TypeError: it is not a function.

    >>> jaxsgd.as_loss(lambda theta, y: (theta - y) ** 2).keyed
    False
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss):
        raise TypeError(
            f"{name} is {loss!r} of type {type(loss).__name__}, expected a loss: a function of "
            "(params, row)"
        )
    return RowLoss(loss)


def weigh(weight: Float[Array, " B"], tree: PyTree) -> PyTree:
    """`sum_i weight[i] leaf[i]` of each leaf, in the weights' dtype."""
    return jax.tree.map(lambda x: jnp.tensordot(weight, x.astype(weight.dtype), 1), tree)


def _arguments(loss: Loss) -> tuple[str, ...]:
    """The names of the arguments that a loss gives its function."""
    names = ["params", loss.rows_name, *["weight"] * isinstance(loss, BatchLoss)]
    return (*names, *["key"] * loss.keyed, *["model_state"] * loss.has_model_state)


def _check_arguments(loss: Loss) -> None:
    """Refuse a function that cannot be called with as many arguments as the loss gives it."""
    fn = loss.fn.fn if isinstance(loss.fn, Function) else loss.fn
    hint = (
        f"; of data (x, y) a row is the tuple (x, y), so unpack it: x, y = {loss.rows_name}; the "
        f"forms of a loss are {FORMS}, {OPTIONS}"
    )
    check_call(fn, f"{type(loss).__name__}'s fn {loss.fn!r}", _arguments(loss), "fn", hint)


def _average(weight: Float[Array, " B"], model_states: PyTree, model_state: PyTree) -> PyTree:
    def average(new: Array, old: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            raise TypeError(
                f"a RowLoss's model state is averaged over the rows, but holds {new.dtype}, "
                "expected floats; use RowsLoss or BatchLoss"
            )
        # as a change, so that weights that do not sum to 1 do not scale the state
        change = (new - old).astype(weight.dtype)
        return (old + jnp.tensordot(weight, change, 1)).astype(old.dtype)

    return jax.tree.map(average, model_states, model_state)


def _call(
    loss: Loss, args: tuple[PyTree, ...], key: Key[Array, ""] | None, model_state: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """The loss's function called and its result sorted into (loss, aux, model_state)."""
    if loss.keyed:
        args = (*args, key)
    if loss.has_model_state:
        args = (*args, model_state)
    try:
        result = loss.fn(*args)
    except (TypeError, ValueError, IndexError) as error:
        error.add_note(
            f"raised by the loss {loss.fn!r}, called as fn({', '.join(_arguments(loss))}) with "
            f"{loss.rows_name} of shape {jax.tree.map(jnp.shape, args[1])}; the forms of a loss "
            f"are {FORMS}, {OPTIONS}"
        )
        raise
    expected = 1 + loss.has_aux + loss.has_model_state
    names = "(loss" + ", aux" * loss.has_aux + ", model_state" * loss.has_model_state + ")"
    if expected == 1:
        if isinstance(result, tuple | list | dict):
            raise TypeError(
                f"the loss {loss.fn!r} returned a {type(result).__name__}, expected a "
                "number; for aux give has_aux=True, for a model state has_model_state=True"
            )
        return result, None, model_state
    if not isinstance(result, tuple) or len(result) != expected:
        raise TypeError(
            f"the loss {loss.fn!r} returned {type(result).__name__}, expected the tuple {names}"
        )
    return (
        result[0],
        result[1] if loss.has_aux else None,
        result[-1] if loss.has_model_state else model_state,
    )


def _float(values: PyTree, loss: Loss) -> Float[Array, "..."]:
    if values is None:
        raise TypeError(
            f"the loss {loss.fn!r} returned None, expected a number: did you forget `return`?"
        )
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"the loss {loss.fn!r} returned {values.dtype}, expected floats")
    return values


def _shape_of(x: PyTree) -> str:
    return f"an array of shape {jnp.shape(x)}"
