"""The state of a run in a folder, to go on from tomorrow, through Orbax.

A folder holds the newest few checkpoints, `jaxsgd_000001`, `jaxsgd_000002`, ...; each is
written beside its place and renamed, so that a process killed at any moment leaves the last one
whole. Beside the arrays lie their checksums and an outline: the structure, shapes and dtypes of
what was saved, and in words what it belongs to (a solver's parts and numbers, its functions by name
and code). What differs from it is refused, and said.
"""

import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd.checkpoints.fingerprint import PYTHON, checksum, difference, is_key, on_host, outline
from jaxsgd.core import validation

NAME = re.compile(r"jaxsgd_(\d{6,})")


def save(path: Any, state: PyTree, *, of: PyTree = None, keep: int = 3) -> Path:
    """Save the state of a run as the newest checkpoint of a folder.

    Written beside its place and renamed: killed at any moment, or on a full disk, the last one
    stays whole. Older ones than the newest `keep` are deleted after that.

    Args:
      path: the folder, made if there is none; it holds nothing else, and serves one run at a time.
      state: a `State`, or any pytree of arrays, keys and numbers: with a stop's state, the best
        parameters, a history in NumPy arrays.
      of: what the state belongs to: the solver, or a pytree of it and more (the data's shapes, a
        stop). Not saved but outlined, so that `restore` can refuse another. A function is told
        apart by its name, code (but for installed libraries), defaults and closure, not by globals
        that it reads.
      keep: how many to keep, at least 1.

    Returns:
      The new checkpoint's folder.

    Raises:
      ImportError: Orbax is not installed (`pip install 'jaxsgd[checkpoints]'`).
      FileExistsError: the folder holds other things than checkpoints of jaxsgd.
      TypeError: a leaf is no array, key or number.

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
    folder = own_folder(path)
    ocp = _orbax()
    folder.mkdir(parents=True, exist_ok=True)
    for rest in folder.glob("jaxsgd_*.*"):  # of a process killed while it wrote or deleted
        shutil.rmtree(rest, ignore_errors=True)
    arrays = {name: _host(leaf, name) for name, leaf in _named(state).items()}
    about = {
        "format": 1,
        "python": PYTHON,
        "state": outline(state, "state", with_values=False),
        "of": None if of is None else outline(of),
        "checksums": {name: checksum(array) for name, array in arrays.items()},
        "shapes": {name: [str(array.dtype), *array.shape] for name, array in arrays.items()},
        "keys": {n: str(jax.random.key_impl(x)) for n, x in _named(state).items() if is_key(x)},
    }
    found = checkpoints(folder)
    new = folder / f"jaxsgd_{1 + (_number(found[-1]) if found else 0):06d}"
    # Orbax refuses arrays without entries; their shape says all
    filled = {name: array for name, array in arrays.items() if array.size}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = {"about": ocp.args.JsonSave(about)}
        items |= {"arrays": ocp.args.PyTreeSave(filled)} if filled else {}
        checkpointer.save(new, args=ocp.args.Composite(**items))
    for old in found[: max(0, len(found) + 1 - keep)]:
        shutil.rmtree(old.rename(old.with_suffix(".deleted")), ignore_errors=True)
    return new


def restore(path: Any, like: PyTree, *, of: PyTree = None) -> PyTree:
    """The newest whole checkpoint of a folder.

    Args:
      path: the folder.
      like: a pytree of the structure, shapes and dtypes of the one saved, such as what
        `solver.init` returns, or `jax.eval_shape` of it. Its values play no part, but arrays are
        put where its own were put by hand. NumPy arrays stay NumPy arrays, and may have been of
        another length: a history grows.
      of: what the state belongs to, as in `save`; not looked at if not given.

    Returns:
      The state, in buffers of its own.

    Raises:
      ImportError: Orbax is not installed.
      FileNotFoundError: there is no checkpoint.
      FileExistsError: the folder holds other things than checkpoints of jaxsgd.
      ValueError: the state, or what it belongs to, differs from what was saved; or none of the
        checkpoints is whole. One that is torn is left out with a warning.

    >>> start = {"params": jnp.zeros(2), "losses": np.zeros(0)}
    >>> folder = jaxsgd.save("own loop", {"params": jnp.ones(2), "losses": np.array([0.5, 0.25])})
    >>> jaxsgd.restore("own loop", like=start)
    {'losses': array([0.5 , 0.25]), 'params': Array([1., 1.], dtype=float32)}
    """
    folder = own_folder(path)
    ocp = _orbax()
    found = checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    for newest in reversed(found):
        try:
            arrays, about = _read(ocp, newest)
        except Exception as error:  # whatever a torn file makes of Orbax and its libraries
            first = str(error).strip().splitlines()[:1]
            told = f"{newest} is not whole and was left out: {''.join(first)[:200]}"
            warnings.warn(told, stacklevel=2)
            continue
        if about["format"] != 1:
            raise ValueError(
                f"{newest} is of format {about['format']}, expected 1: a newer jaxsgd's"
            )
        different = _difference(about, like, of)
        if different is not None:
            told = f"{newest} holds another run: {different}"
            raise ValueError(f"{told}; give another run another folder")
        return _placed(like, arrays, about["keys"])
    raise ValueError(f"{folder} holds {len(found)} checkpoints, none of them whole")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the newest last."""
    found = [path for path in folder.glob("jaxsgd_*") if NAME.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("jaxsgd_"))


