"""The task of the command: a model and a loss by name, standardised rows, the file of a model."""

import json
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from jaxsgd.cli.tables import BROKEN, Table
from jaxsgd.core.part import part, static
from jaxsgd.models import MLP, Linear
from jaxsgd.penalties import L2, ElasticNet, selected
from jaxsgd.random.permutation import permute

FORMAT = "jaxsgd model 2"  # increased when the previous version could not read a new model.npz
BINARY = ("logistic", "hinge")
CLASSIFIERS = ("softmax", *BINARY)
NUMBERS = {  # of one prediction and target
    "squared_error": optax.squared_error,
    "l2_loss": optax.l2_loss,
    "huber": optax.huber_loss,
}
LOSSES = (*NUMBERS, *CLASSIFIERS)


@part
class Task:
    """A model and its loss by name; a function of params and one row `(x, y)`."""

    model: Linear | MLP
    loss: str = static()

    def __call__(self, params: PyTree, row: tuple[jax.Array, jax.Array]) -> Float[Array, ""]:
        """The loss of a row."""
        x, y = row
        output = self.model(params, x)
        if self.loss == "softmax":
            return optax.softmax_cross_entropy(output, jax.nn.one_hot(y, len(output)))
        if self.loss == "logistic":
            return optax.sigmoid_binary_cross_entropy(output[0], y)
        if self.loss == "hinge":
            return optax.hinge_loss(output[0], 2 * y - 1)
        return NUMBERS[self.loss](output[0], y)

    def predict(
        self, params: PyTree, x: Float[Array, "... d"] | np.ndarray
    ) -> Float[Array, "... k"]:
        """Probabilities or, of a hinge loss, scores of k classes, or one number (k = 1)."""
        output = self.model(params, x)
        if self.loss == "softmax":
            return jax.nn.softmax(output)
        if self.loss == "logistic":
            return jnp.concatenate([jax.nn.sigmoid(-output), jax.nn.sigmoid(output)], axis=-1)
        if self.loss == "hinge":
            return jnp.concatenate([-output, output], axis=-1)
        return output


@part
class Accuracy:
    """Whether the most probable class of a task's prediction is that of the row."""

    task: Task

    def __call__(self, params: PyTree, row: tuple[jax.Array, jax.Array]) -> Bool[Array, ""]:
        return jnp.argmax(self.task.predict(params, row[0])) == row[1]


class FormatError(ValueError):
    """A model file of a format that this version of jaxsgd does not read."""


class Rows(NamedTuple):
    """Rows for training, standardised with the statistics of the training part, and split."""

    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray] | None
    names: list[str]  # of the features
    classes: np.ndarray | None  # the labels, where there are classes
    mean: np.ndarray  # float64[d]
    scale: np.ndarray  # float64[d]: the standard deviation, 1 for a constant feature
    unit: np.ndarray  # float64[2]: the mean and scale of a target of numbers; 0 and 1 of classes


def prepare(
    table: Table, target: np.ndarray, loss: str, *, test_fraction: float, seed: int
) -> Rows:
    """Number a target's classes, hold out rows at random, standardise features and numbers."""
    n = len(table.features)
    y, classes = _encode(target, loss)
    held_out = round(n * test_fraction)
    if held_out >= n:
        raise ValueError(f"--test-fraction {test_fraction} of {n} rows leaves none to train on")
    order = np.asarray(permute(jax.random.key(seed), np.arange(n), n))
    test, train = order[:held_out], order[held_out:]
    x = table.features.astype(np.float64)
    mean, scale = x[train].mean(axis=0), x[train].std(axis=0)
    scale[scale == 0] = 1
    x = standardise(table.features, mean, scale)
    unit = np.array([0.0, 1.0])
    if classes is None:
        unit = np.array([y[train].mean(dtype=np.float64), y[train].std(dtype=np.float64) or 1.0])
        y = standardise(y, *unit)
    rest = (x[test], y[test]) if held_out else None
    return Rows((x[train], y[train]), rest, table.names, classes, mean, scale, unit)


def standardise(x: np.ndarray, mean: np.ndarray | float, scale: np.ndarray | float) -> np.ndarray:
    """`(x - mean) / scale`, float32 of x's shape."""
    return ((x.astype(np.float64) - mean) / scale).astype(np.float32)


