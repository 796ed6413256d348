"""Why a step was not finite: the rate, the loss, the gradient or the update, and the rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd.core import programs
from jaxsgd.core.records import Batch, Info, State
from jaxsgd.data.arrays import BatchRows, as_rows
from jaxsgd.solver import Solver


def cause_of(solver: Solver, state: State, data: PyTree) -> str | None:
    """What is not finite in the step that follows `state`, in words; None if all of it is finite.

    The step is taken once more. The rows that it reads are checked before the values it computes.
    """
    batch = jax.tree.map(lambda x: x[0], solver.batches(state, data, 1))
    source = as_rows(data)
    if source.reduction(batch, solver.gradient.is_keyed) is not None:
        return _in_info(_info(solver, state, data, batch, size=None))  # no device has all rows
    rows = source.take(batch.index)
    cause = _in_info(_info(solver, state, rows, batch, size=source.size))
    found = _in_rows(rows, batch)  # named after the cause, because the loss may handle NaN
    return cause if cause is None or found is None else f"{cause}; {found}"


def _in_rows(rows: PyTree, batch: Batch) -> str | None:
    is_used = np.asarray(batch.weight) > 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(rows):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(leaf).reshape(len(is_used), -1)
        bad = np.argwhere(is_used[:, None] & ~np.isfinite(values))
        if len(bad):
            row, where = int(batch.index[bad[0][0]]), f"data{jax.tree_util.keystr(path)}"
            return f"row {row} of {where} holds {values[tuple(bad[0])]}"
    return None


def _in_info(info: Info) -> str | None:
    found = {
        "the learning rate": info.learning_rate,
        "the loss of the batch": info.loss,
        "the penalty": info.penalty,
        "the norm of the gradient": info.grad_norm,
        "the norm of the update": info.update_norm,
    }
    for name, value in found.items():
        if value is not None and not np.isfinite(value):
            return f"{name} is {float(value)}"
    return None if info.finite else "the parameters after the update are not finite"


@programs.jit()
def _info(solver: Solver, state: State, data: PyTree, batch: Batch, *, size: int | None) -> Info:
    """The step's `Info`; with a `size`, data are its batch, gathered from `size` rows."""
    return solver.step_at(state, data if size is None else BatchRows(data, size), batch)[1]
