"""Many runs at once: one program for all settings and seeds."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable
from jaxsgd.core.trees import as_arguments, placed_like
from jaxsgd.data.base import Rows
from jaxsgd.data.mesh import auto, find_meshes
from jaxsgd.sweeps import memory
from jaxsgd.sweeps.axes import as_axes, length, order
from jaxsgd.sweeps.result import Sweep
from jaxsgd.sweeps.vmapped import RUNS, Plan, all_lanes, fill, of_runs, room
from jaxsgd.training.progress import counted


def sweep(
    fn: Callable[..., PyTree],
    *args: PyTree,
    over: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    chunk: int | None = None,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Sweep:
    """Run `fn(*args, **point)` at every point of some axes, all at once: one compiled program.

    One `vmap` an axis, nested, so that what an axis does not touch is computed once: all rates of a
    key share its minibatches (common random numbers, which make the comparison sharper too).

    Args:
      fn: a pure function to any pytree of arrays: `solver.init`, `run`, `evaluate`. Told apart by
        its identity, so define it once; sizes (steps, batch size, units) belong into it.
      args: what all runs are given: data, initial parameters. Passed, so another array compiles
        nothing. A `Sweep` over axes of the same names and lengths gives each run its own part.
      over: by the names of `fn`'s arguments, their values: a list of numbers, an array or pytree
        with a leading axis, keys. Each entry of a dict is an axis (the product of all); in a list
        of dicts, each dict is one axis, whose entries go together.
      chunk: at most so many runs at a time. None takes all, or as many as half of the device's
        memory holds by an estimate of the traced program, which is then said.
      progress: show a bar (tqdm) where there are several chunks, and say the estimate.
      mesh: None, or a mesh with an axis "runs": the runs are spread over its devices.

    Returns:
      A `Sweep`. Results of all chunks stay on the device: return what you need of each run.

    Raises:
      TypeError: an axis without values, or a `fit` in `fn`, which is a host loop.
      ValueError: axes without a name or of different lengths, or lengths that the mesh's devices do
        not divide.

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
    points = as_axes(over)
    shape = tuple(map(length, points))
    for i, arg in enumerate(args):
        _check_argument(i, arg, points)
    values = tuple(arg.lanes if isinstance(arg, Sweep) else arg for arg in args)
    call, axes = as_arguments(((as_callable(fn, "fn"), values), points))
    own = [False] * len(jax.tree.leaves(call[0]))
    for arg, value in zip(args, values, strict=True):
        own += [isinstance(arg, Sweep)] * len(jax.tree.leaves(value))
    plan = Plan(tuple(own), order(points))
    if mesh is not None:
        plan, call, axes = _on_mesh(plan, call, axes, args, shape, mesh)
    block = _block(call, axes, plan, shape, chunk, progress)
    if block == shape:
        return Sweep(all_lanes(call, axes, plan=plan), points)
    starts = [[*range(0, n - b, b), n - b] for n, b in zip(shape, block, strict=True)]
    lanes = placed_like(room(call, axes, plan=plan), () if mesh is not None else call)
    for start in counted([*product(*starts)], progress, "chunk"):
        at = jax.device_put(np.array(start, np.int32))
        lanes = jax.block_until_ready(fill(lanes, at, call, axes, plan=plan, block=block))
    return Sweep(lanes, points)


def _check_argument(i: int, arg: Any, points: Sequence[dict[str, PyTree]]) -> None:
    """Refuse what no run can be given."""
    is_sweep = lambda x: isinstance(x, Sweep)  # noqa: E731
    if is_sweep(arg):
        told, expected = (
            [(list(axis), length(axis)) for axis in axes] for axes in (arg.over, points)
        )
        if told != expected:
            raise ValueError(
                f"argument {i} is a Sweep over {_axes_told(told)}, expected one over "
                f"{_axes_told(expected)}"
            )
        return
    for leaf in jax.tree.leaves(arg, is_leaf=is_sweep):
        if is_sweep(leaf):
            raise TypeError(
                f"argument {i} holds a Sweep among other things, expected it as an argument of its "
                "own: then each run is given its part"
            )
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float):
            hint = "; rows that stay on the host cannot be read by a compiled run"
            raise TypeError(
                f"argument {i} of sweep holds {leaf!r}, expected arrays"
                + hint * isinstance(leaf, Rows)
            )


