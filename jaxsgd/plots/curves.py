"""Plots of values by step or epoch, and of a line fitted to rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Array, Num

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

Values = Sequence[float] | np.ndarray | Num[Array, "..."]


def learning_curve(
    history: Mapping[str, Values], ax: "Axes | None" = None, *, label: str = "loss"
) -> "Axes":
    """Train and held-out loss by epoch, on a logarithmic axis where all are positive.

    Args:
      history: `result.history` of `fit`: it has `epoch`, `loss` and perhaps `validation_loss`.
      ax: the axes to draw on; new ones where None.
      label: the name of the loss, with its unit where it has one.

    Returns:
      The axes.

    Raises:
      ImportError: matplotlib is missing.
      ValueError: a history without epochs.

    >>> ax = jaxsgd.plots.learning_curve({"epoch": [1, 2], "loss": [2.0, 1.0]})
    >>> ax.get_xlabel()
    'epoch'
    """
    if not isinstance(history, Mapping):
        kind = type(history).__name__
        raise TypeError(f"history is of type {kind}, expected a dict, such as result.history")
    if not len(history.get("epoch", ())):
        raise ValueError("the history holds no epoch, expected at least one to draw")
    ax = axes() if ax is None else ax
    epoch, lines = np.asarray(history["epoch"]), {"train (mean over the epoch)": history["loss"]}
    if "validation_loss" in history:
        lines["held out (after the epoch)"] = history["validation_loss"]
    for name, values in lines.items():
        ax.plot(epoch, values, label=name, marker="o" if len(epoch) < 15 else None)
    _scale(ax, [np.asarray(values, float) for values in lines.values()])
    cast("MaxNLocator", ax.xaxis.get_major_locator()).set_params(integer=True)
    ax.set(xlabel="epoch", ylabel=label, title="Learning curve")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def learning_curves(
    curves: Mapping[str, Values | Sequence[Values]],
    ax: "Axes | None" = None,
    *,
    x: Values | Mapping[str, Values] | None = None,
    xlabel: str = "step",
    label: str = "loss",
) -> "Axes":
    """Curves of several runs; of repeated runs, their median and the middle 80 %.

    The axis is logarithmic where all values are positive, and ends at ten times the highest start,
    above which only diverging runs are.

    Args:
      curves: by name, the values of a run, float[T], or of repeated runs, float[runs, T].
      ax: the axes to draw on; new ones where None.
      x: the positions of the values, float[T], the same for all curves or a mapping by name; by
        default the steps 1 to T.
      xlabel, label: the names of the axes, with their units where they have one.

    Returns:
      The axes.

    >>> ax = jaxsgd.plots.learning_curves({"slow": [3.0, 2.0], "fast": [3.0, 1.0]})
    >>> ax.get_xlabel(), len(ax.lines)
    ('step', 2)
    """
    if not curves:
        raise ValueError("curves holds no run, expected at least one to draw")
    ax = axes() if ax is None else ax
    middles = []
    for name, curve in curves.items():
        runs = np.atleast_2d(np.asarray(curve, float))
        at = x[name] if isinstance(x, Mapping) else x
        at = np.arange(1, runs.shape[1] + 1) if at is None else np.asarray(at)
        if runs.ndim != 2:
            raise ValueError(f"{name} has shape {runs.shape}, expected [T] or [runs, T]")
        runs = np.where(np.isfinite(runs), runs, np.inf)
        low, middle, high = np.quantile(runs, [0.1, 0.5, 0.9], axis=0, method="nearest")
        (line,) = ax.plot(at, np.where(np.isfinite(middle), middle, np.nan), label=name)
        if len(runs) > 1:
            ax.fill_between(at, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        middles.append(middle)
    _scale(ax, middles)
    ax.set(xlabel=xlabel, ylabel=label)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def fitted_line(
    params: Mapping[str, Values | float],
    data: tuple[Values, Values],
    ax: "Axes | None" = None,
    *,
    labels: tuple[str, str] = ("x", "y"),
) -> "Axes":
    """Rows of one feature, and the line fitted to them.

    Args:
      params: `weight` (float[1] or float[]) and `bias` (float[]), as `Linear(1)` has them.
      data: `(x, y)`, x of shape [n] or [n, 1].
      ax: the axes to draw on; new ones where None.
      labels: the names of both axes, with their units.

    Returns:
      The axes.

    >>> params = {"weight": jnp.array([2.0]), "bias": jnp.array(1.0)}
    >>> ax = jaxsgd.plots.fitted_line(params, (jnp.arange(3.0), jnp.array([1.0, 3.0, 5.0])))
    >>> ax.lines[1].get_ydata().tolist()
    [1.0, 5.0]
    """
    ax = axes() if ax is None else ax
    x, y = (np.ravel(np.asarray(a, float)) for a in data)
    weight, bias = (float(np.squeeze(params[name])) for name in ("weight", "bias"))
    ends = np.array([x.min(), x.max()])
    ax.plot(x, y, ".", markersize=3, color="0.6", label=f"{len(x):,} rows")
    equation = f"y = {weight:.3g} x {'+' if bias >= 0 else '-'} {abs(bias):.3g}"
    ax.plot(ends, weight * ends + bias, color="C3", label=equation)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend()
    return ax


def axes() -> "Axes":
    """New axes on a new figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxsgd[plots]'") from error
    return Figure(figsize=(6.4, 4.0), layout="constrained").subplots()


def _scale(ax: "Axes", curves: list[np.ndarray]) -> None:
    """Make the axis logarithmic where all values are positive, and cut off diverging runs."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    flat = np.concatenate(finite)
    if not flat.size:
        raise ValueError("the curves hold no finite value, expected at least one to draw")
    if flat.min() > 0:
        ax.set_yscale("log")
    top = 10 * max(curve[0] for curve in finite if curve.size)
    if flat.max() > top > 0:
        ax.set_ylim(top=top)
