"""Many runs as one traced program: one vmap for each axis of a sweep, nested.

The results are *compact*: each array has one leading axis for each axis of the sweep, of that
axis's length where the array depends on it, and of length 1 where it does not. What an axis does
not affect (the sampler's state under different learning rates, and so the rows of a minibatch) is
computed and stored once, and is passed on to another sweep that way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxsgd.core import programs
from jaxsgd.core.trees import by_words, words_of
from jaxsgd.loops.cpu_convolutions import reordered
from jaxsgd.sweeps.axes import Axes

RUNS = "runs"  # the mesh axis that runs are split over


class Plan(NamedTuple):
    """The static description of a sweep's program.

    A call is `(fn, args)`. Axes are numbered in the order of the sweep.
    """

    is_compact: tuple[bool, ...]  # which leaves of the call are compact results of another sweep
    order: tuple[int, ...]  # the axes, the outermost vmap first
    mesh: Mesh | None = None
    split_axis: int = 0  # the axis whose runs are split over the mesh


@programs.jit()
def run_all(call: PyTree, axes: Axes, *, plan: Plan) -> PyTree:
    """The compact results of all runs. `axes` holds, for each axis, its values by name."""
    return _run(call, axes, plan)


@programs.jit()
def allocate(call: PyTree, axes: Axes, *, plan: Plan) -> PyTree:
    """Zeros of the shapes of `run_all`'s results, for `run_block` to write to."""
    shapes = jax.eval_shape(lambda: _run(call, axes, plan))
    return _constrain(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), plan)


@programs.jit(donate="results")
def run_block(
    results: PyTree,
    start: jax.Array,
    call: PyTree,
    axes: Axes,
    *,
    plan: Plan,
    block: tuple[int, ...],
) -> PyTree:
    """Compact results, with those of the runs from `start[i]` to `start[i] + block[i]` computed.

    All blocks have the same shape, so that one program computes them all.
    """

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        at = [start[i] if old.shape[i] > 1 else 0 for i in range(len(block))]
        return lax.dynamic_update_slice(old, new, (*at, *[0] * (old.ndim - len(block))))

    leaves, structure = jax.tree.flatten(call)
    for i, size in enumerate(block):
        leaves = [
            lax.dynamic_slice_in_dim(x, start[i], size, i) if is_compact and x.shape[i] > 1 else x
            for x, is_compact in zip(leaves, plan.is_compact, strict=True)
        ]
    axes = tuple(
        jax.tree.map(partial(lax.dynamic_slice_in_dim, start_index=start[i], slice_size=size), axis)
        for i, (axis, size) in enumerate(zip(axes, block, strict=True))
    )
    new = _run(jax.tree.unflatten(structure, leaves), axes, plan)
    return _constrain(jax.tree.map(partial(by_words, write), results, new), plan)


def runs_spec(plan: Plan, is_split: bool) -> PartitionSpec:
    """The placement of compact results on the mesh, by whether they depend on the split axis."""
    return PartitionSpec(*[None] * plan.split_axis, RUNS) if is_split else PartitionSpec()


def _constrain(results: PyTree, plan: Plan) -> PyTree:
    """Results that stay in the same place on the mesh, whichever blocks have been computed."""
    mesh = plan.mesh
    if mesh is None:
        return results

    def constrain(x: jax.Array) -> jax.Array:
        place = NamedSharding(mesh, runs_spec(plan, x.shape[plan.split_axis] > 1))
        return lax.with_sharding_constraint(x, place)

    return jax.tree.map(constrain, results)


def _run(call: PyTree, axes: Axes, plan: Plan) -> PyTree:
    """The compact results of all runs. `fn` is traced twice: first to find what depends on what."""
    leaves, structure = jax.tree.flatten(call)
    one_run, values, count = partial(_one_run, structure), list(axes), len(axes)
    mapped = [
        [i for i in plan.order if is_compact and x.shape[i] > 1]
        for x, is_compact in zip(leaves, plan.is_compact, strict=True)
    ]
    leaves = [
        _vmap_order(x, at, count) if is_compact else x
        for x, at, is_compact in zip(leaves, mapped, plan.is_compact, strict=True)
    ]
    depends, result_structure = _dependence(one_run, mapped, plan.order, leaves, values)
    program: Callable[..., list[jax.Array]] = lambda *args: jax.tree.leaves(one_run(*args))  # noqa: E731
    for i in reversed(plan.order):
        out_axes = [0 if i in at else None for at in depends]
        program = jax.vmap(program, _in_axes(i, mapped, count), out_axes)
    if plan.mesh is not None:
        program = _split_over_mesh(program, mapped, depends, plan, count)
    results = reordered(program)(leaves, values)
    results = [_sweep_order(x, at, count) for x, at in zip(results, depends, strict=True)]
    return jax.tree.unflatten(result_structure, results)


