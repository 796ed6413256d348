"""What a sweep found: the results of its runs, labelled by their axes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd.core.part import part
from jaxsgd.sweeps.axes import entry, is_number, length, repeated


class Ranked(NamedTuple):
    """A setting of a sweep, and how well it did.

    `point`: its values by name, without those that were averaged over. `score`: the mean over its
    runs, infinite where one diverged. `spread`: their standard deviation (of a sample), 0 of one
    run. `diverged`: how many of its runs had a score that was not finite. `place`: its index on
    each axis that was not averaged over; with those last, `result.value[place]` is what it found.
    """

    point: dict[str, Any]
    score: float
    spread: float
    diverged: int
    place: tuple[int, ...]


@part
class Sweep:
    """What `sweep` returns: the results of all runs, labelled by their axes.

    A pytree, and an argument of another `sweep` over axes of the same names and lengths, which
    hands each run its own part: that is how states go on. What an axis does not touch (the
    sampler's state, where rates differ) is kept once, and lanes that shared their rows go on
    sharing them.

    Attributes:
      lanes: the results; each array has one leading axis for each axis of the sweep, of length 1
        where it does not depend on it.
      over: for each axis, its values by name.
      shape: the lengths of the axes.
      value: the results with all axes at their lengths.

    >>> result = jaxsgd.sweep(lambda x, rate: x * rate, jnp.array(2.0), over={"rate": [0.5, 1.0]})
    >>> result, result.value.tolist()
    (Sweep(2 of rate; value: float32[]), [1.0, 2.0])
    """

    lanes: PyTree
    over: tuple[dict[str, PyTree], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return tuple(map(length, self.over))

    @property
    def value(self) -> PyTree:
        """The results, each array of shape (*shape, ...)."""
        return _shown(self.lanes, self.shape)

    def __getitem__(self, name: Any) -> "Sweep":
        """One of the results, where they are a tuple or dict: `result["params"]`, `result[0]`."""
        return Sweep(self.lanes[name], self.over)

    def __repr__(self) -> str:
        axes = " x ".join(f"{length(axis)} of {' and '.join(axis)}" for axis in self.over)
        found = (
            f"{name or 'value'}: {x.dtype}{list(x.shape[len(self.shape) :])}"
            for name, x in _leaves(self.lanes).items()
        )
        return f"Sweep({axes}; {', '.join(found)})"

    def scores(self, by: str | Callable[[PyTree], Any] | None = None) -> np.ndarray:
        """One number a run, the smaller the better; infinite where it is not finite.

        Args:
          by: what to score: the name of one of the results ("loss", "params.weight", "0"), a
            function of `value`, or None where there is only one. Of a curve, an array with one
            more axis, its last entry counts.

        Returns:
          float64 of the sweep's shape.
        """
        shape = self.shape
        chosen = by(self.value) if callable(by) else _shown(_named(self.lanes, by), shape)
        value = np.asarray(chosen)
        if value.ndim == len(shape) + 1 and value.shape[-1]:
            value = value[..., -1]
        if value.shape != shape or value.dtype.kind == "c":
            raise ValueError(
                f"the score by {by!r} is of shape {value.shape} and {value.dtype}, expected real "
                f"numbers of shape {shape}, one a run, or a curve of them"
            )
        value = value.astype(np.float64)
        return np.where(np.isfinite(value), value, np.inf)

    def ranked(
        self,
        by: str | Callable[[PyTree], Any] | None = None,
        *,
        mean_over: str | Sequence[str] | None = None,
        most: int | None = None,
    ) -> list[Ranked]:
        """The settings, best first; a setting one of whose runs diverged comes after all others.

        Args:
          by: as in `scores`.
          mean_over: the name of an axis whose runs are repetitions of one setting, "key", or the
            names of several, ("fold", "key").
          most: only so many of them.
        """
        scores, repeats = self.scores(by), repeated(self.over, mean_over)
        others = [i for i in range(len(self.shape)) if i not in repeats]
        runs = np.transpose(scores, (*others, *repeats))
        runs = runs.reshape(*[scores.shape[i] for i in others], -1)
        diverged, means = np.isinf(runs).sum(-1), runs.mean(-1)
        with np.errstate(invalid="ignore"):  # of infinite runs there is none
            spreads = runs.std(-1, ddof=1) if runs.shape[-1] > 1 else 0 * means
        # numbers on the host: to read one of a device's takes a tenth of a millisecond
        over = [
            {k: np.asarray(v) if is_number(v) else v for k, v in self.over[i].items()}
            for i in others
        ]

        def told(flat: int) -> Ranked:
            place = tuple(map(int, np.unravel_index(flat, means.shape)))
            point = {
                name: entry(values, i)
                for axis, i in zip(over, place, strict=True)
                for name, values in axis.items()
            }
            spread = float(spreads[place])
            return Ranked(point, float(means[place]), spread, int(diverged[place]), place)

        return [told(flat) for flat in np.lexsort((means.ravel(), diverged.ravel()))[:most]]

    def best(
        self,
        by: str | Callable[[PyTree], Any] | None = None,
        *,
        mean_over: str | Sequence[str] | None = None,
    ) -> Ranked:
        """The setting with the least score, or mean of scores over an axis.

        Raises:
          ValueError: in every setting a run diverged.

        >>> result = jaxsgd.sweep(lambda rate, key: (rate - 0.3) ** 2, over={
        ...     "rate": [0.1, 0.2, 0.5], "key": jax.random.split(jax.random.key(0), 4)})
        >>> round(result.best(mean_over="key").point["rate"], 3)
        0.2
        """
        best = self.ranked(by, mean_over=mean_over, most=1)[0]
        if best.diverged:
            raise ValueError("in every setting of the sweep a run diverged: there is no best one")
        return best

    def to_frame(self) -> Any:
        """A pandas table with a row a run: its values, and the results that are one number a run.

        A value that is no number, such as a key, is told by its place on its axis. `diverged` is
        true where any float of the run's results is not finite.
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
        for name, leaf in _leaves(self.lanes).items():
            if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                continue
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                along = tuple(range(len(shape), leaf.ndim))
                diverged |= ~np.asarray(jnp.isfinite(leaf).all(axis=along))
            if leaf.ndim == len(shape):
                is_taken = name in columns or name == "diverged"
                columns[f"result.{name}" if is_taken else name or "value"] = np.ravel(
                    _shown(leaf, shape)
                )
        name = "run diverged" if "diverged" in columns else "diverged"
        return pandas.DataFrame(columns | {name: diverged.ravel()})


def _shown(lanes: PyTree, shape: tuple[int, ...]) -> PyTree:
    """Lanes with all axes of their length."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[len(shape) :])), lanes)


def _leaves(tree: PyTree) -> dict[str, jax.Array]:
    """The arrays of a tree, named by their paths: "loss", "params.weight", "0"."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths}


def _named(tree: PyTree, name: str | None) -> jax.Array:
    """The array of a name, or the only one."""
    leaves = _leaves(tree)
    if name is None and len(leaves) == 1:
        return next(iter(leaves.values()))
    if name not in leaves:
        known = ", ".join(leaves) or "nothing"
        raise ValueError(f"by is {name!r}, expected the name of one of the results: {known}")
    return leaves[name]
