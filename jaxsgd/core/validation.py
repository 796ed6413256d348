"""Validators: each refuses a wrong argument with its name, its value and what was expected.

Only concrete values are checked: tracers, and the None of a vmap's `in_axes` tree, pass. `whole`,
`real` and `flag` make converters for the fields of a part.
"""

import operator
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key, Num, PyTree, Shaped

from jaxsgd.core.part import NumberKey

# an array of several numbers is for a part that is mapped over with `jax.vmap`
Number = int | float | np.number | np.ndarray | Num[Array, "..."]
SampleWeight = Shaped[np.ndarray, "... n"] | Shaped[Array, "... n"]  # floats, ints or a mask

MAX_SIZE = 2**31 - 1  # row indices are int32


def integer(value: object, name: str, least: int, most: int = MAX_SIZE) -> int:
    """`value` as a Python int in `least..most`."""
    if isinstance(value, bool | np.bool_ | Tracer):
        raise TypeError(
            f"{name} is {value!r}, expected a Python int: it shapes the program, so in a function "
            "that is traced (by jit, vmap, sweep) close over it instead of passing it"
            + "; DynamicBatch takes a batch size that is traced"
            * name.endswith("batch_size")
        )
    try:
        result = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise TypeError(
            f"{name} is {value!r} of type {type(value).__name__}, expected an int"
        ) from None
    if not least <= result <= most:
        raise ValueError(f"{name} is {result}, expected {least} to {most}")
    return result


def number(
    value: object, name: str, least: float = 0.0, most: float = np.inf, *, below: float = np.inf
) -> None:
    """Refuse what is no finite number (or array of them) in `least..most` and below `below`."""
    if value is None or isinstance(value, Tracer):
        return  # an `in_axes` tree, or a trace
    no_mask(value, name)
    if not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, expected a number")
    host = _on_host(value)
    is_real = np.issubdtype(host.dtype, np.integer) or jnp.issubdtype(host.dtype, jnp.floating)
    if not is_real:
        raise TypeError(f"{name} is {value!r}, expected a real number")
    host = host.astype(np.float64)
    if not np.all((host >= least) & (host <= most) & (host < below)):
        bound = f"at least {least:g} and finite" if most == np.inf else f"{least:g} to {most:g}"
        bound += "" if below == np.inf else f" and below {below:g}"
        raise ValueError(f"{name} is {value}, expected {bound}")


def whole(least: int, most: int = MAX_SIZE) -> Callable[[SupportsIndex], int]:
    """A converter to a Python int in `least..most`."""

    def convert(value: SupportsIndex, name: str = "the argument") -> int:
        return integer(value, name, least, most)

    return convert


def optional_whole(least: int) -> Callable[[SupportsIndex | None], int | None]:
    """A converter to a Python int of at least `least`, where None stays None."""

    def convert(value: SupportsIndex | None, name: str = "the argument") -> int | None:
        return None if value is None else integer(value, name, least)

    return convert


def real(
    least: float = 0.0, most: float = np.inf, *, below: float = np.inf
) -> Callable[[Number], Number]:
    """A converter that keeps a number (or an array of stacked ones) within bounds as it is."""

    def convert(value: Number, name: str = "the argument") -> Number:
        number(value, name, least, most, below=below)
        return value

    return convert


def optional_real(least: float = 0.0) -> Callable[[Number | None], Number | None]:
    """A converter that keeps a number of at least `least`, or None, as it is."""

    def convert(value: Number | None, name: str = "the argument") -> Number | None:
        number(value, name, least)
        return value

    return convert


def whole_number(least: int) -> Callable[[Number], Number]:
    """A converter that keeps a count of steps or checks (a leaf) as it is."""

    def convert(value: Number, name: str = "the argument") -> Number:
        count(value, name, least)
        return value

    return convert


def flag(value: bool, name: str = "the argument") -> bool:
    """A converter to a Python bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def count(value: object, name: str, least: int = 0) -> None:
    """Refuse what is no whole number of steps (or array of them) from `least` on, in 32 bits."""
    number(value, name, least)
    if not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
        return
    if not isinstance(value, Tracer):
        host = _on_host(value).astype(np.float64, copy=False)
        if np.any(host % 1) or np.any(host > MAX_SIZE):
            raise ValueError(f"{name} is {value}, expected a whole number of at most {MAX_SIZE}")


def step(value: object, name: str = "step") -> Int[Array, ""]:
    """A step number (0 at the first) as an int32[]. The value of a JAX array is not waited for."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value}, expected an int, 0 at the first step")
    if not isinstance(value, jax.Array):
        value = integer(value, name, 0)
    elif value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} is {value.dtype}{list(value.shape)}, expected an int32[]")
    return jnp.asarray(value, jnp.int32)


