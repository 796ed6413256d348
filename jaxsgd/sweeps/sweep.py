"""`sweep`: many runs at once, all settings and seeds in one program."""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable
from jaxsgd.core.trees import as_arguments, placed_like, put_on, words_of
from jaxsgd.data.base import Rows
from jaxsgd.data.mesh import auto, find_meshes
from jaxsgd.sweeps import memory
from jaxsgd.sweeps.axes import Axes, Over, as_axes, length, vmap_order
from jaxsgd.sweeps.result import Sweep
from jaxsgd.sweeps.vmapped import RUNS, Plan, allocate, run_all, run_block, runs_spec
from jaxsgd.training.progress import counted


def sweep(
    fn: Callable[..., PyTree],
    *args: PyTree,
    over: Over,
    chunk: int | None = None,
    progress: bool = True,
    mesh: Mesh | None = None,
    gather: bool = True,
) -> Sweep:
    """Run `fn(*args, **point)` at every point of some axes, as one compiled program.

    `value[i, j, ...] = fn(*args, name_0=values_0[i], name_1=values_1[j], ...)`

    One `vmap` per axis, nested, so that what an axis does not affect is computed once. All learning
    rates of one key share its minibatches (common random numbers), which also makes the comparison
    between them more precise.

    Args:
      fn: a pure function that returns a pytree of arrays; it may call `solver.init`, `run`,
        `evaluate`. Define it once: another function object compiles again. Whatever determines
        shapes (steps, batch size, units) belongs in it.
      args: arguments that all runs share: data, initial parameters. Other arrays of the same shapes
        compile nothing. A `Sweep` over axes of the same names and lengths passes to each run its
        own part.
      over: values by the names of `fn`'s arguments: a list of numbers, an array or pytree with a
        leading axis, keys. In a dict each entry is an axis, and the points are their product. In a
        list of dicts each dict is one axis, whose entries vary together.
      chunk: the maximal number of runs at a time. None computes all at once, or, where the traced
        program is estimated to need more than half of the device's memory, as many as fit in it.
      progress: show a progress bar (tqdm) over chunks, and print the estimate where it matters.
      mesh: a mesh with an axis "runs", over whose devices the runs are split; they may be devices
        of several processes, which make the same call. None uses one device.
      gather: give the results of all runs to each of several processes. False leaves them on the
        devices that computed them, as an argument of another sweep, say.

    Returns:
      A `Sweep`. The results of all chunks stay on the device: return only what you need of a run.

    Raises:
      TypeError: an axis without values, arguments that are not arrays, or a call of `fit` in `fn`,
        which is a loop on the host.
      ValueError: axes without a name or of different lengths, or no axis whose length is a multiple
        of the number of the mesh's devices.

    >>> y = jnp.array([1.0, 3.0])
    >>> def train(y, learning_rate, key):
    ...     solver = jaxsgd.Solver(lambda theta, y: (theta - y) ** 2,
    ...                            jaxsgd.Shuffled(1), jaxsgd.SGD(learning_rate))
    ...     state = solver.init(jnp.zeros(()), y, key=key)
    ...     state, _ = jaxsgd.run(solver, state, y, 40)
    ...     return (state.params - 2.0) ** 2
    >>> keys = jax.random.split(jax.random.key(0), 8)
    >>> result = jaxsgd.sweep(train, y, over={"learning_rate": [1e-3, 0.02, 2.0], "key": keys})
    >>> best = result.best(mean_over="key")
    >>> result.shape, round(best.point["learning_rate"], 3)
    ((3, 8), 0.02)
    """
    axes, gather = as_axes(over), validation.flag(gather, "gather")
    for axis in axes:
        # inside the program the values are traced, and no part can check them
        if isinstance(rates := axis.get("learning_rate"), np.ndarray | jax.Array):
            validation.number(rates, "over's 'learning_rate'")
    shape = tuple(map(length, axes))
    for i, arg in enumerate(args):
        _check_argument(i, arg, axes)
    values = tuple(arg.runs if isinstance(arg, Sweep) else arg for arg in args)
    call, arrays = as_arguments(((as_callable(fn, "fn"), values), axes))
    is_compact = [False] * len(jax.tree.leaves(call[0]))
    for arg, value in zip(args, values, strict=True):
        is_compact += [isinstance(arg, Sweep)] * len(jax.tree.leaves(value))
    plan = Plan(tuple(is_compact), vmap_order(axes))
    if mesh is not None:
        plan, call, arrays = _place_on_mesh(plan, call, arrays, args, shape, mesh)
    try:
        runs = _computed(call, arrays, plan, shape, chunk, progress and jax.process_index() == 0)
        if gather and mesh is not None and jax.process_count() > 1:
            everywhere = NamedSharding(mesh, PartitionSpec())
            runs = jax.jit(lambda runs: runs, out_shardings=everywhere)(runs)
        return Sweep(runs, axes)
    except TypeError:
        _check_call(fn, args, axes)  # only now, for it takes as long as the rest of a call
        raise


