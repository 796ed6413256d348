"""Save the state of a run to a folder and restore it, with Orbax.

A folder holds the newest checkpoints, `jaxsgd_000001`, `jaxsgd_000002`, ... Each is written under a
temporary name and renamed, so a process that is killed leaves the previous checkpoint complete.
A checkpoint consists of the arrays and a JSON file that describes them: checksums, shapes and
dtypes, the fingerprint of the state, the fingerprint of what the state belongs to (a solver), and
the user's tag. `restore` refuses a checkpoint that differs in one of these.

The JSON file has a format number, `FORMAT`, and the version of jaxsgd that wrote it. `FORMAT` is
increased when the previous version of jaxsgd could not read the new checkpoints. Each version of
jaxsgd reads all formats from 2 to its own. It refuses any other format with a message that names
the version that wrote the checkpoint.
"""

import re
import shutil
import warnings
from collections.abc import Callable
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from jaxsgd.checkpoints.fingerprint import as_numpy, checksum, difference, fingerprint
from jaxsgd.core import validation
from jaxsgd.core.trees import put_on, words_of

FORMAT = 2
NAME = re.compile(r"jaxsgd_(\d{6,})")


class FormatError(ValueError):
    """A checkpoint of a format that this version of jaxsgd does not read."""


def save(
    path: str | PathLike[str],
    state: PyTree,
    *,
    of: PyTree = None,
    tag: str | None = None,
    keep: int = 3,
) -> Path:
    """Save the state of a run as the newest checkpoint of a folder.

    The checkpoint is written under a temporary name and renamed. If the process is killed or the
    disk is full, the previous checkpoint stays complete. Older checkpoints are deleted last.

    Args:
      path: the folder, created if it does not exist. It holds the checkpoints of one run and
        nothing else.
      state: a `State`, or any pytree of arrays, keys and numbers, such as a state with the best
        parameters and a history in NumPy arrays.
      of: what the state belongs to: the solver, or a pytree of the solver and more (a stop, the
        shapes of the data). Only its fingerprint is saved, and `restore` refuses another one. The
        fingerprint holds types, static fields and numbers; of a function it holds the module and
        qualified name, not the code.
      tag: a string that `restore` must be given too. Change it when you change the code of a
        function.
      keep: the number of checkpoints to keep, at least 1.

    Returns:
      The folder of the new checkpoint.

    Raises:
      ImportError: Orbax is not installed (`pip install 'jaxsgd[checkpoints]'`).
      FileExistsError: the folder holds other files than checkpoints of jaxsgd.
      TypeError: a leaf is not an array, a key or a number, or the tag is not a string.

    >>> data = jnp.arange(4.0), 3 * jnp.arange(4.0)
    >>> loss = lambda w, row: (row[0] * w - row[1]) ** 2
    >>> solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(2), jaxsgd.Momentum(0.1, 0.5))
    >>> start = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    >>> state, _ = jaxsgd.run(solver, start, data, steps=20)
    >>> folder = jaxsgd.save("run", state, of=solver)
    >>> again = jaxsgd.restore("run", like=start, of=solver)
    >>> int(again.step), bool(again.params == state.params)
    (20, True)
    """
    keep = validation.integer(keep, "save's keep", 1)
    return write(checked_folder(path), snapshot(state, of=of, tag=tag), keep)


class Snapshot(NamedTuple):
    """What a checkpoint will hold, in buffers that no later step can overwrite."""

    arrays: dict[str, np.ndarray | jax.Array]
    about: dict[str, Any]


def snapshot(state: PyTree, *, of: PyTree, tag: str | None) -> Snapshot:
    """Copy a state to the host. Arrays on devices of several processes stay where they are."""
    check_tag(tag)
    _check_leaves(state)
    leaves = _named(state)
    arrays = {name: _held(leaf) for name, leaf in leaves.items()}
    about = {
        "format": FORMAT,
        "version": version("jaxsgd"),
        "state": fingerprint(state, "state", with_values=False),
        "of": None if of is None else fingerprint(of, "of"),
        "tag": tag,
        "shapes": {name: [str(array.dtype), *array.shape] for name, array in arrays.items()},
        "keys": {n: str(jax.random.key_impl(x)) for n, x in leaves.items() if _is_key(x)},
    }
    return Snapshot(arrays, about)