def steps_fit(steps: int, name: str, at: object) -> None:
    """Refuse steps from a step on that the counter of a state, an int32, cannot count.

    The step of a state that is still being computed is not waited for.
    """
    if isinstance(at, Tracer):
        return
    if isinstance(at, jax.Array) and not at.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
        return
    most = MAX_SIZE - int(np.max(_on_host(at)))
    if steps > most:
        raise ValueError(
            f"{name}: expected at most {most} steps, got {steps}: a state counts its steps in 32 "
            "bits"
        )


@contextmanager
def traced(what: str, instead: str) -> Iterator[None]:
    """Turn JAX's error about a traced value that Python needs into a sentence about `what`."""
    try:
        yield
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise TypeError(f"{what} while it is traced; {instead}") from error


def no_iterator(data: object, name: str = "data") -> None:
    """Refuse an iterator of batches where rows are meant."""
    if isinstance(data, Iterator):
        raise TypeError(
            f"{name} is an iterator ({type(data).__name__}), which a compiled run would read only "
            "once; expected arrays whose leading axis counts the rows, or a loop over its batches "
            "with solver.step_on(state, rows)"
        )


def concrete(tree: PyTree, name: str) -> None:
    """Refuse tracers where a host loop needs numbers."""
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(tree)):
        raise TypeError(
            f"{name} was called inside a traced function (jit, vmap, sweep), but is a loop on the "
            "host; use jaxsgd.run there, which is a pure function"
        )


def one_a_row(value: object, n: int, name: str) -> None:
    """Refuse an array that has not one entry for each of `n` rows."""
    shape = jnp.shape(value) if isinstance(value, np.ndarray | jax.Array) else (n,)
    if shape != (n,):
        raise ValueError(f"{name} is of shape {shape}, expected ({n},): one entry a row")


def weights(value: object, name: str, dtype: DTypeLike = np.float32) -> None:
    """Refuse what is no array of numbers at least 0, some above it as `dtype` on the last axis."""
    if isinstance(value, Tracer):
        return
    if not isinstance(value, np.ndarray | jax.Array) or value.ndim == 0:
        kind = type(value).__name__
        raise TypeError(f"{name} is of type {kind}, expected an array with one entry a row")
    no_mask(value, name)
    if value.dtype.kind in "cOUSMm":
        raise TypeError(f"{name} is an array of {value.dtype}, expected real numbers at least 0")
    host = _on_host(value).astype(np.float64, copy=False)
    number(host.min(initial=0), f"{name}'s least entry")
    number(host.max(initial=0), f"{name}'s largest entry")
    with np.errstate(over="ignore"):  # infinity is above 0 too
        is_above = host.astype(dtype) > 0
    if not np.all(np.any(is_above, axis=-1)):
        raise ValueError(f"{name} is 0 for all rows, expected one above 0")


def form(tree: PyTree) -> tuple[Hashable, list[tuple[int, ...]]]:
    """The structure and shapes of a tree, to be compared whatever its containers are."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def numbers_held(tree: PyTree, dtype: np.dtype, name: str) -> None:
    """Refuse numbers of parts that become 0, 1 or infinity in the dtype they are computed in."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_number = any(isinstance(entry, NumberKey) for entry in path)
        if not is_number or isinstance(leaf, Tracer) or getattr(leaf, "dtype", None) == dtype:
            continue
        if not isinstance(leaf, int | float | np.ndarray | np.generic | jax.Array):
            continue
        given = _on_host(leaf).astype(np.float64, copy=False)
        with np.errstate(over="ignore", under="ignore"):
            held = given.astype(dtype).astype(np.float64)
        for value in (0.0, 1.0, np.inf):
            if np.any((abs(held) == value) & (abs(given) != value)):
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise ValueError(
                    f"{where} is {leaf!r}, which is {value:g} in {dtype}, in which it is computed"
                )


def no_mask(value: object, name: str) -> None:
    """Refuse NumPy's masked arrays, whose mask JAX drops."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask JAX would drop; expected one without: fill it "
            "by its method filled, or select the rows that are whole"
        )


def no_mask_in(tree: PyTree, name: str) -> None:
    """Refuse masked arrays among the leaves of a tree."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        no_mask(leaf, f"{name}{jax.tree_util.keystr(path)}")


