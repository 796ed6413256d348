"""Pictures of a run: each function draws on matplotlib axes (extra `plots`) and returns them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
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
    ax = _axes() if ax is None else ax
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
    ax = _axes() if ax is None else ax
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
    ax = _axes() if ax is None else ax
    x, y = (np.ravel(np.asarray(a, float)) for a in data)
    weight, bias = (float(np.squeeze(params[name])) for name in ("weight", "bias"))
    ends = np.array([x.min(), x.max()])
    ax.plot(x, y, ".", markersize=3, color="0.6", label=f"{len(x):,} rows")
    told = f"y = {weight:.3g} x {'+' if bias >= 0 else '-'} {abs(bias):.3g}"
    ax.plot(ends, weight * ends + bias, color="C3", label=told)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.legend()
    return ax


def surface(
    fn: Callable[[Any], Any],
    x: tuple[float, float],
    y: tuple[float, float],
    ax: Any = None,
    *,
    paths: Mapping[str, Any] | None = None,
    arrows: bool = True,
    labels: tuple[str, str] = ("theta 1", "theta 2"),
    label: str = "loss",
) -> Any:
    """A loss of two parameters: level curves, or a relief on 3D axes, with the paths of runs.

    Arrows point down the gradient, all of one length, on axes of equal scale, where they stand at
    right angles on the level curves.

    Args:
      fn: from float[2] to a number.
      x, y: the limits of both parameters.
      ax: the axes to draw on, of projection "3d" for a relief; new flat ones where None.
      paths: by name, the parameters along a run: float[T, 2].
      arrows: whether to draw the gradient, on flat axes.
      labels: the names of both parameters.
      label: the name of the loss.

    Returns:
      The axes.

    >>> ax = jaxsgd.plots.surface(lambda theta: theta @ theta, (-1, 1), (-2, 2),
    ...                           paths={"run": jnp.ones((3, 2))})
    >>> ax.get_aspect(), ax.get_xlabel()
    (1.0, 'theta 1')
    """
    ax = _axes() if ax is None else ax
    is_relief = ax.name == "3d"
    grid = np.stack(np.meshgrid(np.linspace(*x, 101), np.linspace(*y, 101)), axis=-1)
    values = np.asarray(jax.vmap(jax.vmap(fn))(jnp.asarray(grid, jnp.float32)))
    if is_relief:
        ax.plot_surface(*np.moveaxis(grid, -1, 0), values, cmap="viridis", alpha=0.6, linewidth=0)
        ax.set_zlabel(label)
    else:
        levels = np.unique(np.quantile(values, np.linspace(0, 1, 17) ** 1.5))
        colours = _colours(np.linspace(0, 0.95, len(levels)))  # by rank: most levels lie low
        drawn = ax.contour(
            *np.moveaxis(grid, -1, 0), values, levels=levels, colors=colours, linewidths=0.9
        )
        ax.figure.colorbar(drawn, ax=ax, label=label, format="%.3g")
    if arrows and not is_relief:
        points = grid[5::10, 5::10]
        slopes = np.asarray(jax.vmap(jax.vmap(jax.grad(fn)))(jnp.asarray(points, jnp.float32)))
        length = np.linalg.norm(slopes, axis=-1, keepdims=True)
        down = -slopes / np.where(length > 0, length, 1)
        ax.quiver(*np.moveaxis(points, -1, 0), *np.moveaxis(down, -1, 0), color="0.7", scale=32,
                  width=0.003, angles="xy", zorder=0)  # fmt: skip
        ax.set_aspect("equal")
    for i, (name, path) in enumerate((paths or {}).items()):
        path = np.asarray(path, float)
        height = [np.asarray(jax.vmap(fn)(jnp.asarray(path, jnp.float32)))] if is_relief else []
        options = {"color": f"C{i}", "label": name, "linewidth": 1.2, "zorder": 5}
        ax.plot(*path.T, *height, marker="o", markersize=2.5, **options)
    ax.set(xlim=x, ylim=y, xlabel=labels[0], ylabel=labels[1])
    if paths:
        ax.legend(loc="upper right")
    return ax


def basins(
    ends: Any,
    minima: Mapping[str, Any],
    x: tuple[float, float],
    y: tuple[float, float],
    ax: Any = None,
    *,
    within: float = 0.1,
    labels: tuple[str, str] = ("theta 1 at the start", "theta 2 at the start"),
) -> Any:
    """Which minimum each start of a grid ends in.

    Args:
      ends: where the runs ended, float[rows, columns, 2]; rows are values of the second parameter.
      minima: by name, their places, float[2].
      x, y: the limits of the starts.
      ax: the axes to draw on; new ones where None.
      within: how near a run must have come to count, in units of the parameters.
      labels: the names of both axes.

    Returns:
      The axes; grey is where a run came near none.

    >>> ends = jnp.zeros((4, 5, 2)).at[:, 3:].set(1.0)
    >>> ax = jaxsgd.plots.basins(ends, {"left": (0, 0), "right": (1, 1)}, (-1, 1), (-1, 1))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['left: 60 %', 'right: 40 %']
    """
    ax = _axes() if ax is None else ax
    from matplotlib.colors import to_rgb

    ends, places = np.asarray(ends, float), np.array([np.asarray(m) for m in minima.values()])
    far = np.linalg.norm(ends[:, :, None] - places, axis=-1)
    near = np.nan_to_num(far, nan=np.inf).min(axis=-1) <= within
    which = np.where(near, np.nan_to_num(far, nan=np.inf).argmin(axis=-1), len(places))
    colours = [f"C{i}" for i in range(len(places))] + ["0.8"]
    image = np.array([to_rgb(colour) for colour in colours])[which]
    ax.imshow(image, origin="lower", extent=(*x, *y), alpha=0.5, interpolation="nearest")
    for i, (name, place) in enumerate(zip(minima, places, strict=True)):
        told = f"{name}: {np.mean(which == i):.0%}".replace("%", " %")
        ax.plot(*place, "o", color=colours[i], markeredgecolor="black", label=told)
    if not near.all():
        told = f"none: {np.mean(~near):.0%}".replace("%", " %")
        ax.plot([], [], "s", color=colours[-1], label=told)
    ax.set(xlim=x, ylim=y, xlabel=labels[0], ylabel=labels[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return ax


def _axes() -> Any:
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


def _colours(ranks: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](ranks)