def write(folder: Path, snapshot: Snapshot, keep: int = 3) -> Path:
    """Write a snapshot as the newest checkpoint of a folder; all processes call this together.

    The first process lists the folder and decides: the others may see an outdated listing.
    """
    ocp = _orbax()
    arrays = snapshot.arrays
    found = by_first(lambda: _prepared(folder), folder)
    new = folder / f"jaxsgd_{found[-1] + 1:06d}"
    checksums = {name: _checksum(array) for name, array in arrays.items()}
    # Orbax refuses arrays without entries; their shapes are enough to restore them
    filled = {name: array for name, array in arrays.items() if array.size}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = {"about": ocp.args.JsonSave(snapshot.about | {"checksums": checksums})}
        items |= {"arrays": ocp.args.PyTreeSave(filled)} if filled else {}
        checkpointer.save(new, args=ocp.args.Composite(**items))
    if jax.process_index() == 0:
        complete = [number for number in found.tolist() if number]
        for number in complete[: max(0, len(complete) + 1 - keep)]:
            old = folder / f"jaxsgd_{number:06d}"
            shutil.rmtree(old.rename(old.with_suffix(".deleted")), ignore_errors=True)
    return new


def by_first(fn: Callable[[], np.ndarray], folder: Path) -> np.ndarray:
    """`fn()` of the first process, an int32 array of one axis, for all of them.

    Raises:
      OSError: it failed on the first process, where its own error is raised.
    """
    if jax.process_count() == 1:
        return fn()
    error, result = None, np.zeros(0, np.int32)
    if jax.process_index() == 0:
        try:
            result = fn()
        except Exception as failed:
            error = failed
    if multihost_utils.broadcast_one_to_all(np.int32(error is not None)):
        raise error or OSError(f"{folder}: the first process failed, see its error")
    size = int(multihost_utils.broadcast_one_to_all(np.int32(result.size)))
    result = np.resize(result, size).astype(np.int32)
    return np.asarray(multihost_utils.broadcast_one_to_all(result))


