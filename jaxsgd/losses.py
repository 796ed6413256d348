"""The forms of a loss.

The losses themselves are Optax's: `squared_error` (y - yhat)^2 and half of it, `l2_loss`; logistic,
`sigmoid_binary_cross_entropy`; softmax, `softmax_cross_entropy_with_integer_labels`, or
`softmax_cross_entropy(logits, jax.nn.one_hot(label, k))`, with which a small run on a CPU is one
kernel, as its gradient has no scatter; `huber_loss`; and `hinge_loss` max(0, 1 - y yhat) for y = -1
or 1, whose subgradient in JAX is -y below the hinge, 0 above it, and halfway, -y/2, at it. Here is
how a loss is handed over:

    RowLoss(fn)     fn(params, row) -> scalar            one row: the textbook's sum; the default
    RowsLoss(fn)    fn(params, rows) -> float[B]         a model that is batched already
    BatchLoss(fn)   fn(params, rows, weight) -> scalar   a loss of the whole batch

Each takes the same options, which lengthen the arguments and the result, in this order:

    keyed=True      fn(params, row, key, ...)            a key for dropout: one a row in RowLoss
    stateful=True   fn(params, row, ..., carry)          a model state goes in, and comes out last
    has_aux=True    returns (loss, aux)                  aux is averaged with the batch's weights

so all three together are `fn(params, row, key, carry) -> (loss, aux, carry)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd.pairs import PyTree, as_callable, part, static

FORMS = (
    "RowLoss(fn(params, row) -> scalar), RowsLoss(fn(params, rows) -> float[B]) "
    "or BatchLoss(fn(params, rows, weight) -> scalar)"
)


@part
class RowLoss:
    """A loss of one row, averaged over the batch: `sum_i weight[i] fn(params, row[i])`.

    A plain function given as a loss is one. Linear in the weights. A `stateful` carry is averaged
    over the rows with the weights.

    Args:
      fn: `fn(params, row[, key][, carry]) -> scalar`, a function or callable pytree.

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

    fn: Callable[..., Any]
    has_aux: bool = static(default=False, kw_only=True)
    keyed: bool = static(default=False, kw_only=True)
    stateful: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fn", as_callable(self.fn, "RowLoss's fn"))

    def one(self, params: PyTree, row: PyTree, key: Any, carry: PyTree) -> tuple[Any, Any, Any]:
        """The loss (float[]), aux and carry of one row, with a key of its own."""
        loss, aux, new = _call(self, (params, row), key, carry)
        if jnp.shape(loss) != ():
            raise TypeError(
                f"the loss {self.fn!r} returned {_shape_of(loss)} for one row, expected a "
                f"scalar: it is given one row, of shape {jax.tree.map(jnp.shape, row)}; the "
                f"forms of a loss are {FORMS}"
            )
        return _float(loss, self), aux, new if self.stateful else None

    def each(self, params: PyTree, rows: PyTree, key: Any, carry: PyTree) -> tuple[Any, Any, Any]:
        """The losses (float[B]), aux and carries of each row."""
        one = lambda row, key: self.one(params, row, key, carry)  # noqa: E731
        if not self.keyed:
            return jax.vmap(one, (0, None))(rows, None)
        count = jax.tree.leaves(rows)[0].shape[0]
        return jax.vmap(one)(rows, jax.random.split(key, count))

    def total(
        self, params: PyTree, rows: PyTree, weight: jax.Array, key: Any, carry: PyTree
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The weighted sum of the losses, with the aux and the carry averaged alike."""
        values, aux, carries = self.each(params, rows, key, carry)
        if self.stateful:
            carry = _average(weight, carries, carry)
        return weigh(weight, values), (weigh(weight, aux), carry)


@part
class RowsLoss:
    """A loss of many rows at once: `sum_i weight[i] fn(params, rows)[i]`.

    For models that are batched already. Linear in the weights. `aux` has a leading axis B too; a
    `stateful` carry and the `key` are the whole batch's.

    Args:
      fn: `fn(params, rows[, key][, carry]) -> float[B]`, a function or callable pytree.

    Raises:
      TypeError: as `RowLoss`, or a result that is not of shape (B,).

    >>> loss = jaxsgd.RowsLoss(lambda w, rows: (rows[0] @ w - rows[1]) ** 2)
    >>> data = jnp.eye(2), jnp.array([1.0, 3.0])
    >>> result = jaxsgd.fit(loss, jnp.zeros(2), data, key=jax.random.key(0), batch_size=2,
    ...                     epochs=50, learning_rate=0.5, progress=False)
    >>> result.params.round(3).tolist()
    [1.0, 3.0]
    """

    fn: Callable[..., Any]
    has_aux: bool = static(default=False, kw_only=True)
    keyed: bool = static(default=False, kw_only=True)
    stateful: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fn", as_callable(self.fn, "RowsLoss's fn"))

    def each(self, params: PyTree, rows: PyTree, key: Any, carry: PyTree) -> tuple[Any, Any, Any]:
        """The losses (float[B]) and aux of each row, and the batch's carry."""
        values, aux, carry = _call(self, (params, rows), key, carry)
        count = jax.tree.leaves(rows)[0].shape[0]
        for name, leaf in [("loss", values), *(("aux", x) for x in jax.tree.leaves(aux))]:
            if jnp.shape(leaf)[:1] != (count,) or (name == "loss" and jnp.ndim(leaf) != 1):
                raise TypeError(
                    f"RowsLoss's {self.fn!r} returned {_shape_of(leaf)} as {name} of "
                    f"{count} rows, expected one a row; the forms are {FORMS}"
                )
        return _float(values, self), aux, carry

    def total(
        self, params: PyTree, rows: PyTree, weight: jax.Array, key: Any, carry: PyTree
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The weighted sum of the losses, the aux averaged alike, and the new carry."""
        values, aux, carry = self.each(params, rows, key, carry)
        return weigh(weight, values), (weigh(weight, aux), carry)


@part
class BatchLoss:
    """A loss that needs the whole batch: `fn(params, rows, weight)`, as with batch normalisation.

    It must weigh its rows by `weight` (float[B], 0 on padding) itself. It need not be linear in
    the weights, so a short last batch, accumulation and importance sampling are as exact as `fn`.

    Args:
      fn: `fn(params, rows, weight[, key][, carry]) -> scalar`, a function or callable pytree.

    Raises:
      TypeError: as `RowLoss`.

    >>> loss = jaxsgd.BatchLoss(lambda w, x, weight: jnp.sum(weight * (x - w) ** 2))
    """

    fn: Callable[..., Any]
    has_aux: bool = static(default=False, kw_only=True)
    keyed: bool = static(default=False, kw_only=True)
    stateful: bool = static(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "fn", as_callable(self.fn, "BatchLoss's fn"))

    def total(
        self, params: PyTree, rows: PyTree, weight: jax.Array, key: Any, carry: PyTree
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The loss of the batch, its aux as returned, and the new carry."""
        loss, aux, carry = _call(self, (params, rows, weight), key, carry)
        if jnp.shape(loss) != ():
            raise TypeError(
                f"BatchLoss's {self.fn!r} returned {_shape_of(loss)}, expected a scalar; "
                f"the forms are {FORMS}"
            )
        return _float(loss, self).astype(weight.dtype), (aux, carry)


ROWS = {RowLoss: "row", RowsLoss: "rows", BatchLoss: "rows"}


def as_loss(loss: Any) -> Any:
    """A loss form as it is; a function or callable pytree as a `RowLoss`."""
    if hasattr(loss, "update"):
        raise TypeError(
            f"the loss is {loss!r}, a gradient or another pair, expected a loss: a function of "
            "(params, row)"
        )
    return loss if isinstance(loss, RowLoss | RowsLoss | BatchLoss) else RowLoss(loss)


def weigh(weight: jax.Array, tree: PyTree) -> PyTree:
    """`sum_i weight[i] leaf[i]` of each leaf, in the weights' dtype."""
    return jax.tree.map(lambda x: jnp.tensordot(weight, x.astype(weight.dtype), 1), tree)


def _average(weight: jax.Array, carries: PyTree, carry: PyTree) -> PyTree:
    def average(new: jax.Array, old: jax.Array) -> jax.Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            raise TypeError(
                f"a RowLoss's carry is averaged over the rows, but holds {new.dtype}, "
                "expected floats; use RowsLoss or BatchLoss"
            )
        # as a change, so that weights that do not sum to 1 do not scale the state
        change = (new - old).astype(weight.dtype)
        return (old + jnp.tensordot(weight, change, 1)).astype(old.dtype)

    return jax.tree.map(average, carries, carry)


def _call(loss: Any, args: tuple[Any, ...], key: Any, carry: PyTree) -> tuple[Any, Any, Any]:
    """The loss's function called and its result sorted into (loss, aux, carry)."""
    if loss.keyed:
        args = (*args, key)
    if loss.stateful:
        args = (*args, carry)
    try:
        result = loss.fn(*args)
    except (TypeError, ValueError, IndexError) as error:
        names = ["params", ROWS[type(loss)], "weight", "key", "carry"]
        given = [True, True, len(args) - loss.keyed - loss.stateful > 2, loss.keyed, loss.stateful]
        call = ", ".join(name for name, is_given in zip(names, given, strict=True) if is_given)
        error.add_note(
            f"raised by the loss {loss.fn!r}, called as fn({call}) with {names[1]} of shape "
            f"{jax.tree.map(jnp.shape, args[1])}; the forms of a loss are {FORMS}, each with the "
            "options keyed (for a key), stateful and has_aux"
        )
        raise
    expected = 1 + loss.has_aux + loss.stateful
    names = "(loss" + ", aux" * loss.has_aux + ", carry" * loss.stateful + ")"
    if expected == 1:
        if isinstance(result, tuple | list | dict):
            raise TypeError(
                f"the loss {loss.fn!r} returned a {type(result).__name__}, expected a "
                "number; for aux give has_aux=True, for a model state stateful=True"
            )
        return result, None, carry
    if not isinstance(result, tuple) or len(result) != expected:
        raise TypeError(
            f"the loss {loss.fn!r} returned {type(result).__name__}, expected the tuple {names}"
        )
    return result[0], result[1] if loss.has_aux else None, result[-1] if loss.stateful else carry


def _float(values: Any, loss: Any) -> jax.Array:
    if values is None:
        raise TypeError(f"the loss {loss.fn!r} returned None, expected a number: has it a return?")
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"the loss {loss.fn!r} returned {values.dtype}, expected floats")
    return values


def _shape_of(x: Any) -> str:
    return f"an array of shape {jnp.shape(x)}"
