"""Many runs at once: one program for all settings and seeds."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxsgd import checks, memory
from jaxsgd.lanes import RUNS, Plan, all_lanes, fill, room
from jaxsgd.meshes import auto
from jaxsgd.pairs import PyTree, as_arguments, as_callable, part
from jaxsgd.points import as_axes, entry, is_number, length, order
from jaxsgd.progress import counted


class Ranked(NamedTuple):
    """A setting of a sweep, and how well it did."""

    point: dict[str, Any]  # its values by name, without those that were averaged over
    score: float  # the mean over the runs of this setting; infinite where one diverged
    spread: float  # their standard deviation (of a sample); 0 of one run
    diverged: int  # how many of them ended in no finite number
    place: tuple[int, ...]  # its index on each axis that was not averaged over


@part
class Sweep:
    """What `sweep` returns: the results of all runs, labelled by their axes.

    A pytree, and an argument of another `sweep` over axes of the same lengths, which hands each run
    its own part: that is how states go on. What an axis does not touch (the sampler's state, where
    rates differ) is kept once, and lanes that shared their rows go on sharing them.

    Attributes:
      lanes: the results; each array has one leading axis for each axis of the sweep, of length 1
        where it does not depend on it.
      over: for each axis, its values by name.

    >>> result = jaxsgd.sweep(lambda x, rate: x * rate, jnp.array(2.0), over={"rate": [0.5, 1.0]})
    >>> result.shape, result.value.tolist()
    ((2,), [1.0, 2.0])
    """

    lanes: PyTree
    over: tuple[dict[str, PyTree], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return tuple(map(length, self.over))

    @property
    def value(self) -> PyTree:
        """The results, each array of shape (*shape, ...)."""
        shape = self.shape
        return jax.tree.map(
            lambda x: jnp.broadcast_to(x, (*shape, *x.shape[len(shape) :])), self.lanes
        )

    def scores(self, by: str | Callable[[PyTree], Any] | None = None) -> np.ndarray:
        """One number a run, the smaller the better; infinite where it is not finite.

        Args:
          by: what to score: a key or field of the results, a function of them, or None where they
            are one array. Of a curve, an array with one more axis, its last entry counts.

        Returns:
          float64 of the sweep's shape.
        """
        value = np.asarray(_chosen(self.value, by), np.float64)
        shape = self.shape
        if value.ndim == len(shape) + 1:
            value = value[..., -1]
        if value.shape != shape:
            raise ValueError(
                f"the score by {by!r} is of shape {value.shape}, expected {shape}: one number a "
                "run, or a curve of them"
            )
        return np.where(np.isfinite(value), value, np.inf)

    def ranked(
        self, by: str | Callable[[PyTree], Any] | None = None, *, mean_over: str | None = None
    ) -> list[Ranked]:
        """The settings, best first; a setting one of whose runs diverged comes after all others.

        Args:
          by: as in `scores`.
          mean_over: the name of an axis whose runs are repetitions of one setting: "key".
        """
        scores, axis = self.scores(by), self._axis(mean_over)
        names = [i for i in range(len(self.shape)) if i != axis]
        table = np.moveaxis(scores, axis, -1) if axis is not None else scores[..., None]
        # numbers on the host: to read one of a device's takes a tenth of a millisecond
        over = [
            {k: np.asarray(v) if is_number(v) else v for k, v in axis.items()} for axis in self.over
        ]
        ranks = []
        for index in np.ndindex(table.shape[:-1]):
            runs = table[index]
            diverged = int(np.sum(np.isinf(runs)))
            spread = float(np.std(runs, ddof=1)) if len(runs) > 1 and not diverged else 0.0
            spread = math.nan if diverged else spread
            point: dict[str, Any] = {}
            for i, place in zip(names, index, strict=True):
                point |= {name: entry(v, place) for name, v in over[i].items()}
            ranks.append(Ranked(point, float(runs.mean()), spread, diverged, index))
        return sorted(ranks, key=lambda entry: (entry.diverged > 0, entry.diverged, entry.score))

    def best(
        self, by: str | Callable[[PyTree], Any] | None = None, *, mean_over: str | None = None
    ) -> Ranked:
        """The setting with the least score, or mean of scores over an axis.

        Raises:
          ValueError: in every setting a run diverged.

        >>> result = jaxsgd.sweep(lambda rate, key: (rate - 0.3) ** 2, over={
        ...     "rate": [0.1, 0.2, 0.5], "key": jax.random.split(jax.random.key(0), 4)})
        >>> round(result.best(mean_over="key").point["rate"], 3)
        0.2
        """
        best = self.ranked(by, mean_over=mean_over)[0]
        if best.diverged:
            raise ValueError("in every setting of the sweep a run diverged: there is no best one")
        return best

    def to_frame(self) -> Any:
        """A pandas table with a row a run: its values, and the results that are one number a run.

        A value that is no number, such as a key, is told by its place on its axis. `diverged` is
        true where any float of the run's results is not finite.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame needs pandas: pip install 'jaxsgd[cli]'") from error
        shape, columns = self.shape, {}
        places = np.indices(shape).reshape(len(shape), -1)
        for place, axis in zip(places, self.over, strict=True):
            for name, values in axis.items():
                columns[name] = np.asarray(values)[place] if is_number(values) else place
        diverged = np.zeros(shape, bool)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.value):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                continue
            flat = np.asarray(leaf).reshape(*shape, -1)
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                diverged |= ~np.isfinite(flat.astype(np.float32)).all(axis=-1)
            if leaf.shape == shape:
                name = _name(path) or "value"
                columns[f"result.{name}" if name in columns else name] = flat.ravel()
        return pandas.DataFrame(columns | {"diverged": diverged.ravel()})

    def _axis(self, name: str | None) -> int | None:
        if name is None:
            return None
        for i, axis in enumerate(self.over):
            if name in axis:
                return i
        known = ", ".join(name for axis in self.over for name in axis)
        raise ValueError(f"mean_over is {name!r}, expected a name that the sweep is over: {known}")


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
        nothing. A `Sweep` over axes of the same lengths gives each run its own part.
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
        if isinstance(arg, Sweep) and arg.shape != shape:
            raise ValueError(f"argument {i} is a Sweep of shape {arg.shape}, expected {shape}")
    own = [isinstance(arg, Sweep) for arg in args]
    values = tuple(arg.lanes if isinstance(arg, Sweep) else arg for arg in args)
    call, axes = as_arguments(((as_callable(fn, "fn"), values), points))
    of_leaves = (
        jax.tree.map(lambda x: False, call[0]),
        [
            jax.tree.map(lambda x, is_own=is_own: is_own, value)
            for value, is_own in zip(values, own, strict=True)
        ],
    )
    plan = Plan(tuple(jax.tree.leaves(of_leaves)), order(points))
    if mesh is not None:
        plan, call, axes = _on_mesh(plan, call, axes, shape, mesh)
    block = _block(call, axes, plan, shape, chunk, progress)
    if block == shape:
        return Sweep(all_lanes(call, axes, plan=plan), points)
    starts = [[*range(0, n - b, b), n - b] for n, b in zip(shape, block, strict=True)]
    lanes = room(call, axes, plan=plan)
    for start in counted([*product(*starts)], progress, "chunk"):
        at = jax.device_put(np.array(start, np.int32))
        lanes = fill(lanes, at, call, axes, plan=plan, block=block)
    return Sweep(lanes, points)


