"""The vocabulary: the pytree decorator, and the records that flow between the pairs.

Every part of a run (sampler, gradient, rule, solver) is a frozen dataclass made by `part`. What
changes the program is a `static()` field; what changes only the numbers is a leaf. So a part is an
ordinary argument of a jitted function: another learning rate compiles nothing, and any number can
be vmapped, moved, saved and differentiated.

    sampler   init(key) -> state                  update(state) -> (Batch, state)
    gradient  init(params, data, key) -> state    update(params, data, batch, state)
                                                      -> (Estimate, state)
    rule      init(params) -> state               update(grads, state, params, **extra)
                                                      -> (updates, state)
    solver    init(params, data, *, key) -> State step(state, data) -> (State, Info)
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

PyTree = Any
T = TypeVar("T")


class NumberKey(NamedTuple):
    """The path entry of a number of a part: an int found there is meant as a float."""

    name: str

    def __str__(self) -> str:
        return f".{self.name}"


def static(**options: Any) -> Any:
    """A dataclass field that is part of the compiled program, not of its arguments."""
    return dataclasses.field(metadata={"static": True}, **options)


def number(**options: Any) -> Any:
    """A dataclass field that holds a number (or a schedule): a leaf, swept and differentiated."""
    return dataclasses.field(metadata={"number": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, number, dataclasses.field))
def part(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose leaves are its fields not `static()`.

    Unflattening bypasses `__init__` and `__post_init__`, so that checks there see only what a user
    wrote, never tracers, placeholders or the cotangents of a solver. Parts compare by identity,
    for a comparison of their arrays would have no single truth value.

    >>> @jaxsgd.part
    ... class Scale:
    ...     factor: float = jaxsgd.number()
    ...     def __call__(self, step):
    ...         return self.factor * step
    >>> jax.tree.leaves(Scale(2.0))
    [2.0]
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    statics = [f.name for f in fields if f.metadata.get("static")]
    leaves = [f.name for f in fields if not f.metadata.get("static")]
    numbers = {f.name for f in fields if f.metadata.get("number")}
    keys = [NumberKey(name) if name in numbers else GetAttrKey(name) for name in leaves]

    def flatten(part: Any) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(part, name) for name in leaves], tuple(getattr(part, n) for n in statics)

    def flatten_with_keys(part: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        children, aux = flatten(part)
        return list(zip(keys, children, strict=True)), aux

    def unflatten(aux: tuple[Any, ...], children: Any) -> Any:
        part = object.__new__(cls)
        for name, value in zip(leaves + statics, (*children, *aux), strict=True):
            object.__setattr__(part, name, value)
        return part

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


@part
class Function:
    """A plain function as a part: static, told apart by the function's identity."""

    fn: Callable[..., Any] = static()

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.fn(*args, **named)

    def __repr__(self) -> str:
        return getattr(self.fn, "__qualname__", repr(self.fn))


def as_callable(fn: Any, name: str) -> Any:
    """A callable pytree as it is, a plain function wrapped as static.

    Raises:
      TypeError: `fn` is not callable, is a `functools.partial`, or holds leaves that are no arrays.
    """
    if isinstance(fn, partial) and not isinstance(fn, jax.tree_util.Partial):
        raise TypeError(
            f"{name} is a functools.partial, which would hide its arrays as constants and compile "
            "again for each new one; use jax.tree_util.Partial(fn, ...), whose arguments are leaves"
        )
    if not callable(fn):
        raise TypeError(f"{name} is {fn!r} of type {type(fn).__name__}, expected a function")
    if jax.tree_util.all_leaves([fn]):
        return Function(fn)
    for path, leaf in jax.tree_util.tree_leaves_with_path(fn):
        if callable(leaf) or isinstance(leaf, str):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {leaf!r}, which is no array: a callable "
                "pytree's leaves are arguments of the compiled run, so mark this field as static"
            )
    return fn


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
    noise: Any = None  # a `Noise`, of `NoiseScale`


class Info(NamedTuple):
    """What one step tells. What nobody records is not computed in a compiled run."""

    step: Any = None  # int32[]: 0 is the first step
    loss: Any = None  # float[]: of the batch, before the update, without the penalty
    penalty: Any = None  # float[]: of the parameters before the update; 0 without a penalty
    grad_norm: Any = None  # float[]: Euclidean norm of the gradient of loss + solver's penalty
    update_norm: Any = None  # float[]: Euclidean norm of the updates that the rule returned
    aux: Any = None  # what the loss returned beside itself, averaged with the weights
    learning_rate: Any = None  # float[]: the rate of this step; None where the rule tells none
    noise: Any = None  # a `Noise`: the gradient's variance, where the gradient is a `NoiseScale`
    finite: Any = None  # bool[]: loss, gradient and the parameters after the step are all finite


class State(NamedTuple):
    """Everything a run needs to go on: a pytree of arrays and keys, nothing else."""

    params: PyTree
    step: jax.Array  # int32[]: the number of steps taken, at most 2**31 - 1
    rule: PyTree
    sampler: PyTree
    gradient: PyTree

    @property
    def carry(self) -> PyTree:
        """The model state of a `stateful` loss (batch statistics, say), else None."""
        return self.gradient.carry


class Sampler(Protocol):
    """Which rows a step takes. Batch `t` is a pure function of `(key, t)`."""

    batch_size: int
    size: int | None

    def init(self, key: jax.Array) -> PyTree: ...
    def update(self, state: PyTree) -> tuple[Batch, PyTree]: ...
    def batch(self, key: jax.Array, step: Any) -> Batch: ...
    @property
    def steps_per_epoch(self) -> int: ...