def _one_run(structure: PyTree, leaves: list[jax.Array], axes: list[dict[str, PyTree]]) -> PyTree:
    """`fn(*args, **point)`, from the leaves of the call and one value on each axis."""
    fn, args = jax.tree.unflatten(structure, leaves)
    results = fn(*args, **{name: value for axis in axes for name, value in axis.items()})
    if not jax.tree.leaves(results):
        raise TypeError(f"{fn!r} returned no array, expected at least one, such as a loss")
    return jax.tree.map(jnp.asarray, results)


def _in_axes(
    i: int, mapped: list[list[int]], count: int
) -> tuple[list[int | None], list[int | None]]:
    """The `in_axes` of axis i's vmap: the leaves that it maps, and its values."""
    return [0 if i in at else None for at in mapped], [0 if j == i else None for j in range(count)]


def _dependence(
    one_run: Callable[..., PyTree],
    mapped: list[list[int]],
    order: tuple[int, ...],
    leaves: list[jax.Array],
    axes: list[dict[str, PyTree]],
) -> tuple[list[list[int]], PyTree]:
    """The axes that each result of a run depends on, outermost first, and the results' structure.

    vmap finds which results depend on its axis, but does not return it: the caller must know before
    where to write `out_axes=None`. So the runs are traced once before, and a `custom_vmap` inside
    each vmap notes what that vmap has mapped. (A walk over the jaxpr would have to repeat vmap's
    rules for every loop and branch. Where it found more dependence than vmap, minibatches would no
    longer be shared; where it found less, vmap would raise.)
    """
    is_mapped: dict[int, list[bool]] = {}  # by axis, for each result

    def observed(run: Callable[..., PyTree], i: int) -> Callable[..., PyTree]:
        @custom_vmap
        def observe(value: PyTree, results: list[jax.Array]) -> PyTree:
            return value

        @observe.def_vmap
        def _(size: int, batched: PyTree, value: PyTree, results: list[jax.Array]) -> PyTree:
            is_mapped[i] = batched[1]
            return value, batched[0]

        def run_and_observe(leaves: list[jax.Array], axes: list[dict[str, PyTree]]) -> PyTree:
            results = run(leaves, axes)
            # The axis's own value goes along: the vmap of axis i maps it even where it maps no
            # result, and so calls the rule, which would otherwise be left to a vmap outside of it.
            observe(*words_of((jax.tree.leaves(axes[i])[0], jax.tree.leaves(results))))
            return results

        return run_and_observe

    run = one_run
    for i in reversed(order):
        run = jax.vmap(observed(run, i), _in_axes(i, mapped, len(axes)))
    shapes, structure = jax.tree.flatten(jax.eval_shape(run, leaves, axes))
    return [[i for i in order if is_mapped[i][k]] for k in range(len(shapes))], structure


def _split_over_mesh(
    program: Callable[..., list[jax.Array]],
    mapped: list[list[int]],
    depends: list[list[int]],
    plan: Plan,
    count: int,
) -> Callable[..., list[jax.Array]]:
    """The program on a mesh: each device computes its own runs, which exchange nothing."""

    def spec(at: list[int]) -> PartitionSpec:
        if plan.split_axis not in at:
            return PartitionSpec()
        return PartitionSpec(*[None] * at.index(plan.split_axis), RUNS)

    return jax.shard_map(
        program,
        mesh=plan.mesh,
        in_specs=([spec(at) for at in mapped], [spec([i]) for i in range(count)]),
        out_specs=[spec(at) for at in depends],
        # Only the runs: rows may be split over another axis of the mesh, by a shard_map inside.
        axis_names={RUNS},
        check_vma=False,
    )


def _vmap_order(x: jax.Array, mapped: Sequence[int], count: int) -> jax.Array:
    """A compact array with the axes that vmaps map in front, outermost first, and no others."""
    others = [i for i in range(count) if i not in mapped]
    x = jnp.transpose(x, (*mapped, *others, *range(count, x.ndim)))
    return jnp.squeeze(x, tuple(range(len(mapped), count)))


def _sweep_order(x: jax.Array, mapped: Sequence[int], count: int) -> jax.Array:
    """The reverse: the axes in the sweep's order, the others of length 1."""
    x = jnp.transpose(x, (*map(mapped.index, sorted(mapped)), *range(len(mapped), x.ndim)))
    return jnp.expand_dims(x, tuple(i for i in range(count) if i not in mapped))
