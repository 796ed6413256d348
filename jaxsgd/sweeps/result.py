"""The result of a sweep: the results of its runs, labelled by the axes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import part
from jaxsgd.sweeps.axes import is_number, length, repeated, value_at

if TYPE_CHECKING:
    import pandas


class Ranked(NamedTuple):
    """A setting of a sweep and its score.

    Attributes:
      point: its values by name, without those that were averaged over.
      score: the mean of the scores of its runs; infinite where one diverged.
      spread: the sample standard deviation of those scores; 0 for a single run.
      diverged: the number of its runs whose score is not finite.
      place: its index on each axis that was not averaged over. `result.value[place]` is its result
        where the averaged axes come last.
    """

    point: dict[str, PyTree]
    score: float
    spread: float
    diverged: int
    place: tuple[int, ...]


@part
class Sweep:
    """The result of `sweep`: the results of all runs, labelled by the axes.

    A Sweep is a pytree. Given as an argument to another `sweep` over axes of the same names and
    lengths, it passes to each run that run's own part, so that runs continue from their states.
    Arrays that do not depend on an axis (the sampler's state, where learning rates differ) are
    stored once, and runs that shared their minibatches continue to share them.

    Attributes:
      runs: the results of the runs. Each array has one leading axis for each axis of the sweep, of
        length 1 where it does not depend on that axis.
      over: for each axis, its values by name.
      shape: the lengths of the axes.
      value: `runs` broadcast to the lengths of all axes.

    >>> result = jaxsgd.sweep(lambda x, rate: x * rate, jnp.array(2.0), over={"rate": [0.5, 1.0]})
    >>> result, result.value.tolist()
    (Sweep(2 of rate; value: float32[]), [1.0, 2.0])
    """

    runs: PyTree
    over: tuple[dict[str, PyTree], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return tuple(map(length, self.over))

    @property
    def value(self) -> PyTree:
        """The results of the runs, each array of shape (*shape, ...)."""
        return _broadcast(self.runs, self.shape)

    def __getitem__(self, name: str | int) -> "Sweep":
        """A Sweep of one entry of results that are a tuple or a dict: `result["params"]`."""
        return Sweep(self.runs[name], self.over)

    def __repr__(self) -> str:
        axes = " x ".join(f"{length(axis)} of {' and '.join(axis)}" for axis in self.over)
        found = (
            f"{name or 'value'}: {x.dtype}{list(x.shape[len(self.shape) :])}"
            for name, x in _named_leaves(self.runs).items()
        )
        return f"Sweep({axes}; {', '.join(found)})"

    def scores(self, by: str | Callable[[PyTree], ArrayLike] | None = None) -> np.ndarray:
        """The score of each run: the smaller the better, infinite where it is not finite.

        Args:
          by: the name of one of the results ("loss", "params.weight", "0"), or a function of
            `value`. None takes the only result. The score of a curve, an array with one more axis,
            is its last entry.

        Returns:
          A float64 array of the sweep's shape.

        Raises:
          ValueError: there is no result of that name, or it is not one real number (or curve) per
            run.
        """
        shape = self.shape
        chosen = by(self.value) if callable(by) else _broadcast(_leaf(self.runs, by), shape)
        value = np.asarray(chosen)
        if value.ndim == len(shape) + 1 and value.shape[-1]:
            value = value[..., -1]
        if value.shape != shape or value.dtype.kind == "c":
            raise ValueError(
                f"the score by {by!r} is of shape {value.shape} and {value.dtype}, expected real "
                f"numbers of shape {shape}, one per run, or a curve per run"
            )
        value = value.astype(np.float64)
        return np.where(np.isfinite(value), value, np.inf)

    def ranked(
        self,
        by: str | Callable[[PyTree], ArrayLike] | None = None,
        *,
        mean_over: str | Sequence[str] | None = None,
        most: int | None = None,
    ) -> list[Ranked]:
        """The settings, best first. Settings with diverged runs come after all others.

        Args:
          by: as in `scores`.
          mean_over: the name of an axis whose runs repeat one setting, such as "key", or several
            names, such as ("fold", "key"). The score of a setting is the mean over its runs.
          most: return at most this many settings.

        Returns:
          A list of `Ranked`.
        """
        most = None if most is None else validation.integer(most, "most", 1)
        scores, repeats = self.scores(by), repeated(self.over, mean_over)
        others = [i for i in range(len(self.shape)) if i not in repeats]
        runs = np.transpose(scores, (*others, *repeats))
        runs = runs.reshape(*[scores.shape[i] for i in others], -1)
        diverged, means = np.isinf(runs).sum(-1), runs.mean(-1)
        with np.errstate(invalid="ignore"):  # inf - inf
            spreads = runs.std(-1, ddof=1) if runs.shape[-1] > 1 else 0 * means
        # Copied to the host first: to read one number from a device takes a tenth of a millisecond.
        over = [
            {k: np.asarray(v) if is_number(v) else v for k, v in self.over[i].items()}
            for i in others
        ]

        def ranked_at(flat: int) -> Ranked:
            place = tuple(map(int, np.unravel_index(flat, means.shape)))
            point = {
                name: value_at(values, i)
                for axis, i in zip(over, place, strict=True)
                for name, values in axis.items()
            }
            spread = float(spreads[place])
            return Ranked(point, float(means[place]), spread, int(diverged[place]), place)

        return [ranked_at(flat) for flat in np.lexsort((means.ravel(), diverged.ravel()))[:most]]

    def best(
        self,
        by: str | Callable[[PyTree], ArrayLike] | None = None,
        *,
        mean_over: str | Sequence[str] | None = None,
    ) -> Ranked:
        """The setting with the smallest score, or with the smallest mean of scores over an axis.

        Args:
          by: as in `scores`.
          mean_over: as in `ranked`.

        Raises:
          ValueError: every setting has a diverged run.

        >>> result = jaxsgd.sweep(lambda rate, key: (rate - 0.3) ** 2, over={
        ...     "rate": [0.1, 0.2, 0.5], "key": jax.random.split(jax.random.key(0), 4)})
        >>> round(result.best(mean_over="key").point["rate"], 3)
        0.2
        """
        best = self.ranked(by, mean_over=mean_over, most=1)[0]
        if best.diverged:
            raise ValueError("in every setting of the sweep a run diverged, so none is the best")
        return best

    def to_frame(self) -> "pandas.DataFrame":
        """A pandas DataFrame with one row per run: its values, and its results that are numbers.

        A value that is not a number, such as a key, is given by its index on its axis. The column
        `diverged` is true where any float among the run's results is not finite.

        Raises:
          ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'jaxsgd[cli]'") from error
        shape, columns = self.shape, {}
        places = np.indices(shape).reshape(len(shape), -1)
        for place, axis in zip(places, self.over, strict=True):
            for name, values in axis.items():
                columns[name] = np.asarray(values)[place] if is_number(values) else place
        diverged = np.zeros(shape, bool)
        for name, leaf in _named_leaves(self.runs).items():
            if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                continue
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                along = tuple(range(len(shape), leaf.ndim))
                diverged |= ~np.asarray(jnp.isfinite(leaf).all(axis=along))
            if leaf.ndim == len(shape):
                is_taken = name in columns or name == "diverged"
                columns[f"result.{name}" if is_taken else name or "value"] = np.ravel(
                    _broadcast(leaf, shape)
                )
        name = "run diverged" if "diverged" in columns else "diverged"
        return pandas.DataFrame(columns | {name: diverged.ravel()})


def _broadcast(runs: PyTree, shape: tuple[int, ...]) -> PyTree:
    """The results of runs with each axis of the sweep at its full length."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[len(shape) :])), runs)


def _named_leaves(tree: PyTree) -> dict[str, jax.Array]:
    """The arrays of a tree, named by their paths: "loss", "params.weight", "0"."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths}


def _leaf(tree: PyTree, name: str | None) -> jax.Array:
    """The array of that name, or the only one."""
    leaves = _named_leaves(tree)
    if name is None and len(leaves) == 1:
        return next(iter(leaves.values()))
    if name not in leaves:
        known = ", ".join(leaves) or "nothing"
        raise ValueError(f"by is {name!r}, expected the name of one of the results: {known}")
    return leaves[name]