class Gradient(Protocol):
    """The gradient of a batch. Its state has an attribute `carry`."""

    def init(self, params: PyTree, data: PyTree, key: jax.Array, carry: PyTree = None) -> Any: ...
    def update(
        self, params: PyTree, data: PyTree, batch: Batch, state: Any
    ) -> tuple[Estimate, Any]: ...
    def value(self, params: PyTree, data: PyTree, batch: Batch, state: Any) -> jax.Array: ...


class Rule(Protocol):
    """The update: Optax's protocol."""

    def init(self, params: PyTree) -> PyTree: ...
    def update(
        self, grads: PyTree, state: PyTree, params: PyTree, **extra: Any
    ) -> tuple[PyTree, PyTree]: ...


def accumulator(dtype: Any) -> np.dtype:
    """The dtype numbers are accumulated in beside `dtype`: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def accumulate(tree: PyTree) -> PyTree:
    """The float leaves of a tree in their accumulator's dtype, strong-typed, as JAX arrays."""

    def cast(leaf: Any) -> Any:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return strong(leaf)
        return jax.lax.convert_element_type(leaf, accumulator(leaf.dtype))

    return jax.tree.map(cast, tree)


def accumulator_of(tree: PyTree) -> np.dtype:
    """The one accumulator's dtype for all leaves of a tree: float64 if any leaf is float64."""
    return np.result_type(np.float32, *(accumulator(x.dtype) for x in jax.tree.leaves(tree)))


def is_finite(tree: PyTree) -> jax.Array:
    """Whether all numbers of a tree are finite (bool[])."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def squared_norm(tree: PyTree) -> jax.Array:
    """The sum of the squares of all numbers of a tree (float[])."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)]))


def select(chosen: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `chosen` (bool[]), else `old`, leaf by leaf, keys included."""

    def pick(new: jax.Array, old: jax.Array) -> jax.Array:
        if new is old:  # what no step changes, a sampler's table, is not copied
            return new
        return by_words(lambda a, b: jnp.where(chosen, a, b), new, old)

    return jax.tree.map(pick, new, old)


def words_of(tree: PyTree) -> PyTree:
    """A tree with the words of its keys in their places; keys that are moved count as used."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def keys_of(words: PyTree, like: PyTree) -> PyTree:
    """The tree again, its keys where those of `like` are, and of their kind."""

    def key(word: Any, old: Any) -> Any:
        if not _is_key(old):
            return word
        return jax.random.wrap_key_data(word, impl=jax.random.key_impl(old))

    return jax.tree.map(key, words, like)


def by_words(fn: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """`fn` of arrays, or of the words of keys."""
    return keys_of(fn(*words_of(arrays)), arrays[0])


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def strong(array: jax.Array) -> jax.Array:
    """The same array without JAX's weak type, which would retrace a scan or a jit."""
    is_weak = getattr(array, "weak_type", False)  # typed keys have none
    return jax.lax.convert_element_type(array, array.dtype) if is_weak else array


def as_arguments(tree: PyTree) -> PyTree:
    """The leaves of a tree as strong-typed JAX arrays, put on the device in one explicit transfer.

    A Python float handed to a jitted function is a hidden transfer of a weak type. Ints at a
    number of a part become floats of the default dtype, so that rates 1 and 0.5 are one program.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_as_argument(path, leaf) for path, leaf in paths]
    host = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)]
    for i, leaf in zip(host, jax.device_put([leaves[i] for i in host]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _as_argument(path: tuple[Any, ...], leaf: Any) -> Any:
    default = jax.dtypes.canonicalize_dtype(float)
    is_number = bool(path) and isinstance(path[-1], NumberKey)
    if isinstance(leaf, jax.core.Tracer):
        return strong(leaf.astype(default) if is_number else leaf)
    if isinstance(leaf, jax.Array):
        is_other = is_number and leaf.dtype != default
        if not is_other and not getattr(leaf, "weak_type", False):
            return leaf
        leaf = np.asarray(jax.device_get(leaf))  # converting on the device would compile
    elif isinstance(leaf, bool | int | float | np.ndarray | np.generic):
        kind = {bool: bool, int: int, float: float}.get(type(leaf))
        leaf = np.asarray(leaf, kind and jax.dtypes.canonicalize_dtype(kind))
    else:
        where = jax.tree_util.keystr(path)
        raise TypeError(f"{where} is {leaf!r} of type {type(leaf).__name__}, expected an array")
    return leaf.astype(default) if is_number else leaf


def beside(tree: PyTree, data: PyTree) -> PyTree:
    """The leaves of a tree placed where the data are, if the data were placed by hand.

    Else a run's first result would be committed to the data's device where its start was not, and
    the second call would compile again.
    """
    arrays = [x for x in jax.tree.leaves(data) if isinstance(x, jax.Array)]
    if any(isinstance(x, jax.core.Tracer) for x in [*arrays, *jax.tree.leaves(tree)]):
        return tree
    placed = [x.sharding for x in arrays if x.committed]
    if not placed:
        return tree
    place = placed[0]
    if isinstance(place, jax.sharding.NamedSharding):  # rows are sharded, a state is not
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    if place.is_fully_addressable:
        return jax.device_put(tree, place)
    # on a mesh of several processes, each of which has the same tree
    put = lambda x: jax.make_array_from_process_local_data(place, np.asarray(x))  # noqa: E731
    return jax.tree.map(partial(by_words, put), tree)