def own_folder(path: Any) -> Path:
    """The folder's absolute path. Refused if others keep things there: `save` deletes in it."""
    _orbax()
    if jax.process_count() > 1:
        raise NotImplementedError(
            f"checkpoints are of one process, but this is one of {jax.process_count()}: save what "
            "jax.experimental.multihost_utils.process_allgather gathers, outside of jax.distributed"
        )
    if "://" in str(path):
        raise ValueError(f"{path} is a URL, expected a folder of this machine")
    folder = Path(path).absolute()
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, expected a folder of checkpoints")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in names if not re.match(r"jaxsgd_\d{6,}(\.|$)|\.", name)]
    if foreign:
        raise FileExistsError(
            f"{folder} holds {foreign[0]!r}, which is no checkpoint of jaxsgd, expected a folder "
            "of its own"
        )
    return folder


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need Orbax: pip install 'jaxsgd[checkpoints]'") from error
    return ocp


# arrays


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves under names that a person can read and a file system bear."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    words = [re.sub(r"\W+", ".", jax.tree_util.keystr(path)).strip(".") for path, _ in leaves]
    return {
        f"{i}.{word}": leaf for i, (word, (_, leaf)) in enumerate(zip(words, leaves, strict=True))
    }


def _host(leaf: Any, name: str) -> np.ndarray:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
        kind = type(leaf).__name__
        raise TypeError(f"{name} is {leaf!r} of type {kind}, expected an array, a key or a number")
    host = on_host(leaf)
    if host.dtype.kind in "OUSMm" or host.dtype.names:
        raise TypeError(f"{name} is an array of {host.dtype}, expected numbers")
    return host


def _read(ocp: Any, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        about = checkpointer.restore(folder, ocp.args.Composite(about=ocp.args.JsonRestore())).about
        filled: dict[str, Any] = {}
        if any(0 not in shape for _, *shape in about["shapes"].values()):
            args = ocp.args.Composite(arrays=ocp.args.PyTreeRestore())
            filled = checkpointer.restore(folder, args).arrays
    arrays = {}
    for name, (dtype, *shape) in about["shapes"].items():
        array = np.asarray(filled[name] if 0 not in shape else [], jnp.dtype(dtype)).reshape(shape)
        if checksum(array) != about["checksums"][name]:
            raise ValueError(f"the checksum of {name} is wrong")
        arrays[name] = array
    return arrays, about


def _placed(like: PyTree, arrays: dict[str, np.ndarray], keys: dict[str, str]) -> PyTree:
    def place(old: Any, name: str) -> Any:
        array = arrays[name]
        if isinstance(old, bool | int | float):
            return type(old)(array)
        if isinstance(old, np.ndarray | np.generic):
            return array.copy() if isinstance(old, np.ndarray) else array[()]
        sharding = getattr(old, "sharding", None)
        if isinstance(old, jax.Array) and not old.committed:
            sharding = None
        if not is_key(old):
            return jax.device_put(array, sharding, may_alias=False)
        words = jax.device_put(array, may_alias=False)
        key = jax.random.wrap_key_data(words, impl=keys[name])
        return key if sharding is None else jax.device_put(key, sharding)

    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, map(place, leaves, arrays))


def _difference(about: dict[str, Any], like: PyTree, of: PyTree) -> str | None:
    """What of a checkpoint differs from what is given, the parts before the state."""
    state = difference(about["state"], outline(like, "state", with_values=False), about["python"])
    if of is None:
        return state
    if about["of"] is None:
        return "it was saved without of="
    return difference(about["of"], outline(of), about["python"]) or state