def _on_mesh(
    plan: Plan, call: PyTree, axes: Any, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> tuple[Plan, PyTree, Any]:
    """The plan and the arguments, placed on a mesh with an axis for the runs."""
    if RUNS not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, expected one named {RUNS!r}")
    mesh = auto(mesh)
    devices = mesh.shape[RUNS]
    fitting = [i for i in plan.order if shape[i] % devices == 0]
    if not fitting:
        raise ValueError(
            f"the axes of the sweep have lengths {shape}, expected one that is a multiple of the "
            f"mesh's {devices} devices for {RUNS!r}"
        )
    spread = fitting[0]
    leaves, structure = jax.tree.flatten(call)

    def spec(x: jax.Array, is_own: bool) -> PartitionSpec:
        if is_own:
            return PartitionSpec(*[None] * spread, RUNS) if x.shape[spread] > 1 else PartitionSpec()
        here = isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
        return x.sharding.spec if here else PartitionSpec()  # type: ignore[attr-defined]

    specs = tuple(map(spec, leaves, plan.own))
    leaves = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(leaves, specs, strict=True)]
    axes = tuple(
        jax.device_put(axis, NamedSharding(mesh, PartitionSpec(*[RUNS] * (i == spread))))
        for i, axis in enumerate(axes)
    )
    plan = plan._replace(mesh=mesh, spread=spread, specs=specs)
    return plan, jax.tree.unflatten(structure, leaves), axes


def _block(
    call: PyTree, axes: Any, plan: Plan, shape: tuple[int, ...], chunk: int | None, progress: bool
) -> tuple[int, ...]:
    """How many points of each axis to take at a time."""
    runs, devices = math.prod(shape), 1 if plan.mesh is None else plan.mesh.shape[RUNS]
    if chunk is None:
        device = jax.devices()[0] if plan.mesh is None else plan.mesh.devices.flat[0]
        program = all_lanes.trace(call, axes, plan=plan).jaxpr
        need, half = memory.peak(program), memory.available(device) / 2
        chunk = runs
        if need > half:
            results = memory.size(program.out_avals)
            chunk = max(1, int(runs * max(half - results, 0) / need))
            if progress:
                print(
                    f"sweep: {runs:,} runs at once may take {need / 1e9:.3g} GB of a device, more "
                    f"than half of its {2 * half / 1e9:.3g} GB (their results alone "
                    f"{results / 1e9:.3g} GB): at most {chunk:,} at a time",
                    file=sys.stderr,
                )
    chunk = checks.integer(chunk, "chunk", 1)
    block = list(shape)
    for i in plan.order:
        if math.prod(block) > chunk:
            unit = devices if i == plan.spread else 1  # which each device takes as many of
            units, most = shape[i] // unit, chunk * shape[i] // math.prod(block) // unit
            parts = -(-units // max(most, 1))
            block[i] = unit * -(-units // parts)
    return tuple(block)


def _chosen(value: PyTree, by: Any) -> Any:
    if callable(by):
        return by(value)
    if by is None:
        if isinstance(value, jax.Array):
            return value
        known = ", ".join(_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(value))
        raise ValueError(f"the results hold several arrays, expected by= one of them: {known}")
    if isinstance(value, Mapping) and by in value:
        return value[by]
    if hasattr(value, by):
        return getattr(value, by)
    raise ValueError(f"by is {by!r}, which the results of type {type(value).__name__} do not hold")


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