def _computed(
    call: PyTree,
    arrays: Axes,
    plan: Plan,
    shape: tuple[int, ...],
    chunk: int | None,
    progress: bool,
) -> PyTree:
    """The compact results of all runs, computed at once or block by block."""
    block = _block(call, arrays, plan, shape, chunk, progress)
    if block == shape:
        return run_all(call, arrays, plan=plan)
    # The last block of an axis starts earlier and computes some runs again, so that all blocks have
    # the same shape and one program computes them.
    starts = [[*range(0, n - b, b), n - b] for n, b in zip(shape, block, strict=True)]
    runs = allocate(call, arrays, plan=plan)
    runs = placed_like(runs, () if plan.mesh is not None else call)
    for start in counted([*product(*starts)], progress, "chunk"):
        at = jax.device_put(np.array(start, np.int32))
        runs = jax.block_until_ready(run_block(runs, at, call, arrays, plan=plan, block=block))
    return runs


def _check_call(fn: object, args: Sequence[PyTree], axes: Sequence[dict[str, PyTree]]) -> None:
    """Refuse a function that does not take the arguments, or not by the names of the axes."""
    names = [name for axis in axes for name in axis]
    try:
        signature = inspect.signature(fn, follow_wrapped=False)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"fn {getattr(fn, '__qualname__', repr(fn))} takes {signature}, but is called with "
            f"{len(args)} arguments and, by name, over's {', '.join(names)}: {error}"
        ) from None


def _check_argument(i: int, arg: PyTree, axes: Sequence[dict[str, PyTree]]) -> None:
    """Refuse an argument that cannot be passed to the runs."""
    is_sweep = lambda x: isinstance(x, Sweep)  # noqa: E731
    if is_sweep(arg):
        given, expected = (
            [(list(axis), length(axis)) for axis in each] for each in (arg.over, axes)
        )
        if given != expected:
            raise ValueError(
                f"argument {i} is a Sweep over {_axes_text(given)}, expected one over "
                f"{_axes_text(expected)}"
            )
        for own, axis in zip(arg.over, axes, strict=True):
            for name, values in axis.items():
                if not _are_equal(own[name], values):
                    raise ValueError(
                        f"argument {i} is a Sweep over other values of {name!r}, expected one over "
                        "the same"
                    )
        return
    for leaf in jax.tree.leaves(arg, is_leaf=is_sweep):
        if is_sweep(leaf):
            raise TypeError(
                f"argument {i} holds a Sweep among other things, expected the Sweep as a separate "
                "argument, of which each run receives its part"
            )
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            hint = "; rows that stay on the host cannot be read by a compiled run"
            raise TypeError(
                f"argument {i} of sweep holds {leaf!r}, expected arrays"
                + hint * isinstance(leaf, Rows)
            )


