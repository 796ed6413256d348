"""Operations on pytrees of arrays and keys: dtypes of accumulators, norms, devices."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import KeyPath
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxsgd.core.part import NumberKey, set_fields

T = TypeVar("T")


def accumulator(dtype: DTypeLike) -> np.dtype:
    """The dtype in which `dtype` is accumulated: float64 for float64, otherwise float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def accumulate(tree: PyTree) -> PyTree:
    """The float leaves of a tree in their accumulator's dtype, strong-typed, as JAX arrays."""

    def cast(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return strong(leaf)
        return jax.lax.convert_element_type(leaf, accumulator(leaf.dtype))

    return jax.tree.map(cast, tree)


def accumulator_of(tree: PyTree) -> np.dtype:
    """The one accumulator's dtype for all leaves of a tree: float64 if any leaf is float64."""
    return np.result_type(np.float32, *(accumulator(x.dtype) for x in jax.tree.leaves(tree)))


def gather(tree: PyTree, index: Int[Array, "..."] | np.ndarray) -> PyTree:
    """The rows of arrays at `index`. Bounds are not checked: samplers stay within them."""
    return jax.tree.map(lambda x: jnp.asarray(x).at[index].get(mode="promise_in_bounds"), tree)


def is_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether all numbers of a tree are finite (bool[])."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def squared_norm(tree: PyTree) -> Float[Array, ""]:
    """The sum of the squares of all numbers of a tree (float[])."""
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)]))


def select(chosen: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where `chosen` (bool[]), else `old`, leaf by leaf, keys included."""

    def pick(new: Array, old: Array) -> Array:
        if new is old:  # what no step changes, a sampler's table, is not copied
            return new
        return by_words(lambda a, b: jnp.where(chosen, a, b), new, old)

    return jax.tree.map(pick, new, old)


def words_of(tree: PyTree) -> PyTree:
    """A tree with the words of its keys in their places; keys that are moved count as used."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def keys_of(words: PyTree, like: PyTree) -> PyTree:
    """The tree again, its keys where those of `like` are, and of their kind."""

    def key(word: Array, old: Array) -> Array:
        if not _is_key(old):
            return word
        return jax.random.wrap_key_data(word, impl=jax.random.key_impl(old))

    return jax.tree.map(key, words, like)


def by_words(fn: Callable[..., Array], *arrays: Array | np.ndarray) -> Array:
    """`fn` of arrays, or of the words of keys."""
    return keys_of(fn(*words_of(arrays)), arrays[0])


def _is_key(x: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def strong(array: Array) -> Array:
    """The same array without JAX's weak type, which would retrace a scan or a jit."""
    is_weak = getattr(array, "weak_type", False)  # typed keys have none
    return jax.lax.convert_element_type(array, array.dtype) if is_weak else array


def as_arguments(tree: PyTree) -> PyTree:
    """The leaves of a tree as strong-typed JAX arrays, put on the device in one explicit transfer.

    A Python float given to a jitted function is a hidden transfer of a weak type. An int in a
    `number()` field becomes a float of the default dtype, so that rates 1 and 0.5 are one program.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    leaves = [_as_argument(path, leaf) for path, leaf in paths]
    host = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray)]
    if not host:  # an empty transfer takes 5 us
        return jax.tree.unflatten(structure, leaves)
    for i, leaf in zip(host, jax.device_put([leaves[i] for i in host]), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def part_as_arguments(part: T) -> T:
    """`as_arguments` of a part, kept in it where nothing can change its leaves."""
    place = jax.config.jax_enable_x64, jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    kept, converted = vars(part).get("_arguments", (None, None))
    if kept == place:
        return converted
    converted = as_arguments(part)
    constant = bool | int | float | np.generic | Array
    leaves = jax.tree.leaves((part, converted))  # within a trace these are its own
    if all(isinstance(x, constant) and not isinstance(x, Tracer) for x in leaves):
        set_fields(part, _arguments=(place, converted))
    return converted


def _as_argument(path: KeyPath, leaf: object) -> Array | np.ndarray:
    is_number = bool(path) and isinstance(path[-1], NumberKey)
    if not is_number and isinstance(leaf, Array) and not getattr(leaf, "weak_type", False):
        return leaf
    default = jax.dtypes.canonicalize_dtype(float)
    if isinstance(leaf, Tracer):
        return strong(leaf.astype(default) if is_number else leaf)
    if isinstance(leaf, Array):
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


def placed_like(tree: PyTree, data: PyTree) -> PyTree:
    """The leaves of a tree on the devices of the data, where those were chosen explicitly.

    Otherwise the first result of a run would be committed to the data's device where its initial
    state was not, and the second call would compile again.
    """
    arrays = [x for x in jax.tree.leaves(data) if isinstance(x, Array)]
    if any(isinstance(x, Tracer) for x in [*arrays, *jax.tree.leaves(tree)]):
        return tree
    placed = [x.sharding for x in arrays if x.committed]
    if not placed:
        return tree
    place = placed[0]
    if isinstance(place, jax.sharding.NamedSharding):  # rows are sharded, a state is not
        place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(partial(put_on, place), tree)


def put_on(place: jax.sharding.Sharding, x: Array | np.ndarray) -> Array:
    """An array where `place` says. For devices of several processes, all give the same array."""
    if place.is_fully_addressable:
        return jax.device_put(x, place)
    if isinstance(x, Array) and not x.is_fully_addressable:
        return x if x.sharding == place else jax.jit(lambda x: x, out_shardings=place)(x)

    def put(x: Array | np.ndarray) -> Array:
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, place, lambda at: host[at])

    return by_words(put, x)


def like(tree: PyTree, params: PyTree) -> PyTree:
    """The leaves of a tree in the dtypes of `params`."""
    return jax.tree.map(lambda x, p: x.astype(p.dtype), tree, params)
