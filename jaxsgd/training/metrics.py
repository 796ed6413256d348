"""What `fit` evaluates after each epoch, on which rows, and which entry it watches."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from jaxsgd.core import validation as check
from jaxsgd.core.part import innermost
from jaxsgd.core.records import State
from jaxsgd.core.trees import as_arguments
from jaxsgd.core.validation import SampleWeight
from jaxsgd.data.arrays import as_rows, check_same_form
from jaxsgd.evaluation import MetricLike, evaluate
from jaxsgd.losses import RowLoss, RowsLoss
from jaxsgd.solver import Solver
from jaxsgd.stopping.base import Stop


class EpochMetrics(NamedTuple):
    """What is evaluated after each epoch, and on which rows."""

    functions: dict[str, MetricLike]
    prefix: str  # of their names in the history: "validation_", or none for training rows
    rows: PyTree
    sample_weight: Shaped[Array, " m"] | None

    @property
    def names(self) -> list[str]:
        """Their names in the history."""
        return [f"{self.prefix}{name}" for name in self.functions]


def epoch_metrics(
    solver: Solver,
    state: State,
    data: PyTree,
    metrics: Mapping[str, MetricLike] | None,
    validation: PyTree,
    sample_weight: SampleWeight | None,
) -> EpochMetrics:
    """The metrics of a fit on the validation rows, or, where there are none, on the training rows.

    Raises:
      TypeError, ValueError: metrics that fail, or that are not numbers; rows or weights that differ
        in form from the training rows.
    """
    functions = _functions(solver, metrics, validation)
    prefix, rows, weight = "", data, solver.sample_weight
    if validation is not None:
        check_same_form(validation, data, "validation")
        source, weight = as_rows(validation), sample_weight
        source.check_values("validation")
        source.check_precision("validation")
        if weight is not None:
            check.weights(weight, "validation_sample_weight")
            check.one_a_row(weight, source.size, "validation_sample_weight")
            weight = as_arguments(weight)
        prefix, rows = "validation_", source.as_arguments()
    _check_scalars(functions, state, rows)
    return EpochMetrics(functions, prefix, rows, weight)


def monitored_entry(
    monitor: str | None,
    mode: str | None,
    stop: Stop | None,
    restore_best: bool,
    evaluated: list[str],
) -> tuple[str, str]:
    """The entry of the history that is watched, and whether its best is the least or the largest.

    By default a loss, whose best is the least.
    """
    if mode not in ("min", "max", None):
        raise ValueError(f"mode is {mode!r}, expected 'min' or 'max'")
    names = [*evaluated, "loss"]
    watches = restore_best or (isinstance(stop, Stop) and stop.watches_monitor)
    if mode == "max" and monitor is None:
        raise ValueError("mode is 'max' without monitor, expected monitor= the entry to maximise")
    if monitor is None:
        monitor = next(name for name in names if name in ("validation_loss", "loss"))
        if names[0].startswith("validation_") and monitor == "loss" and watches:
            raise ValueError(
                f"monitor: expected one of {', '.join(names)}, got None, and there is no "
                "validation_loss to watch by default; metrics={'loss': ...} adds one"
            )
    elif stop is None and not restore_best:
        raise ValueError(
            f"monitor={monitor!r} was given without a stop, expected stop= or restore_best=True "
            "as well"
        )
    if not isinstance(monitor, str):
        kind = type(monitor).__name__
        raise TypeError(f"monitor is of type {kind}, expected a name: one of {', '.join(names)}")
    if monitor.startswith("-"):
        raise ValueError(
            f"monitor is {monitor!r}, expected a name without a minus; to maximise it, give "
            f"monitor={monitor[1:]!r}, mode='max'"
        )
    if monitor not in names:
        raise ValueError(f"monitor is {monitor!r}, expected one of {', '.join(names)}")
    if restore_best and monitor == "loss" and "loss" not in evaluated:
        raise ValueError(
            "restore_best=True needs an entry that is evaluated at the parameters of an epoch's "
            "end, expected validation= or monitor= one of the metrics; the training loss is that "
            "of the parameters before each step"
        )
    if mode is None and monitor not in ("loss", "validation_loss"):
        raise ValueError(
            f"monitor={monitor!r} was given without a mode, expected mode='max' if larger values "
            "are better, or mode='min'"
        )
    return monitor, mode or "min"


def _functions(
    solver: Solver, metrics: Mapping[str, MetricLike] | None, validation: PyTree
) -> dict[str, MetricLike]:
    """What is evaluated after each epoch."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(f"metrics is {metrics!r}, expected a dict of functions of (params, row)")
    named = dict(metrics or {})
    if validation is None:
        taken = {"epoch", "step", "loss", "seconds"} & set(named)
        if taken:
            raise ValueError(f"metrics names {taken.pop()!r}, which is an entry of every history")
        return named
    loss = innermost(solver.gradient).loss
    if isinstance(loss, RowLoss | RowsLoss) and not loss.keyed:
        return {"loss": loss} | named
    if not named:
        why = (
            f"{type(innermost(solver.gradient)).__name__} has no attribute `loss`"
            if loss is None
            else "this loss (keyed, or of the whole batch) is no function of (params, row)"
        )
        raise ValueError(
            f"validation was given, but {why} to average over it; give metrics={{'loss': ...}}"
        )
    return named


def _check_scalars(metrics: dict[str, MetricLike], state: State, rows: PyTree) -> None:
    """Refuse metrics that fail or are not numbers before anything is trained."""
    evaluated = lambda p, r, c: evaluate(metrics, p, r, model_state=c)  # noqa: E731
    means = jax.eval_shape(evaluated, state.params, as_rows(rows).shapes, state.model_state)
    for name, mean in means.items():
        if not isinstance(mean, jax.ShapeDtypeStruct) or mean.shape != ():
            raise ValueError(
                f"metric {name!r} is of shape {jax.tree.map(jnp.shape, mean)}, expected a number"
            )
