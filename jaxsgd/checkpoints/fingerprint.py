"""What a pytree is, in words that are the same in another process: to tell one run from another."""

import hashlib
import re
import sys
import types
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

PYTHON = ".".join(map(str, sys.version_info[:2]))
CODE = re.compile(r" code [0-9a-f]{16}")


class Outline(dict[str, str]):
    """Each node and leaf of a tree in words, by its path."""


def outline(
    tree: PyTree, name: str = "", *, with_values: bool = True, seen: dict[int, Any] | None = None
) -> Outline:
    """The outline of a tree, or the outline that it is.

    A node is its type and static fields, a function its name and a digest of its code, defaults and
    closure. A leaf is its dtype and shape and, `with_values`, its number or an array's checksum;
    without them a NumPy array may be of any length. `seen` are the values met before, each told
    once, for functions may close over each other.
    """
    if isinstance(tree, Outline):
        return tree
    children, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree
    )
    node = structure.node_data()  # type: ignore[attr-defined]
    if node is None:
        return Outline({name: _leaf(tree, with_values, seen)})
    kind, aux = node
    told = Outline({name: _plain(tree) if aux is tree else _node(kind, aux, seen)})
    for path, child in children:
        inner = jax.tree_util.keystr(path, simple=True).strip(".")
        inner = f"{name}.{inner}" if name else inner
        told |= outline(child, inner, with_values=with_values, seen=seen)
    return told


def difference(saved: dict[str, str], given: dict[str, str], python: str) -> str | None:
    """The first difference of two outlines in words, the first made under that Python version."""
    for name in {**saved, **given}:
        texts = [tree.get(name, "not there") for tree in (saved, given)]
        if python != PYTHON:  # whose code is another for the same function
            texts = [CODE.sub("", text) for text in texts]
        if texts[0] != texts[1]:
            return f"its {name or 'root'} is {texts[0]}, but {texts[1]} was given"
    return None


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed keys."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def on_host(leaf: Any) -> np.ndarray:
    """An array, number or the words of a key as a NumPy array."""
    return np.asarray(jax.device_get(jax.random.key_data(leaf) if is_key(leaf) else leaf))


def checksum(array: np.ndarray) -> int:
    """A CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _leaf(leaf: Any, with_values: bool, seen: dict[int, Any] | None = None) -> str:
    if isinstance(leaf, np.ndarray) and not with_values:
        return f"NumPy {leaf.dtype}{list(leaf.shape[1:])}"
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return _words(leaf, seen) if with_values else type(leaf).__name__
    told = f"{leaf.dtype}{list(leaf.shape)}"
    if not with_values or isinstance(leaf, jax.ShapeDtypeStruct):
        return told
    host = on_host(leaf)
    return f"{told} " + (str(host[()]) if host.ndim == 0 else f"{checksum(host):08x}")


def _node(kind: type, aux: Any, seen: dict[int, Any] | None) -> str:
    if kind in (dict, list, tuple, type(None)) or hasattr(kind, "_fields") or aux is None:
        return kind.__name__
    fields = getattr(kind, "__dataclass_fields__", {}).values()
    names = [field.name for field in fields if field.metadata.get("static")]
    if names and isinstance(aux, tuple) and len(names) == len(aux):
        statics = zip(names, aux, strict=True)
        told = (f"{name}={_words(value, seen)}" for name, value in statics)
        return f"{kind.__name__}({', '.join(told)})"
    return f"{kind.__name__}{_words(aux, seen)}"


def _words(value: Any, seen: dict[int, Any] | None) -> str:
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _leaf(value, True)
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return getattr(value, "__qualname__", value.__name__)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Optax makes floats of its closures' ints as it is traced
    if value is None or isinstance(value, str | bool | int | float):
        return _plain(value)
    seen = {} if seen is None else seen
    if id(value) in seen:
        return f"the same as {list(seen).index(id(value))}"
    seen[id(value)] = value  # kept alive, lest another get its id
    inner = lambda x: _words(x, seen)  # noqa: E731
    if isinstance(value, list | tuple):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, set | frozenset):
        # each told as if it were the first, for their order is another in each process
        return f"({', '.join(sorted(_words(x, dict(seen)) for x in value))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {inner(x)}" for key, x in value.items()) + "}"
    if isinstance(value, types.MethodType):
        return f"{inner(value.__func__)} of {inner(value.__self__)}"
    while not isinstance(value, types.FunctionType) and hasattr(value, "__wrapped__"):
        value = value.__wrapped__  # out of a jit
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if not jax.tree_util.all_leaves([value]):
        return inner(list(outline(value, seen=seen).values()))
    if callable(value) and type(value).__repr__ is object.__repr__:
        held = type(value).__call__, getattr(value, "__dict__", {})
        return f"{type(value).__qualname__}{inner(held)}"
    return _plain(value)


def _function(function: types.FunctionType, seen: dict[int, Any] | None) -> str:
    """A function by its name and a digest of its code, defaults and closure.

    What other libraries installed is told by its name, and by what it closed over: their next
    version's code is no other run.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    is_installed = "site-packages" in function.__code__.co_filename
    code = None if is_installed else _code(function.__code__, function.__doc__)
    held = function.__defaults__, function.__kwdefaults__, _closure(function)
    digest = hashlib.sha256(f"{code} {_words(held, seen)}".encode()).hexdigest()
    return f"{name} code {digest[:16]}"


def _plain(value: Any) -> str:
    """The repr without addresses; of a long one its beginning and a digest."""
    told = re.sub(r"(?i) at 0x[0-9a-f]+", "", repr(value))
    digest = hashlib.sha256(told.encode()).hexdigest()[:16]
    return told if len(told) < 200 else f"{told[:200]}... {digest}"


def _closure(function: types.FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _code(code: types.CodeType, doc: str | None = None) -> list[Any]:
    def word(constant: Any) -> Any:
        if isinstance(constant, types.CodeType):
            return _code(constant)
        # a set's order is another in each process
        return sorted(map(repr, constant)) if isinstance(constant, frozenset) else repr(constant)

    constants = [word(x) for x in code.co_consts if doc is None or x != doc]
    return [code.co_code.hex(), code.co_names, constants]
