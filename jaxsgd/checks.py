"""Validators, and the wording of errors: what was given, what was expected, and where.

Checks look only at what is concrete: tracers, and the placeholders of vmap's `in_axes` trees, pass.
"""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd.pairs import PyTree

MAX_SIZE = 2**31 - 1  # row indices are int32


def integer(value: Any, name: str, least: int, most: int = MAX_SIZE) -> int:
    """`value` as a Python int in `least..most`."""
    if isinstance(value, bool | np.bool_ | jax.core.Tracer):
        raise TypeError(
            f"{name} is {value!r}, expected a Python int: it shapes the program, so in a function "
            "that is traced (by jit, vmap, sweep) it is written down, no argument"
        )
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} is {value!r} of type {type(value).__name__}, expected an int"
        ) from None
    if not least <= result <= most:
        raise ValueError(f"{name} is {result}, expected {least} to {most}")
    return result


def number(
    value: Any, name: str, least: float = 0.0, most: float = np.inf, *, below: float = np.inf
) -> None:
    """Refuse what is no finite number (or array of them) in `least..most` and below `below`."""
    if value is None or type(value) is object or isinstance(value, jax.core.Tracer):
        return  # an in_axes tree, a tree transformation, or a trace: nothing to look at
    if not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, expected a number")
    host = np.asarray(jax.device_get(value))
    is_real = np.issubdtype(host.dtype, np.integer) or jnp.issubdtype(host.dtype, jnp.floating)
    if not is_real:
        raise TypeError(f"{name} is {value!r}, expected a real number")
    host = host.astype(np.float64)
    if not np.all((host >= least) & (host <= most) & (host < below)):
        bound = f"at least {least:g} and finite" if most == np.inf else f"{least:g} to {most:g}"
        bound += "" if below == np.inf else f" and below {below:g}"
        raise ValueError(f"{name} is {value}, expected {bound}")


def count(value: Any, name: str, least: int = 0) -> None:
    """Refuse what is no whole number of steps (or array of them) from `least` on, in 32 bits."""
    number(value, name, least)
    if not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        return
    if not isinstance(value, jax.core.Tracer):
        host = np.asarray(jax.device_get(value), np.float64)
        if np.any(host % 1) or np.any(host > MAX_SIZE):
            raise ValueError(f"{name} is {value}, expected a whole number of at most {MAX_SIZE}")


def rows(data: PyTree, name: str = "data") -> int:
    """The number of rows `n` of a pytree of arrays that share their leading axis.

    Raises:
      TypeError: a leaf is no array.
      ValueError: no leaf, no row, or leaves of different length.
    """
    no_iterator(data, name)
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(data)):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, np.ndarray | jax.Array | jax.ShapeDtypeStruct) or leaf.ndim == 0:
            given = "a scalar" if getattr(leaf, "ndim", None) == 0 else f"a {type(leaf).__name__}"
            hint = "convert it with jnp.asarray, or step over a loader's batches by solver.step_on"
            if hasattr(leaf, "row_shapes"):
                hint = "give HostRows all arrays: HostRows((x, y))"
            raise TypeError(
                f"{where} is {given}, expected an array whose leading axis counts the rows; {hint}"
            )
        if isinstance(leaf, np.ndarray):
            no_text(leaf, where)
            fits_32_bits(leaf, where)
        lengths[where] = leaf.shape[0]
    if not lengths:
        raise ValueError(f"{name} holds no array, expected a pytree of arrays with one row each")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{where} has {length}" for where, length in lengths.items())
        raise ValueError(f"the leaves of {name} differ in their number of rows: {told}")
    n = next(iter(lengths.values()))
    if n == 0:
        raise ValueError(f"{name} has 0 rows, expected at least 1")
    return n


def no_iterator(data: Any, name: str = "data") -> None:
    """Refuse an iterator of batches where rows are meant."""
    if hasattr(data, "__next__"):
        raise TypeError(
            f"{name} is an iterator ({type(data).__name__}), which a compiled run would read only "
            "once; expected arrays whose leading axis counts the rows, or a loop over its batches "
            "with solver.step_on(state, rows)"
        )