def _encode(target: np.ndarray, loss: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The target as numbers, and the labels of the classes if the loss has classes."""
    if loss not in CLASSIFIERS:
        return target, None
    is_text = target.dtype.kind not in "biuf"
    classes, y = np.unique(target.astype(str) if is_text else target, return_inverse=True)
    fractions = [value for value in classes.tolist() if isinstance(value, float) and value % 1]
    if fractions:
        raise ValueError(f"the target holds {fractions[0]}, expected classes for --loss {loss}")
    if len(classes) < 2 or (loss in BINARY and len(classes) > 2):
        expected = "2 classes" if loss in BINARY else "at least 2 classes"
        raise ValueError(
            f"the target holds {len(classes)} different values, expected {expected} for --loss "
            f"{loss}"
        )
    return y.astype(np.float32 if loss in BINARY else np.int32), classes


def task_for(spec: str, loss: str, rows: Rows, initialise: str | None = None) -> Task:
    """The task of a model written `linear` or `mlp:128,64`."""
    features = len(rows.names)
    outputs = len(rows.classes) if loss == "softmax" and rows.classes is not None else 1
    kind, _, hidden = spec.partition(":")
    if kind == "linear" and not hidden:
        return Task(Linear(features, outputs, initialise=initialise or "zeros"), loss)
    units = hidden.split(",")
    if kind != "mlp" or not all(size.isascii() and size.isdigit() for size in units):
        expected = "linear, or mlp with hidden units, as mlp:128,64"
        raise ValueError(f"--model is {spec!r}, expected {expected}")
    sizes = (features, *map(int, units), outputs)
    return Task(MLP(sizes, initialise=initialise or "lecun"), loss)


def save(path: Path, params: PyTree, rows: Rows, spec: str, loss: str) -> None:
    """Write a model and all that a prediction needs: an npz of plain arrays, without pickle."""
    facts = {"format": FORMAT, "version": version("jaxsgd")}
    facts |= {"model": spec, "loss": loss, "names": rows.names}
    arrays = {"facts": np.array(json.dumps(facts)), "mean": rows.mean, "scale": rows.scale}
    arrays["unit"] = rows.unit
    if rows.classes is not None:
        arrays["classes"] = rows.classes
    leaves = {f"params_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))}
    np.savez(path, allow_pickle=False, **arrays, **leaves)


def load(path: str) -> tuple[Task, PyTree, Rows]:
    """Read a model; its `Rows` have statistics and names, but no rows.

    Raises:
      ValueError: there is no such file, `save` did not write it, or it has another format.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is no file, expected the model.npz that jaxsgd fit wrote")
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays["facts"]))
        if facts["format"] != FORMAT:
            writer = facts.get("version", "0.1.0 or earlier")
            raise FormatError(
                f"{path}: expected format {FORMAT!r}, which jaxsgd {version('jaxsgd')} reads, got "
                f"{facts['format']!r}, written by jaxsgd {writer}"
            )
        empty = np.zeros(0), np.zeros(0)
        classes, mean, scale = arrays.get("classes"), arrays["mean"], arrays["scale"]
        rows = Rows(empty, None, facts["names"], classes, mean, scale, arrays["unit"])
        task = task_for(facts["model"], facts["loss"], rows)
        shapes = jax.eval_shape(task.model.init, jax.random.key(0))
        leaves = [arrays[f"params_{i}"] for i in range(len(jax.tree.leaves(shapes)))]
    except FormatError:
        raise
    except (KeyError, TypeError, AttributeError, *BROKEN) as error:
        raise ValueError(
            f"{path} is no model that jaxsgd fit wrote, expected its model.npz"
        ) from error
    if (classes is None) == (facts["loss"] in CLASSIFIERS):
        raise ValueError(f"{path}: the loss {facts['loss']!r} does not fit its classes, {classes}")
    _check_arrays(path, arrays, len(rows.names), jax.tree.leaves(shapes))
    return task, jax.tree.unflatten(jax.tree.structure(shapes), leaves), rows


def _check_arrays(
    path: str, arrays: dict[str, np.ndarray], features: int, shapes: list[jax.ShapeDtypeStruct]
) -> None:
    """Refuse a model whose arrays are not those that `save` writes."""
    expected = {"mean": (features,), "scale": (features,), "unit": (2,)}
    expected |= {f"params_{i}": leaf.shape for i, leaf in enumerate(shapes)}
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind != "f":
            raise ValueError(
                f"{path}: {name} is {array.dtype}{list(array.shape)}, expected floats of shape "
                f"{list(shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} holds {array[~np.isfinite(array)][0]}")
    if not (arrays["scale"] > 0).all() or arrays["unit"][1] <= 0:
        raise ValueError(f"{path}: a scale in it is not above 0, so no row can be standardised")


def lbfgs(
    params: PyTree, task: Task, penalty: ElasticNet, data: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, bool]:
    """The objective at params, at the minimum of SciPy's L-BFGS, and whether that converged.

    L-BFGS minimises over the positive and negative parts of the parameters, both at least 0, in
    which the l1 penalty is smooth.
    """
    from scipy.optimize import minimize

    flat, unravel = ravel_pytree(params)
    is_selected = selected(penalty.mask, params)
    counts = jax.tree.map(lambda keep, x: jnp.full_like(x, keep), is_selected, params)
    l1 = penalty.l1 * np.asarray(ravel_pytree(counts)[0], np.float64)

    @jax.jit
    def objective(flat: Float[Array, " p"], rows: tuple[jax.Array, jax.Array]) -> Float[Array, ""]:
        params = unravel(flat)
        smooth = L2(penalty.l2, penalty.mask)
        return jnp.mean(jax.vmap(partial(task, params))(rows)) + smooth(params)

    value_and_grad = jax.jit(jax.value_and_grad(objective))

    def split(parts: np.ndarray) -> tuple[float, np.ndarray]:
        above, below = parts.reshape(2, -1)
        value, grads = value_and_grad((above - below).astype(np.float32), data)
        grads = np.asarray(grads, np.float64)
        total = float(value) + float(l1 @ (above + below))
        return total, np.concatenate([grads + l1, l1 - grads])

    found = minimize(
        split,
        np.zeros(2 * flat.size),
        jac=True,
        bounds=[(0, None)] * 2 * flat.size,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-9, "gtol": 1e-5},
    )
    ours = float(objective(flat, data)) + float(l1 @ np.abs(np.asarray(flat)))
    return ours, float(found.fun), bool(found.success)