def _axes_told(axes: Any) -> str:
    return " x ".join(f"{size} of {' and '.join(names)}" for names, size in axes)


def _on_mesh(
    plan: Plan, call: PyTree, axes: Any, args: Any, shape: tuple[int, ...], mesh: Mesh
) -> tuple[Plan, PyTree, Any]:
    """The plan and the arguments, placed on a mesh with an axis for the runs."""
    if RUNS not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, expected one named {RUNS!r}")
    mesh, devices = auto(mesh), mesh.shape[RUNS]
    if any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "sweep's mesh has devices of other processes, expected this one's alone: give each "
            "process its part of the points, and a mesh of its jax.local_devices()"
        )
    for other, axis in find_meshes(args):
        if other != mesh:
            raise ValueError(
                f"the rows lie on a mesh of {dict(other.shape)}, but the sweep's is of "
                f"{dict(mesh.shape)}, expected one mesh with the axes {RUNS!r} and {axis!r}"
            )
    fitting = [i for i in plan.order if shape[i] % devices == 0]
    if not fitting:
        raise ValueError(
            f"the axes of the sweep have lengths {shape}, expected one that is a multiple of the "
            f"mesh's {devices} devices for {RUNS!r}"
        )
    plan = plan._replace(mesh=mesh, spread=fitting[0])
    leaves, structure = jax.tree.flatten(call)

    def put(x: Any, is_own: bool) -> jax.Array:
        spec = of_runs(plan, is_own and x.shape[plan.spread] > 1)
        if not is_own and not isinstance(x, jax.core.Tracer):
            here = isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
            spec = x.sharding.spec if here else spec  # rows of `MeshRows` stay where they are
        return jax.device_put(x, NamedSharding(mesh, spec))

    call = jax.tree.unflatten(structure, map(put, leaves, plan.own))
    its = [PartitionSpec(RUNS) if i == plan.spread else PartitionSpec() for i in range(len(axes))]
    axes = tuple(
        jax.device_put(axis, NamedSharding(mesh, spec))
        for axis, spec in zip(axes, its, strict=True)
    )
    return plan, call, axes


def _block(
    call: PyTree, axes: Any, plan: Plan, shape: tuple[int, ...], chunk: int | None, progress: bool
) -> tuple[int, ...]:
    """How many points of each axis to take at a time."""
    runs, devices = math.prod(shape), 1 if plan.mesh is None else plan.mesh.shape[RUNS]
    if chunk is None:
        program = all_lanes.trace(call, axes, plan=plan).jaxpr.jaxpr
        need, half = memory.peak(program), memory.available(_device(call)) / 2
        chunk = runs
        if need > half:
            results = memory.size(v.aval for v in program.outvars)
            chunk = max(1, int(runs * max(half - results, 0) / need))
            if progress:
                print(
                    f"sweep: {runs:,} runs at once may take {need / 1e9:.3g} GB of a device, more "
                    f"than half of its {2 * half / 1e9:.3g} GB (their results alone "
                    f"{results / 1e9:.3g} GB): at most {chunk:,} at a time",
                    file=sys.stderr,
                )
        chunk = max(chunk, devices)
    chunk = validation.integer(
        chunk, f"chunk on {devices} devices" if devices > 1 else "chunk", devices
    )
    block = list(shape)
    for i in plan.order:
        if math.prod(block) > chunk:
            unit = devices if i == plan.spread else 1  # which each device takes as many of
            units, most = shape[i] // unit, chunk * shape[i] // math.prod(block) // unit
            parts = -(-units // max(most, 1))
            block[i] = unit * -(-units // parts)
    return tuple(block)


def _device(tree: PyTree) -> Any:
    """The device that arrays were placed on by hand, or the one that JAX takes."""
    for x in jax.tree.leaves(tree):
        if not isinstance(x, jax.core.Tracer) and x.committed:
            return min(x.sharding.addressable_devices, key=lambda device: device.id)
    return jax.config.jax_default_device or jax.local_devices()[0]  # type: ignore[attr-defined]
