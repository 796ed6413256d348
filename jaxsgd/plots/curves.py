"""Pictures of what changes from step to step or epoch to epoch, and of a line fitted to rows."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def learning_curve(history: Mapping[str, Any], ax: Any = None, *, label: str = "loss") -> Any:
    """Train and held-out loss by epoch, both on a logarithmic axis where all are positive.

    Args:
      history: with `epoch`, `loss` and, where there is one, `validation_loss`: `fit`'s.
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
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel=label, title="Learning curve")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def learning_curves(
    curves: Mapping[str, Any],
    ax: Any = None,
    *,
    x: Any = None,
    xlabel: str = "step",
    label: str = "loss",
) -> Any:
    """Several runs in one picture; where a run has many lanes, their median and the middle 80 %.

    The axis is logarithmic where all is positive, and cut above ten times the highest start, where
    only diverging runs go.

    Args:
      curves: by name, the values of a run: float[T], or float[lanes, T].
      ax: the axes to draw on; new ones where None.
      x: where the values were taken, float[T], one for all or a mapping by name; by default the
        steps 1 to T.
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
        lanes = np.atleast_2d(np.asarray(curve, float))
        at = x[name] if isinstance(x, Mapping) else x
        at = np.arange(1, lanes.shape[1] + 1) if at is None else np.asarray(at)
        if lanes.ndim != 2:
            raise ValueError(f"{name} has shape {lanes.shape}, expected [T] or [lanes, T]")
        lanes = np.where(np.isfinite(lanes), lanes, np.inf)
        low, middle, high = np.quantile(lanes, [0.1, 0.5, 0.9], axis=0, method="nearest")
        (line,) = ax.plot(at, np.where(np.isfinite(middle), middle, np.nan), label=name)
        if len(lanes) > 1:
            ax.fill_between(at, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        middles.append(middle)
    _scale(ax, middles)
    ax.set(xlabel=xlabel, ylabel=label)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def fitted_line(
    params: Mapping[str, Any], data: Any, ax: Any = None, *, labels: tuple[str, str] = ("x", "y")
) -> Any:
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
    told = f"y = {weight:.3g} x {'+' if bias >= 0 else '-'} {abs(bias):.3g}"
    ax.plot(ends, weight * ends + bias, color="C3", label=told)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend()
    return ax


def axes() -> Any:
    """New axes, on a figure of their own."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxsgd[plots]'") from error
    return Figure(figsize=(6.4, 4.0), layout="constrained").subplots()


def _scale(ax: Any, curves: list[np.ndarray]) -> None:
    """A logarithmic axis where all is positive, cut where only diverging runs go."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    flat = np.concatenate(finite)
    if not flat.size:
        raise ValueError("the curves hold no finite value, expected at least one to draw")
    if flat.min() > 0:
        ax.set_yscale("log")
    top = 10 * max(curve[0] for curve in finite if curve.size)
    if flat.max() > top > 0:
        ax.set_ylim(top=top)
