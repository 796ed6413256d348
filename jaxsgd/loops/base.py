"""What all loops share: the carry of a loop and its step, and the checks before it."""

from collections.abc import Callable

from jaxtyping import Array, Bool, PyTree

from jaxsgd import contracts
from jaxsgd.core import validation
from jaxsgd.core.records import Batch, Info, State
from jaxsgd.core.trees import select
from jaxsgd.data.arrays import as_rows
from jaxsgd.solver import Solver

Carry = tuple[
    State, tuple[Batch, PyTree]
]  # the next step's batch, and the sampler's state after it
Step = Callable[..., tuple[Carry, Info]]  # of a carry, and perhaps of the rows of its batch


def stepping(solver: Solver, state: State, data: PyTree) -> tuple[Carry, Step]:
    """A loop's carry, and its step `carry -> (carry, info)`; `carry[0]` is the state.

    The carry holds the batch of the next step. Where a batch was drawn in the step that uses it,
    XLA's CPU backend would fuse the permutation into each gather, and compute it once for each
    array of the data (3.4 instead of 2.5 us a step); it removes `optimization_barrier` before
    fusion. The step also takes the rows of its batch, where they were gathered already.
    """
    sampler = solver.sampler_for(data)
    contracts.check_states(solver.gradient, sampler, solver.rule, state, data)
    data = solver.rows_of(data)

    def step(ahead: Carry, rows: PyTree = data) -> tuple[Carry, Info]:
        state, (batch, after) = ahead
        state, info = solver.step_at(state._replace(sampler=after), rows, batch)
        return (state, sampler.update(after)), info

    return (state, sampler.update(state.sampler)), step


def guarded(step: Step, ahead: Carry, fine: Bool[Array, ""]) -> tuple[Carry, Bool[Array, ""], Info]:
    """A step that counts only while all values are finite: none counts after one that does not."""
    after, info = step(ahead)
    fine = fine & info.finite
    return (select(fine, after[0], ahead[0]), after[1]), fine, info


def windows_of(steps: int, name: str, every: int, every_name: str) -> int:
    """How many windows of `every` steps there are."""
    every = validation.integer(every, every_name, 1)
    if steps % every:
        raise ValueError(
            f"{name} is {steps}, expected a multiple of {every_name}, which is {every}"
        )
    return steps // every


def check_state(state: object, data: PyTree) -> None:
    """Refuse what is not a state, and data without rows."""
    if not isinstance(state, State):
        raise TypeError(
            f"state is of type {type(state).__name__}, expected the State that "
            "solver.init(params, data, key=key) or an earlier run returned"
        )
    as_rows(data)


def device_data(state: object, data: PyTree) -> PyTree:
    """The data of a compiled run as its argument; rows on the host are refused."""
    check_state(state, data)
    rows = as_rows(data)
    if rows.is_streamed:
        raise TypeError(
            f"data are {data!r}, which stay on the host, expected arrays: a compiled run cannot "
            "read them on its way; use jaxsgd.chunks or jaxsgd.fit"
        )
    return rows.as_arguments()
