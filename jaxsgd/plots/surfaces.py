"""Plots over a plane: the loss of two parameters, and where the runs of a grid end."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsgd.plots.curves import Values, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mpl_toolkits.mplot3d import Axes3D

Limits = tuple[float, float]


def surface(
    fn: Callable[[Float[Array, "2"]], Float[Array, ""]],
    x: Limits,
    y: Limits,
    ax: "Axes | None" = None,
    *,
    paths: Mapping[str, Values | Sequence[Values]] | None = None,
    arrows: bool = True,
    labels: tuple[str, str] = ("theta 1", "theta 2"),
    label: str = "loss",
) -> "Axes":
    """A loss of two parameters: level curves, or a relief on 3D axes, with the paths of runs.

    Arrows of equal length point along the negative gradient. The axes have the same scale, so that
    arrows are perpendicular to level curves.

    Args:
      fn: the loss, a function of float[2].
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
        relief = cast("Axes3D", ax)
        first, second = np.moveaxis(grid, -1, 0)
        relief.plot_surface(first, second, values, cmap="viridis", alpha=0.6, linewidth=0)
        relief.set_zlabel(label)
    else:
        levels = np.unique(np.quantile(values, np.linspace(0, 1, 17) ** 1.5))
        colours = shades(np.linspace(0, 0.95, len(levels)))  # by rank, as most levels are low
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
    ends: np.ndarray | Float[Array, "rows columns 2"],
    minima: Mapping[str, Values],
    x: Limits,
    y: Limits,
    ax: "Axes | None" = None,
    *,
    within: float = 0.1,
    labels: tuple[str, str] = ("theta 1 at the start", "theta 2 at the start"),
) -> "Axes":
    """The minimum in which the run from each start of a grid ends.

    Args:
      ends: where the runs ended, float[rows, columns, 2]; rows are values of the second parameter.
      minima: the minima by name, float[2] each.
      x, y: the limits of the starts.
      ax: the axes to draw on; new ones where None.
      within: the largest distance of an end to its minimum, in units of the parameters.
      labels: the names of both axes.

    Returns:
      The axes; grey are the starts whose runs end near no minimum.

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
        share = f"{name}: {np.mean(which == i):.0%}".replace("%", " %")
        ax.plot(*place, "o", color=colours[i], markeredgecolor="black", label=share)
    if not near.all():
        share = f"none: {np.mean(~near):.0%}".replace("%", " %")
        ax.plot([], [], "s", color=colours[-1], label=share)
    ax.set(xlim=x, ylim=y, xlabel=labels[0], ylabel=labels[1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return ax


def shades(ranks: np.ndarray) -> np.ndarray:
    """The colours of the map viridis for ranks from 0 to 1."""
    from matplotlib import colormaps

    return colormaps["viridis"](ranks)
