"""Pictures over a plane: the loss of two parameters, and where the runs of a grid end."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd.plots.curves import axes


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
    ax = axes() if ax is None else ax
    is_relief = ax.name == "3d"
    grid = np.stack(np.meshgrid(np.linspace(*x, 101), np.linspace(*y, 101)), axis=-1)
    values = np.asarray(jax.vmap(jax.vmap(fn))(jnp.asarray(grid, jnp.float32)))
    if is_relief:
        ax.plot_surface(*np.moveaxis(grid, -1, 0), values, cmap="viridis", alpha=0.6, linewidth=0)
        ax.set_zlabel(label)
    else:
        levels = np.unique(np.quantile(values, np.linspace(0, 1, 17) ** 1.5))
        colours = shades(np.linspace(0, 0.95, len(levels)))  # by rank: most levels lie low
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
    ax = axes() if ax is None else ax
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


def shades(ranks: np.ndarray) -> np.ndarray:
    """Of the map viridis, for ranks from 0 to 1."""
    from matplotlib import colormaps

    return colormaps["viridis"](ranks)