def _are_equal(one: PyTree, other: PyTree) -> bool:
    """Whether the values of two axes are the same in a run, where they are known."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    for x, y in zip(*(jax.tree.leaves(words_of(tree)) for tree in (one, other)), strict=True):
        if x is y or isinstance(x, Tracer) or isinstance(y, Tracer):
            continue
        x, y = jax.device_get((x, y))
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        if not np.array_equal(x.astype(dtype), y.astype(dtype), equal_nan=dtype.kind in "fc"):
            return False
    return True


def _axes_text(axes: Sequence[tuple[list[str], int]]) -> str:
    return " x ".join(f"{size} of {' and '.join(names)}" for names, size in axes)


def _place_on_mesh(
    plan: Plan, call: PyTree, axes: Axes, args: PyTree, shape: tuple[int, ...], mesh: Mesh
) -> tuple[Plan, PyTree, Axes]:
    """The plan for a mesh, and the arguments placed on it."""
    mesh = _checked_mesh(mesh, args)
    devices = mesh.shape[RUNS]
    fitting = [i for i in plan.order if shape[i] % devices == 0]
    if not fitting:
        raise ValueError(
            f"the axes of the sweep have lengths {shape}, expected one that is a multiple of the "
            f"mesh's {devices} devices for {RUNS!r}"
        )
    plan = plan._replace(mesh=mesh, split_axis=fitting[0])
    leaves, structure = jax.tree.flatten(call)

    def put(x: jax.Array, is_compact: bool) -> jax.Array:
        spec = runs_spec(plan, is_compact and x.shape[plan.split_axis] > 1)
        if not is_compact and not isinstance(x, Tracer):
            place = x.sharding
            if isinstance(place, NamedSharding) and place.mesh == mesh:
                spec = place.spec  # the rows of `MeshRows` stay in place
        return put_on(NamedSharding(mesh, spec), x)

    call = jax.tree.unflatten(structure, map(put, leaves, plan.is_compact))
    specs = [PartitionSpec(RUNS) if i == fitting[0] else PartitionSpec() for i in range(len(axes))]
    axes = tuple(
        jax.tree.map(partial(put_on, NamedSharding(mesh, spec)), axis)
        for axis, spec in zip(axes, specs, strict=True)
    )
    return plan, call, axes


def _checked_mesh(mesh: Mesh, args: PyTree) -> Mesh:
    """A mesh that runs can be split over, and that has the devices of the arguments' rows."""
    if RUNS not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, expected one named {RUNS!r}")
    mesh = auto(mesh)
    for other, axis in find_meshes(args):
        if other != mesh:
            raise ValueError(
                f"the rows lie on a mesh of {dict(other.shape)}, but the sweep's is of "
                f"{dict(mesh.shape)}, expected one mesh with the axes {RUNS!r} and {axis!r}"
            )
    return mesh


def _block(
    call: PyTree, axes: Axes, plan: Plan, shape: tuple[int, ...], chunk: int | None, progress: bool
) -> tuple[int, ...]:
    """The number of values of each axis that are computed at a time."""
    devices = 1 if plan.mesh is None else plan.mesh.shape[RUNS]
    if chunk is None:
        chunk = max(_runs_that_fit(call, axes, plan, math.prod(shape), progress), devices)
    name = f"chunk on {devices} devices" if devices > 1 else "chunk"
    chunk = validation.integer(chunk, name, devices)
    block = list(shape)
    for i in plan.order:
        if math.prod(block) > chunk:
            # Split the axis into as few parts as possible, of equal size up to one unit: one value
            # of the axis, or one for each device.
            unit = devices if i == plan.split_axis else 1
            units, most = shape[i] // unit, chunk * shape[i] // math.prod(block) // unit
            parts = -(-units // max(most, 1))
            block[i] = unit * -(-units // parts)
    return tuple(block)


def _runs_that_fit(call: PyTree, axes: Axes, plan: Plan, runs: int, progress: bool) -> int:
    """How many of the runs can be computed at once in half of the device's memory."""
    program = run_all.trace(call, axes, plan=plan).jaxpr.jaxpr
    need, half = memory.peak_bytes(program), memory.available_bytes(_device(call)) / 2
    if need <= half:
        return runs
    results = memory.array_bytes(v.aval for v in program.outvars)
    fitting = max(1, int(runs * max(half - results, 0) / need))
    if progress:
        print(
            f"sweep: {runs:,} runs at once may take {need / 1e9:.3g} GB, more than half of the "
            f"device's {2 * half / 1e9:.3g} GB (the results alone take {results / 1e9:.3g} GB); "
            f"computing at most {fitting:,} at a time",
            file=sys.stderr,
        )
    return fitting


def _device(tree: PyTree) -> Any:
    """The device that the arrays were placed on explicitly, or JAX's default device."""
    for x in jax.tree.leaves(tree):
        if not isinstance(x, Tracer) and x.committed:
            return min(x.sharding.addressable_devices, key=lambda device: device.id)
    return jax.config.jax_default_device or jax.local_devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