def concrete(tree: PyTree, name: str) -> None:
    """Refuse tracers where a host loop needs numbers."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree)):
        raise TypeError(
            f"{name} was called inside a traced function (jit, vmap, sweep), but is a loop on the "
            "host; use jaxsgd.run there, which is a pure function"
        )


def on_device(data: PyTree, name: str) -> None:
    """Refuse rows that lie on the host, or over a mesh, where all are looked at in one program."""
    if hasattr(data, "row_shapes"):
        raise TypeError(f"{name}'s data are {data!r}, expected arrays")


def one_a_row(value: Any, n: int, name: str) -> None:
    """Refuse an array that has not one entry for each of `n` rows."""
    shape = jnp.shape(value) if isinstance(value, np.ndarray | jax.Array) else (n,)
    if shape != (n,):
        raise ValueError(f"{name} is of shape {shape}, expected ({n},): one entry a row")


def weights(value: Any, name: str, dtype: Any = np.float32) -> None:
    """Refuse what is no array of numbers at least 0, some above it as `dtype` on the last axis."""
    if isinstance(value, jax.core.Tracer):
        return
    if not isinstance(value, np.ndarray | jax.Array) or value.ndim == 0:
        kind = type(value).__name__
        raise TypeError(f"{name} is of type {kind}, expected an array with one entry a row")
    host = np.asarray(jax.device_get(value), np.float64)
    number(host.min(initial=0), f"{name}'s least entry")
    number(host.max(initial=0), f"{name}'s largest entry")
    with np.errstate(over="ignore"):  # infinity is above 0 too
        is_above = host.astype(dtype) > 0
    if not np.all(np.any(is_above, axis=-1)):
        raise ValueError(f"{name} is 0 for all rows, expected one above 0")


def shapes(data: PyTree) -> PyTree:
    """Rows that lie on the host or a mesh by their shapes alone, others as they are."""
    return getattr(data, "row_shapes", data)


def alike(other: PyTree, data: PyTree, name: str) -> None:
    """Refuse rows that are not of the structure and shapes of the rows of `data`."""
    rows(other, name)
    forms = [form(shapes(tree)) for tree in (other, data)]
    rows_of = [(structure, [shape[1:] for shape in leaves]) for structure, leaves in forms]
    if rows_of[0] != rows_of[1]:
        told = [jax.tree.map(lambda x: x.shape[1:], shapes(tree)) for tree in (other, data)]
        raise ValueError(f"a row of {name} has shape {told[0]}, expected {told[1]} as in data")


def form(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    """The structure and shapes of a tree, to be compared whatever its containers are."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def no_text(leaf: np.ndarray, where: str) -> None:
    """Refuse text, dates and objects."""
    if leaf.dtype.kind in "OUSMm":
        raise TypeError(f"{where} is an array of {leaf.dtype}, expected numbers")


def fits_32_bits(leaf: np.ndarray, where: str) -> None:
    """Refuse 64-bit integers that JAX would wrap to 32."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        return
    is_wide = leaf.dtype in (np.int64, np.uint64) and leaf.size > 0
    if is_wide and max(int(leaf.max()), -int(leaf.min())) > MAX_SIZE:
        raise ValueError(
            f"{where} holds integers beyond 32 bits, which JAX would wrap; enable jax_enable_x64 "
            "or cast it"
        )


def params(tree: PyTree) -> None:
    """Refuse parameters that are not all float arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct)
        if is_array and jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        given = f"an array of {leaf.dtype}" if is_array else f"{leaf!r} ({type(leaf).__name__})"
        if is_array or isinstance(leaf, int | float):
            where = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{where} is {given}, expected a float array: jnp.asarray(..., float)")
        raise TypeError(
            f"params{jax.tree_util.keystr(path)} is {given}, expected a float array; train the "
            "float arrays alone and keep the rest in the loss: params, rest = "
            "eqx.partition(model, eqx.is_inexact_array), then eqx.combine(params, rest) inside it"
        )
    if not jax.tree.leaves(tree):
        raise ValueError("params holds no array, expected a pytree of float arrays")


def key(value: Any) -> jax.Array:
    """A typed key as it is, a legacy `PRNGKey` wrapped; anything else is refused."""
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            if value.ndim == 0:
                return value
        elif value.dtype == jnp.uint32 and value.ndim == 1:
            return jax.random.wrap_key_data(value)
        given = f"an array of shape {value.shape} and dtype {value.dtype}"
    else:
        given = f"{value!r} of type {type(value).__name__}"
    raise TypeError(f"key is {given}, expected one key, such as jax.random.key(0)")
