"""Pictures of a run: each function draws on matplotlib axes (extra `plots`) and returns them."""

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
    if not len(history.get("epoch", ())):
        raise ValueError("the history holds no epoch, expected at least one to draw")
    ax = _axes() if ax is None else ax
    epoch, lines = np.asarray(history["epoch"]), {"train (mean over the epoch)": history["loss"]}
    if "validation_loss" in history:
        lines["held out (after the epoch)"] = history["validation_loss"]
    for name, values in lines.items():
        ax.plot(epoch, values, label=name, marker="o" if len(epoch) < 15 else None)
    if all(np.all(np.asarray(v) > 0) for v in lines.values()):
        ax.set_yscale("log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="epoch", ylabel=label, title="Learning curve")
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def _axes() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxsgd[plots]'") from error
    return Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