def no_text(leaf: np.ndarray, where: str) -> None:
    """Refuse text, dates, objects and masked arrays, and numbers of a kind that JAX lacks."""
    no_mask(leaf, where)
    numeric(leaf.dtype, where)
    if not leaf.dtype.isnative:
        raise TypeError(
            f"{where} is an array of {leaf.dtype}, expected this machine's byte order: "
            "x.astype(x.dtype.newbyteorder('='))"
        )


def numeric(dtype: np.dtype, where: str) -> None:
    """Refuse dtypes that are no numbers, or numbers of more bits than JAX has."""
    if dtype.kind in "OUSMm" or dtype.names:
        raise TypeError(f"{where} is an array of {dtype}, expected numbers")
    if dtype.kind in "fc" and dtype.itemsize > (8 if dtype.kind == "f" else 16):
        raise TypeError(f"{where} is an array of {dtype}, expected at most 64 bits a number")


def not_deleted(leaf: object, where: str) -> None:
    """Refuse an array whose buffer was given to an earlier call."""
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted():
        raise ValueError(
            f"{where} was deleted: an earlier call took its memory (donate_argnums, or delete()); "
            "expected the result of that call, or a copy made before it"
        )


def fits_32_bits(leaf: np.ndarray, where: str) -> None:
    """Refuse 64-bit integers that JAX would wrap to 32."""
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return
    is_wide = leaf.dtype in (np.int64, np.uint64) and leaf.size > 0
    if is_wide and max(int(leaf.max()), -int(leaf.min())) > MAX_SIZE:
        raise ValueError(
            f"{where} holds integers beyond 32 bits, which JAX would wrap; enable jax_enable_x64 "
            "or cast it"
        )


def keeps_values(leaf: np.ndarray, where: str) -> None:
    """Refuse float64 numbers that are infinite in float32; warn where distinct ones become equal.

    For the warning up to 4,096 rows at a fixed stride, and 2**20 numbers, are compared.
    """
    is_cast = leaf.dtype == np.float64 and not jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    if not is_cast or leaf.size == 0:
        return
    largest = max(np.fmax.reduce(leaf, axis=None), -np.fmin.reduce(leaf, axis=None))
    if np.finfo(np.float32).max < largest < np.inf:
        raise ValueError(
            f"{where} holds {largest:.3g}, which is infinite in float32; scale it, or enable "
            "jax_enable_x64"
        )
    columns = leaf.shape[1] if leaf.ndim == 2 else 1
    count = max(1, min(4096, 2**20 * len(leaf) // leaf.size))
    rows = leaf[:: -(-len(leaf) // count)].reshape(-1, columns)
    distinct, held = (
        1 + np.sum(np.diff(np.sort(x, axis=0), axis=0) > 0, axis=0)
        for x in (rows, rows.astype(np.float32))
    )
    lost = np.flatnonzero(held < 0.9 * distinct)  # some numbers fall together by chance
    if lost.size:
        i = lost[0]
        column = f"{where}[:, {i}]" if leaf.ndim == 2 else where
        warnings.warn(
            f"{column} holds {distinct[i]} distinct float64 numbers among {len(rows)}, of which "
            f"float32 tells {held[i]} apart; subtract their mean before they are cast, or enable "
            "jax_enable_x64",
            stacklevel=2,
        )


def params(tree: PyTree) -> None:
    """Refuse parameters that are not all float arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        no_mask(leaf, f"params{jax.tree_util.keystr(path)}")
        not_deleted(leaf, f"params{jax.tree_util.keystr(path)}")
        is_array = isinstance(leaf, np.ndarray | np.generic | jax.Array | jax.ShapeDtypeStruct)
        if is_array and jnp.issubdtype(leaf.dtype, jnp.floating):
            if isinstance(leaf, np.ndarray):
                no_text(leaf, f"params{jax.tree_util.keystr(path)}")
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


def key(value: object) -> Key[Array, ""]:
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
    raise TypeError(
        f"key is {given}, expected one key, such as jax.random.key(0), or, for several runs, "
        "jax.random.split(key, runs)"
    )


def _on_host(value: object) -> np.ndarray:
    """A concrete array or number as NumPy's. On a CPU `jax.device_get` takes 40 us longer."""
    if isinstance(value, jax.Array) and {d.platform for d in value.devices()} != {"cpu"}:
        value = jax.device_get(value)
    return np.asarray(value)
