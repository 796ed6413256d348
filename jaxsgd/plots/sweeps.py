"""Plots of a sweep: how the score depends on the values that were swept."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxsgd.plots.curves import axes
from jaxsgd.plots.surfaces import shades
from jaxsgd.sweeps.axes import is_number, repeated
from jaxsgd.sweeps.result import Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep(
    result: Sweep,
    ax: "Axes | None" = None,
    *,
    by: str | Callable[[PyTree], PyTree] | None = None,
    mean_over: str | Sequence[str] | None = None,
    kind: str | None = None,
    label: str = "loss",
) -> "Axes":
    """The score of each setting: curves over one axis of a sweep, a heat map over two.

    The score of repeated runs is their mean; around a curve is a band from the least run to the
    largest. A setting counts as diverged where one of its runs did: it is a cross at the top of the
    curves, a crossed grey cell of the map. Axes are logarithmic where their values are positive and
    span a decade or are a geometric series. Outliers among the scores (beyond Tukey's fence), of
    runs that are about to diverge, are cut off.

    Args:
      result: a `Sweep`, with one or two axes other than `mean_over`.
      ax: the axes to draw on; new ones where None.
      by: the score, as in `Sweep.scores`.
      mean_over: the name of the axis whose runs repeat a setting, "key", or several; None for none.
      kind: "heat", or "curves" over the first axis, one for each value of the second; by default
        "heat" where there are two axes.
      label: the name of the score, with its unit where it has one.

    Returns:
      The axes.

    Raises:
      ValueError: no or too many axes are left, or an unknown kind or name.

    >>> result = jaxsgd.sweep(lambda rate, key: (rate - 0.3) ** 2, over={
    ...     "rate": [0.1, 0.2, 0.4], "key": jax.random.split(jax.random.key(0), 4)})
    >>> ax = jaxsgd.plots.sweep(result, mean_over="key")
    >>> ax.get_xlabel(), ax.lines[0].get_ydata().round(3).tolist()
    ('rate', [0.04, 0.01, 0.01])
    """
    scores, names = np.asarray(result.scores(by), float), [*map(list, result.over)]
    repeats = repeated(result.over, mean_over)
    left = [i for i in range(len(names)) if i not in repeats]
    if kind not in (None, "heat", "curves"):
        raise ValueError(f"kind is {kind!r}, expected 'heat', 'curves' or None")
    if not (kind == "heat") < len(left) <= 2:
        given = ", ".join(" with ".join(names[i]) for i in left) or "none"
        expected = "two for a heat map" if kind == "heat" else "one or two"
        raise ValueError(
            f"the axes of the sweep other than mean_over={mean_over!r} are {given}; expected "
            f"{expected}"
        )
    runs = np.transpose(scores, (*left, *repeats)).reshape(*[scores.shape[i] for i in left], -1)
    along = [_axis(result.over[i]) for i in left]
    for i, axis in enumerate(along):
        runs = np.take(runs, axis.order, axis=i)
    ax = axes() if ax is None else ax
    if runs.shape[-1] > 1:
        label = f"{label}\nmean of {runs.shape[-1]} runs"
    draw = _heat if len(left) == 2 and kind != "curves" else _curves
    draw(ax, runs, *along, label=label)
    return ax


class _Axis(NamedTuple):
    """An axis of a sweep as it is drawn, in ascending order."""

    label: str
    values: np.ndarray  # its numbers; its places, where it has none
    order: np.ndarray
    is_places: bool
    is_zipped: bool = False  # values of another name belong to these, and may not be in order

    def tick(self, i: int) -> str:
        return str(self.order[i]) if self.is_places else f"{self.values[i]:.3g}"


def _axis(named: Mapping[str, PyTree]) -> _Axis:
    """An axis by the first of its names that holds numbers."""
    numbers = {name: values for name, values in named.items() if is_number(values)}
    name = next(iter(numbers or named))
    others = [other.replace("_", " ") for other in named if other != name]
    label = name.replace("_", " ") + (f" (with {', '.join(others)})" if others else "")
    if not numbers:
        places = np.arange(len(jax.tree.leaves(named)[0]))
        return _Axis(f"{label}, by place", places, places, True)
    values = np.asarray(numbers[name]).astype(float)
    order = np.argsort(values, kind="stable")
    return _Axis(label, values[order], order, False, bool(others))


def _curves(
    ax: "Axes", runs: np.ndarray, along: _Axis, second: _Axis | None = None, *, label: str
) -> None:
    """A curve for each value of the second axis, where there is one."""
    runs = runs if second is not None else runs[:, None]
    means, (points, curves, repeats) = runs.mean(axis=-1), runs.shape
    fine, x = np.isfinite(means), along.values
    colours = [f"C{i}" for i in range(10)] if curves <= 10 else shades(np.linspace(0, 0.9, curves))
    labelled = range(curves) if curves <= 10 else _some(curves, 5)
    for i in range(curves):
        least, middle, most = (
            np.where(fine[:, i], of_runs, np.nan)
            for of_runs in (runs[:, i].min(axis=-1), means[:, i], runs[:, i].max(axis=-1))
        )
        name = None
        if second is not None and i in labelled:
            name = f"{second.label} = {second.tick(i)}"
        line = "" if along.is_zipped else "-"
        ax.plot(x, middle, line, color=colours[i], label=name, marker="o", markersize=3)
        if repeats > 1 and not along.is_zipped:
            ax.fill_between(x, least, most, color=colours[i], alpha=0.2, linewidth=0)
    # one row of crosses per curve, so that none hides another
    for row, i in enumerate(np.flatnonzero(~fine.all(axis=0)).tolist()):
        at, height = x[~fine[:, i]], 1 - row * min(0.04, 0.3 / curves)
        edge = colours[i] if curves > 1 else "red"
        ax.plot(at, np.full(len(at), height), "X", color="red", markeredgecolor=edge,
                transform=ax.get_xaxis_transform(), clip_on=False, zorder=5)  # fmt: skip
    if repeats > 1 and not along.is_zipped:
        ax.fill_between(
            [], [], [], color="0.5", alpha=0.3, linewidth=0, label="least to largest run"
        )
    if not fine.all():
        name = f"diverged: {np.sum(~np.isfinite(runs))} of {runs.size} runs"
        ax.plot([], [], "X", color="red", label=name)
    if _is_logarithmic(x) and not along.is_places:
        ax.set_xscale("log")
    if along.is_places:
        ax.set_xticks(places := _some(points, 10), [along.tick(i) for i in places])
    drawn = runs[fine]
    if drawn.size:
        low, is_positive = drawn.min(), bool(drawn.min() > 0)
        ax.set_yscale("log" if is_positive else "linear")
        top = _fence(means[fine], is_positive)
        if drawn.max() > top:  # the margin is a part of the range that is shown
            below = low * (low / top) ** 0.05 if is_positive else low - 0.05 * (top - low)
            ax.set_ylim(below, top)
    ax.set(xlabel=along.label, ylabel=label)
    ax.grid(alpha=0.3)
    if ax.get_legend_handles_labels()[0]:
        ax.legend()


def _heat(ax: "Axes", runs: np.ndarray, along: _Axis, second: _Axis, *, label: str) -> None:
    """The first axis to the right, the second upwards, one cell per setting."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    means = runs.mean(axis=-1).T
    fine = np.isfinite(means)
    image = np.ma.masked_where(~fine, means)
    is_wide = bool(fine.any()) and _is_logarithmic(np.unique(means[fine]))
    colour_map = colormaps["viridis"].with_extremes(bad="0.85")
    cells = ax.imshow(
        image, cmap=colour_map, norm=LogNorm() if is_wide else Normalize(),
        origin="lower", aspect="auto", interpolation="nearest",
    )  # fmt: skip
    if fine.any():
        best = np.unravel_index(np.argmin(np.where(fine, means, np.inf)), means.shape)
        top, most = _fence(means[fine], is_wide), means[fine].max()
        cells.set_clim(means[best], min(top, most))
        extend = "max" if most > top else "neither"
        ax.figure.colorbar(cells, ax=ax, label=label, extend=extend)
        ax.plot(best[1], best[0], "*", color="white", markeredgecolor="black", markersize=12,
                linestyle="", label=f"best: {means[best]:.3g}")  # fmt: skip
    if not fine.all():
        rows, columns = np.nonzero(~fine)
        name = f"diverged: {np.sum(~np.isfinite(runs))} of {runs.size} runs"
        ax.plot(columns, rows, "x", color="red", markersize=5, label=name)
    ax.set_xticks(places := _some(len(along.values), 6), [along.tick(i) for i in places])
    ax.set_yticks(places := _some(len(second.values), 10), [second.tick(i) for i in places])
    ax.set(xlabel=along.label, ylabel=second.label)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def _some(count: int, most: int) -> range:
    """At most `most` evenly spaced places, from the first on."""
    return range(0, count, -(-count // most))


def _is_logarithmic(values: np.ndarray) -> bool:
    """Whether values, ascending, are positive and over more than a decade or a geometric series."""
    if not (values[0] > 0 and np.isfinite(values[-1])):
        return False
    steps = np.diff(np.log(values))
    is_geometric = len(steps) > 1 and bool(np.allclose(steps, steps[0], rtol=1e-3))
    return bool(values[-1] > 10 * values[0]) or (is_geometric and bool(steps[0] > 0))


def _fence(values: np.ndarray, is_logarithmic: bool) -> float:
    """The bound above which a score is an outlier, by Tukey's rule.

    It is the upper quartile plus 1.5 interquartile ranges, or 5 ranges for fewer than 8 values,
    whose quartiles are unreliable.
    """
    low, high = np.quantile(np.log(values) if is_logarithmic else values, [0.25, 0.75])
    if high == low:
        return np.inf
    fence = high + (1.5 if values.size >= 8 else 5) * (high - low)
    return float(np.exp(fence) if is_logarithmic else fence)
