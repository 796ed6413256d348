"""Describe a pytree in text that is the same in every process, to compare two runs.

A fingerprint holds the type and static fields of each node, and the dtype, shape and value of each
leaf (of an array with axes, its checksum). A function is described by its module and qualified name
alone: its code, its defaults and the values that it closes over are not compared, and all lambdas
of a module are `module.<lambda>`. The `tag` of a checkpoint covers changes of code.
"""

import dataclasses
import re
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jaxsgd.core.trees import words_of


class Fingerprint(dict[str, str]):
    """The description of each node and leaf of a pytree, by its path."""


def fingerprint(tree: PyTree, name: str, *, with_values: bool = True) -> Fingerprint:
    """The fingerprint of a pytree; a `Fingerprint` is returned as it is.

    Args:
      tree: any pytree. A leaf that is not an array is described as a static field is.
      name: the first part of each path, such as `"solver"` in `"solver.rule.learning_rate"`.
      with_values: whether the values of leaves are included. Without them the first axis of a NumPy
        array may have any length.
    """
    if isinstance(tree, Fingerprint):
        return tree
    children, structure = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is not tree
    )
    node = structure.node_data()
    if node is None:
        return Fingerprint({name: _leaf(tree) if with_values else _shape(tree)})
    result = Fingerprint({name: _node(tree, *node)})
    for path, child in children:
        inner = f"{name}{jax.tree_util.keystr(path)}"
        result |= fingerprint(child, inner, with_values=with_values)
    return result


def difference(
    saved: dict[str, str], given: dict[str, str], ignored: tuple[str, ...] = ()
) -> str | None:
    """The first difference of two fingerprints, as `<path>: expected X, got Y`.

    Paths that begin with one of `ignored` are not compared.
    """
    for name in {**saved, **given}:
        if name.startswith(ignored):
            continue
        expected, got = saved.get(name, "nothing"), given.get(name, "nothing")
        if expected != got:
            return f"{name}: expected {expected}, got {got}"
    return None


def as_numpy(leaf: object) -> np.ndarray:
    """An array, a number, or the data of a key as a NumPy array.

    An array on the devices of other processes as well is gathered: all of them call this.
    """
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    array = words_of(leaf)
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def checksum(array: np.ndarray) -> int:
    """The CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _node(tree: PyTree, kind: type, aux: object) -> str:
    """The type of a node and its static fields, with their names where it is a dataclass."""
    if aux is tree:  # None, or a type that is registered as static
        return _static(tree)
    if kind is dict or aux is None:
        return kind.__qualname__
    values = aux if isinstance(aux, tuple) else (aux,)
    texts = [_static(value) for value in values]
    fields = dataclasses.fields(tree) if dataclasses.is_dataclass(tree) else ()
    names = [field.name for field in fields if field.metadata.get("static")]
    if len(names) == len(values):
        texts = [f"{name}={text}" for name, text in zip(names, texts, strict=True)]
    return f"{kind.__qualname__}({', '.join(texts)})"


def _leaf(leaf: object) -> str:
    """The dtype and shape of an array and its value or checksum; any other leaf as if static."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _shape(leaf)
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return _static(leaf)
    array = as_numpy(leaf)
    value = str(array[()]) if array.ndim == 0 else f"with checksum {checksum(array):08x}"
    return f"{leaf.dtype}{list(leaf.shape)} {value}"


def _shape(leaf: object) -> str:
    """The dtype and shape of an array, or the type of another leaf."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return type(leaf).__qualname__
    if isinstance(leaf, np.ndarray) and leaf.ndim:
        return f"NumPy {leaf.dtype}[{', '.join(map(str, ('n', *leaf.shape[1:])))}]"
    return f"{leaf.dtype}{list(leaf.shape)}"


def _static(value: PyTree) -> str:
    """The name of a function or class, or the repr of another value without addresses."""
    if isinstance(value, jax.Array | np.ndarray):
        return _leaf(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_static, value))})"
    if isinstance(value, set | frozenset):  # iterated in another order by another process
        return f"{{{', '.join(sorted(map(_static, value)))}}}"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    text = re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))
    return text if len(text) <= 200 else f"{text[:200]}... {zlib.crc32(text.encode()):08x}"