def _prepared(folder: Path) -> np.ndarray:
    """The numbers of a folder's checkpoints (int32[m], after a 0), what was killed removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob("jaxsgd_*.*"):  # left by a process that was killed while writing
        shutil.rmtree(rest, ignore_errors=True)
    return np.array([0, *map(_number, checkpoints(folder))], np.int32)


def restore(
    path: str | PathLike[str], like: PyTree, *, of: PyTree = None, tag: str | None = None
) -> PyTree:
    """Restore the newest complete checkpoint of a folder.

    Args:
      path: the folder.
      like: a pytree of the structure, shapes and dtypes of the saved one, such as what
        `solver.init` returns, or `jax.eval_shape` of it. Its values are not used. Where an array of
        `like` was placed by hand, the restored array is placed on the same devices. NumPy arrays
        stay NumPy arrays, and the first axis of a saved one may have another length (a history
        grows).
      of: what the state belongs to, as in `save`; not compared if not given.
      tag: the tag given to `save`.

    Returns:
      The state, in new buffers.

    Raises:
      ImportError: Orbax is not installed.
      FileNotFoundError: the folder holds no checkpoint.
      FileExistsError: the folder holds other files than checkpoints of jaxsgd.
      ValueError: the state, `of` or the tag differs from the saved one; the checkpoint is of a
        format that this version does not read; or no checkpoint is complete. A checkpoint that is
        incomplete or damaged is skipped with a warning.

    >>> start = {"params": jnp.zeros(2), "losses": np.zeros(0)}
    >>> folder = jaxsgd.save("own loop", {"params": jnp.ones(2), "losses": np.array([0.5, 0.25])})
    >>> jaxsgd.restore("own loop", like=start)
    {'losses': array([0.5 , 0.25]), 'params': Array([1., 1.], dtype=float32)}
    """
    return restored(path, like, of, tag)


def restored(
    path: str | PathLike[str],
    like: PyTree,
    of: PyTree = None,
    tag: str | None = None,
    *,
    optional: tuple[str, ...] = (),
    strict: bool = True,
    way_out: str = "",
) -> PyTree:
    """`restore`, where entries of the fingerprint of `of` are compared only if `strict`.

    These are the ones that begin with one of `optional`; the message of a refusal for one of them
    ends with `way_out`.
    """
    check_tag(tag)
    folder = checked_folder(path)
    ocp = _orbax()
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: expected at least one checkpoint, got none")
    for newest in reversed(found):
        try:
            arrays, about = _read(ocp, newest)
        except FormatError:
            raise
        except Exception as error:  # Orbax and its libraries raise many types for a damaged file
            reason = "".join(str(error).strip().splitlines()[:1])[:200]
            message = f"{newest} is incomplete or damaged and was skipped: {reason}"
            warnings.warn(message, stacklevel=2)
            continue
        different = _difference(about, like, of, tag, () if strict else optional)
        if different is not None and different.startswith("state") and not way_out:  # of `restore`
            raise ValueError(
                f"{newest} holds a state of another structure than `like`: {different}. Pass the "
                "result of solver.init, or what jaxsgd.save was given; to continue a fit, call "
                "jaxsgd.fit with the same arguments."
            )
        if different is not None:
            raise ValueError(
                f"{newest} was saved by another run: {different}. Use another folder for another "
                f"run.{way_out if different.startswith(optional) else ''}"
            )
        return _placed(like, arrays, about["keys"])
    raise ValueError(
        f"{folder}: expected a complete checkpoint, got {len(found)}, all incomplete or damaged"
    )


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last."""
    found = [path for path in folder.glob("jaxsgd_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("jaxsgd_"))


def checked_folder(path: str | PathLike[str]) -> Path:
    """The absolute path of a folder of checkpoints. `save` deletes in it: nothing else is in it."""
    if not isinstance(path, str | PathLike):
        raise TypeError(f"path is {path!r} of type {type(path).__name__}, expected a folder")
    if not str(path):
        raise ValueError("path is empty, expected a folder of checkpoints")
    _orbax()
    if "://" in str(path):
        raise ValueError(f"the checkpoint folder: expected a local path, got the URL {path}")
    folder = Path(path).absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder}: expected a folder of checkpoints, got a file")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if NAME.fullmatch(folder.name) and folder.exists():
        raise FileExistsError(f"{folder} is one checkpoint, expected its folder: {folder.parent}")
    foreign = [name for name in names if not re.match(r"jaxsgd_\d{6,}(\.|$)|\.", name)]
    if foreign:
        raise FileExistsError(
            f"{folder}: expected a folder of jaxsgd's checkpoints and nothing else, got one that "
            f"holds {foreign[0]!r}"
        )
    return folder


def check_tag(tag: object, name: str = "tag") -> None:
    """Refuse a tag that is not a string or None."""
    if tag is not None and not isinstance(tag, str):
        raise TypeError(f"{name}: expected a string, got {tag!r} of type {type(tag).__name__}")


def _orbax() -> ModuleType:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need Orbax: pip install 'jaxsgd[checkpoints]'") from error
    return ocp


# arrays


def _named(tree: PyTree) -> dict[str, PyTree]:
    """The leaves by names that are readable and valid file names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    words = [re.sub(r"\W+", ".", jax.tree_util.keystr(path)).strip(".") for path, _ in leaves]
    return {
        f"{i}.{word}": leaf for i, (word, (_, leaf)) in enumerate(zip(words, leaves, strict=True))
    }


def _check_leaves(state: PyTree) -> None:
    """Refuse leaves that are not arrays of numbers, keys or numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        where = f"state{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            kind = type(leaf).__name__
            raise TypeError(
                f"{where}: expected an array, a key or a number, got {leaf!r} of type {kind}"
            )
        dtype = getattr(leaf, "dtype", None)
        if isinstance(dtype, np.dtype) and (dtype.kind in "OUSMm" or dtype.names):
            raise TypeError(f"{where}: expected an array of numbers, got one of dtype {dtype}")


def _held(leaf: object) -> np.ndarray | jax.Array:
    """A leaf as it is saved: a copy on the host, or an array on devices of several processes."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return words_of(leaf)
    return np.array(as_numpy(leaf))


def _checksum(array: np.ndarray | jax.Array) -> int | None:
    """The checksum of an array that every process holds whole; None if each holds a part."""
    whole = isinstance(array, np.ndarray) or array.is_fully_replicated
    return checksum(as_numpy(array)) if whole else None


def _is_key(leaf: object) -> bool:
    """Whether a leaf holds typed keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _read(ocp: ModuleType, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a checkpoint by name, and the JSON file about them."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        about = checkpointer.restore(folder, args).about
        if about["format"] != FORMAT:
            writer = about.get("version", "0.1.0 or earlier")  # format 1 had no version
            raise FormatError(
                f"{folder}: expected format {FORMAT}, which jaxsgd {version('jaxsgd')} reads, got "
                f"format {about['format']}, written by jaxsgd {writer}"
            )
        filled: dict[str, np.ndarray] = {}
        if any(0 not in shape for _, *shape in about["shapes"].values()):
            as_array = ocp.RestoreArgs(restore_type=np.ndarray)
            names = {
                name: as_array for name, (_, *shape) in about["shapes"].items() if 0 not in shape
            }
            args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore(restore_args=names))
            filled = checkpointer.restore(folder, args).arrays
    arrays = {}
    for name, (dtype, *shape) in about["shapes"].items():
        array = np.asarray(filled[name] if 0 not in shape else [], jnp.dtype(dtype)).reshape(shape)
        if about["checksums"][name] not in (None, checksum(array)):
            raise ValueError(f"the checksum of {name} is wrong")
        arrays[name] = array
    return arrays, about


def _placed(like: PyTree, arrays: dict[str, np.ndarray], keys: dict[str, str]) -> PyTree:
    """The arrays in the structure of `like`, with the types and devices of its leaves."""

    def place(old: PyTree, name: str) -> PyTree:
        array = arrays[name]
        if isinstance(old, bool | int | float):
            return type(old)(array)
        if isinstance(old, np.ndarray | np.generic):
            return array.copy() if isinstance(old, np.ndarray) else array[()]
        sharding = getattr(old, "sharding", None)
        if isinstance(old, jax.Array) and not old.committed:
            sharding = None
        if sharding is not None and not sharding.is_fully_addressable:
            if name not in keys:
                return put_on(sharding, array)
            return put_on(sharding, jax.random.wrap_key_data(jnp.asarray(array), impl=keys[name]))
        if name not in keys:
            return jax.device_put(array, sharding, may_alias=False)
        data = jax.device_put(array, may_alias=False)
        key = jax.random.wrap_key_data(data, impl=keys[name])
        return key if sharding is None else jax.device_put(key, sharding)

    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, map(place, leaves, arrays))


def _difference(
    about: dict[str, Any], like: PyTree, of: PyTree, tag: str | None, ignored: tuple[str, ...]
) -> str | None:
    """The first difference between a checkpoint and what `restore` was given."""
    if about["tag"] != tag:
        return f"tag: expected {about['tag']!r}, got {tag!r}"
    state = difference(about["state"], fingerprint(like, "state", with_values=False))
    if of is None:
        return state
    if about["of"] is None:
        return f"of: expected None, as it was saved without of=, got a {type(of).__name__}"
    return difference(about["of"], fingerprint(of, "of"), ignored) or state
