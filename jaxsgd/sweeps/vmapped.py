"""Many runs as one traced program: a vmap for each axis, nested.

Lanes are the results of all runs: each array has one leading axis for each axis of the sweep, of
its length where the array depends on it, else of length 1. So what an axis does not touch is
neither computed nor kept again, and goes into another program as it came out of this one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxsgd.core.trees import by_words, words_of

RUNS = "runs"  # the axis of a mesh over which runs are spread


class Plan(NamedTuple):
    """What is static of a sweep."""

    own: tuple[bool, ...]  # which leaves of a call are lanes: each run has its part
    order: tuple[int, ...]  # the axes, the outermost vmap first
    mesh: Any = None
    spread: int = 0  # the axis whose runs are spread over the mesh


@partial(jax.jit, static_argnames="plan")
def all_lanes(call: Any, axes: Any, *, plan: Plan) -> PyTree:
    """The lanes of all points of the axes; a `call` is a function and its other arguments."""
    return _lanes(call, axes, plan)


@partial(jax.jit, static_argnames="plan")
def room(call: Any, axes: Any, *, plan: Plan) -> PyTree:
    """Zeros in the place of all lanes."""
    shapes = jax.eval_shape(partial(_lanes, plan=plan), call, axes)
    return _settled(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), plan)


@partial(jax.jit, static_argnames=("plan", "block"), donate_argnums=0)
def fill(
    lanes: PyTree, start: jax.Array, call: Any, axes: Any, *, plan: Plan, block: tuple[int, ...]
) -> PyTree:
    """The lanes, those of `block[i]` points from `start[i]` on of each axis computed."""

    def cut(x: jax.Array, i: int) -> jax.Array:
        return lax.dynamic_slice_in_dim(x, start[i], block[i], i) if x.shape[i] > 1 else x

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        at = [start[i] if old.shape[i] > 1 else 0 for i in range(len(block))]
        return lax.dynamic_update_slice(old, new, (*at, *[0] * (old.ndim - len(block))))

    leaves, structure = jax.tree.flatten(call)
    for i in range(len(block)):
        leaves = [cut(x, i) if own else x for x, own in zip(leaves, plan.own, strict=True)]
    along = lambda x, i: lax.dynamic_slice_in_dim(x, start[i], block[i])  # noqa: E731
    axes = tuple(jax.tree.map(partial(along, i=i), axis) for i, axis in enumerate(axes))
    new = _lanes(jax.tree.unflatten(structure, leaves), axes, plan)
    return _settled(jax.tree.map(partial(by_words, put), lanes, new), plan)


def _settled(lanes: PyTree, plan: Plan) -> PyTree:
    """Lanes in their places on the mesh, the same before a chunk and after it."""
    if plan.mesh is None:
        return lanes

    def settle(x: jax.Array) -> jax.Array:
        place = NamedSharding(plan.mesh, of_runs(plan, x.shape[plan.spread] > 1))
        return lax.with_sharding_constraint(x, place)

    return jax.tree.map(settle, lanes)


def _lanes(call: Any, axes: Any, plan: Plan) -> PyTree:
    leaves, structure = jax.tree.flatten(call)
    ranks = range(len(axes))
    marks = [jnp.zeros(jax.tree.leaves(axis)[0].shape[0]) for axis in axes]
    mapped = [
        [own and x.shape[i] > 1 for x, own in zip(leaves, plan.own, strict=True)] for i in ranks
    ]
    its = [[0 if j == i else None for j in ranks] for i in ranks]
    ins = [([0 if m else None for m in mapped[i]], its[i], its[i]) for i in ranks]
    form: list[Any] = []

    def one(leaves: Any, axes: Any, marks: Any) -> list[jax.Array]:
        fn, args = jax.tree.unflatten(structure, leaves)
        point = {name: value for axis in axes for name, value in axis.items()}
        results, told = jax.tree.flatten(fn(*args, **point))
        if not results:
            raise TypeError(f"{fn!r} returned no array, expected some, such as a loss")
        form[:] = [told]
        return [jnp.asarray(x) for x in results]

    def all_of(one: Callable[..., Any], outs: Any) -> Callable[..., Any]:
        """A vmap for each axis around one run."""
        for i in reversed(plan.order):
            one = jax.vmap(one, ins[i], outs[i])

        def lanes(leaves: Any, axes: Any, marks: Any) -> Any:
            at = [[i for i in plan.order if mapped[i][k]] for k in range(len(leaves))]
            own = [
                _inward(x, places, len(axes)) if is_own else x
                for x, places, is_own in zip(leaves, at, plan.own, strict=True)
            ]
            return one(own, axes, marks)

        return lanes

    def on_mesh(lanes: Callable[..., Any], outs: Any) -> Callable[..., Any]:
        """Each device computes its own runs: nothing is exchanged for their sake."""
        if plan.mesh is None:
            return lanes
        own = [of_runs(plan, is_mapped) for is_mapped in mapped[plan.spread]]
        its = [PartitionSpec(RUNS) if i == plan.spread else PartitionSpec() for i in ranks]
        return jax.shard_map(
            lanes,
            mesh=plan.mesh,
            in_specs=(own, its, its),
            out_specs=outs,
            axis_names={RUNS},  # rows may be spread over another
            check_vma=False,
        )

    arguments = leaves, list(axes), marks
    some = of_runs(plan, True)
    touched = _touched(one, lambda one: on_mesh(all_of(one, [0] * len(axes)), some), arguments)
    outs = [[0 if is_touched else None for is_touched in touched[i]] for i in ranks]
    at = [[i for i in plan.order if touched[i][k]] for k in range(len(touched[0]))]

    def lanes(*arguments: Any) -> list[jax.Array]:
        results = all_of(one, outs)(*arguments)
        return [_outward(x, places, len(axes)) for x, places in zip(results, at, strict=True)]

    spread = [of_runs(plan, plan.spread in places) for places in at]
    return jax.tree.unflatten(form[0], on_mesh(lanes, spread)(*arguments))


def of_runs(plan: Plan, is_touched: bool) -> PartitionSpec:
    """How lanes lie on a mesh, which the axis that is spread touches or not."""
    return PartitionSpec(*[None] * plan.spread, RUNS) if is_touched else PartitionSpec()


def _touched(
    one: Callable[..., Any], all_of: Callable[..., Any], arguments: tuple[Any, ...]
) -> list[list[bool]]:
    """For each axis, which results of a run depend on it: by a trace, nothing is computed.

    Each axis maps a mark of its own, by which a vmap is told from the others.
    """
    found: dict[int, list[bool]] = {}

    @custom_vmap
    def look(marks: Any, results: Any) -> Any:
        return results

    @look.def_vmap
    def _(size: int, batched: Any, marks: Any, results: Any) -> Any:
        found[batched[0].index(True)] = batched[1]
        return look(marks, results), batched[1]

    def looked_at(leaves: Any, axes: Any, marks: Any) -> Any:
        return look(marks, words_of(one(leaves, axes, marks)))

    jax.eval_shape(all_of(looked_at), *arguments)
    return [found[i] for i in range(len(found))]


def _inward(x: jax.Array, places: list[int], count: int) -> jax.Array:
    """Lanes with the axes that map them in front, in the order of the vmaps, and no others."""
    others = [i for i in range(count) if i not in places]
    x = jnp.transpose(x, (*places, *others, *range(count, x.ndim)))
    return jnp.squeeze(x, tuple(range(len(places), count)))


def _outward(x: jax.Array, places: list[int], count: int) -> jax.Array:
    """The reverse: the axes in their own order, those that did not touch it of length 1."""
    x = jnp.transpose(x, (*map(places.index, sorted(places)), *range(len(places), x.ndim)))
    return jnp.expand_dims(x, tuple(i for i in range(count) if i not in places))
