"""Rows spread over the devices of a mesh: the same run, computed by many devices.

JAX's own runtime does the work: `jax.make_mesh` on one machine, `jax.distributed.initialize` before
it on several.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Num, PyTree, Shaped

from jaxsgd.core import validation
from jaxsgd.core.as_written import as_written
from jaxsgd.core.part import part, set_fields, static
from jaxsgd.core.records import Batch
from jaxsgd.core.trees import gather, placed_like
from jaxsgd.data.arrays import ArrayRows, as_rows
from jaxsgd.data.base import OfPart, Reduction, Rows
from jaxsgd.data.tree_sum import sum_of_parts, sum_over_devices
from jaxsgd.samplers.base import Sampler
from jaxsgd.samplers.epochs import Shuffled
from jaxsgd.samplers.per_shard import PerShard
from jaxsgd.samplers.sharded import Sharded, counts

T = TypeVar("T")


@part
class MeshRows(Rows):
    """Rows spread over the devices of a mesh's axis, which then share the work of each batch.

    The rows are cut into logical `shards`, the same number on each device. The solver's `Shuffled`
    sampler becomes `Sharded`: each device draws from its own rows and computes its part of the
    gradient, `sum_i weight[i] grad loss_i`, and the parts are summed; nothing else is exchanged.
    Only the shards decide which rows a step takes, so the run does not depend on the number of
    devices, up to rounding (with `reproducible`, bit for bit). It equals a run with
    `Sharded(batch_size, shards)` on one device (except for the keys of a `keyed` loss); the order
    of the rows differs from `Shuffled`'s.

    `solver.init`, `run`, `run_until`, `chunks`, `fit` and `evaluate` take it as data. In a `sweep`
    over a mesh with an axis "runs" as well, each run is spread over the axis of its rows.

    Args:
      arrays: a pytree of arrays with n rows, on the host or a device; they are copied to their
        devices, padded so that all shards have the same length.
      mesh: from `jax.make_mesh`.
      axis: the name of the axis that the rows are spread over.
      shards: the number of logical shards, a multiple of the number of devices on the axis.
      size: n, the number of rows of all processes, needed where each gives its own: see
        `process_rows`.
      reproducible: give the same bits on any number of devices (of one type) and processes.
        `shards` must be a power of two. The parts of the shards are computed one after another by
        the same code, and added in a balanced binary tree. See `docs/devices.md` for what it costs.

    Raises:
      ValueError: no such axis, devices that do not divide the shards, `reproducible` with shards
        that are not a power of two, or other rows than expected.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> rows = jaxsgd.MeshRows((jnp.arange(100.0), 3 * jnp.arange(100.0)), mesh)
    >>> loss = lambda w, row: (row[0] * w - row[1]) ** 2
    >>> solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(16), jaxsgd.SGD(1e-4))
    >>> state = solver.init(jnp.zeros(()), rows, key=jax.random.key(0))
    >>> state, _ = jaxsgd.run(solver, state, rows, 20)
    >>> round(float(state.params), 3)
    3.0
    """

    arrays: PyTree
    mesh: Mesh = static()
    axis: str = static(default="data")
    shards: int = static(default=8)
    size: int = static(default=None)
    reproducible: bool = static(default=False, kw_only=True, converter=validation.flag)

    def __post_init__(self) -> None:
        if isinstance(self.arrays, Rows):
            raise TypeError(f"MeshRows's arrays are {self.arrays!r}, expected arrays")
        rows = as_rows(self.arrays)
        rows.check_values()
        given = rows.size
        size = given if self.size is None else validation.integer(self.size, "MeshRows's size", 1)
        shards = _checked(self.mesh, self.axis, self.shards, size)
        if self.reproducible and shards & (shards - 1):
            raise ValueError(
                f"MeshRows's shards are {shards}, expected a power of two with reproducible=True, "
                "which adds them in a binary tree"
            )
        set_fields(self, mesh=auto(self.mesh), size=size)
        held, own = counts(size, shards), _own_shards(self.mesh, self.axis, shards)
        if given != held[own].sum():
            raise ValueError(
                f"process {jax.process_index()} gave MeshRows {given} rows, expected "
                f"{held[own].sum()} of size={size}: where each process gives its own rows, size= "
                "is that of all, and jaxsgd.process_rows(size, mesh) says which rows these are"
            )
        place = NamedSharding(self.mesh, P(self.axis))

        def put(x: np.ndarray | Array) -> Array:
            local = _padded(x, held[own], self._length)
            if jax.process_count() == 1:
                return jax.device_put(local, place)
            shape = (self.padded, *x.shape[1:])
            return jax.make_array_from_process_local_data(place, np.asarray(local), shape)

        set_fields(self, arrays=jax.tree.map(put, self.arrays))

    def __repr__(self) -> str:
        rows = jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", self.shapes)
        return f"MeshRows of {rows} in {self.shards} shards on {dict(self.mesh.shape)}"

    @property
    def shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The shape and dtype of each array, all rows included, without padding."""
        shape = lambda x: jax.ShapeDtypeStruct((self.size, *x.shape[1:]), x.dtype)  # noqa: E731
        return jax.tree.map(shape, self.arrays)

    def take(self, index: Int[Array, " B"]) -> PyTree:
        """Refused: no device holds all rows."""
        raise TypeError(
            f"{self!r} cannot be read by index, because no device holds all rows; expected arrays"
        )

    def some(self, count: int) -> PyTree:
        """At most `count` of all rows, at a fixed stride, copied to every device."""
        count = max(1, min(count, self.size))
        index = jnp.asarray(np.linspace(0, self.size - 1, count).astype(np.int32))
        read = lambda arrays, index: gather(arrays, self._place(index))  # noqa: E731
        everywhere = NamedSharding(self.mesh, P())
        return jax.jit(read, out_shardings=everywhere)(self.arrays, index)

    def sampler(self, sampler: Sampler) -> Sampler:
        """`Sharded` over these shards instead of `Shuffled`; others draw by `PerShard`."""
        if isinstance(sampler, Shuffled) and not sampler.drop_last:
            sampler = Sharded(sampler.batch_size, self.shards, sampler.size)
        if not isinstance(sampler, Sharded | PerShard) or sampler.shards != self.shards:
            raise TypeError(
                f"the solver's sampler is {sampler}, expected Shuffled(batch_size) without "
                f"drop_last on MeshRows, which becomes Sharded(batch_size, shards={self.shards}), "
                f"or PerShard(sampler, shards={self.shards})"
            )
        return sampler.for_size(self.size)

    def placed(self, tree: PyTree) -> PyTree:
        """The tree on all devices of the mesh."""
        return placed_like(tree, self.arrays)

    def as_arguments(self) -> "MeshRows":
        """The rows, which are on their devices already."""
        return self

    def traced(self, fn: Callable[..., T]) -> Callable[..., T]:
        """`fn`; with `reproducible` its arithmetic is compiled alike for any number of devices."""
        return as_written(fn) if self.reproducible else fn

    def reduction(self, batch: Batch, is_keyed: bool) -> Reduction:
        """Each device computes the part of its own rows, and the parts are summed over the mesh.

        With `is_keyed` a part is a shard, because devices with the same key would draw the same
        numbers, and their number should not change what is drawn.
        """
        length = batch.index.shape[0]
        if length % self.shards:
            raise ValueError(
                f"a batch has length {length}, expected a multiple of the {self.shards} shards of "
                "MeshRows, drawn by solver.sampler_for(rows)"
            )

        def reduce(of_part: OfPart, params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
            def on_device(
                rows: PyTree, first: Int[Array, ""], batch: Batch, params: PyTree, state: PyTree
            ) -> tuple[PyTree, PyTree]:
                held = ArrayRows(rows).size
                local = self.local_batch(batch, first, held)
                if not is_keyed and not self.reproducible:
                    total, after = of_part(None, rows, local, params, state)
                    return self.added(total), after
                shards = held * self.shards // self.padded
                numbers = first * self.shards // self.padded + jnp.arange(shards)
                batches = jax.tree.map(lambda x: x.reshape(shards, -1), local)
                of_shard = lambda i, batch: of_part(i, rows, batch, params, state)  # noqa: E731
                if self.reproducible:
                    at = lambda i: jax.tree.map(lambda x: x[i], (numbers, batches))  # noqa: E731
                    total, after = sum_of_parts(lambda i, _: of_shard(*at(i)), shards, state)
                    return self.added(total), after
                totals, states = jax.vmap(of_shard)(numbers, batches)
                total = self.added(jax.tree.map(lambda x: x.sum(0), totals))
                return total, jax.tree.map(lambda x: x[0], states)

            return self.each(on_device, batch, params, state)

        return reduce

    def added(self, tree: PyTree) -> PyTree:
        """The sum of a tree over the devices of the mesh, within `each`."""
        if self.reproducible:
            return sum_over_devices(tree, self.axis, self.mesh.shape[self.axis])
        return lax.psum(tree, self.axis)

    def total(
        self,
        add: Callable[..., PyTree],
        sample_weight: Shaped[Array, " n"] | None,
        batch_size: int,
        *args: PyTree,
    ) -> PyTree:
        """Each device adds its own rows; the sums are added over the mesh."""

        def own(
            rows: PyTree,
            first: Int[Array, ""],
            sample_weight: Shaped[Array, " n"] | None,
            *args: PyTree,
        ) -> PyTree:
            weight = self.weights(sample_weight, first, ArrayRows(rows).size)
            if not self.reproducible:
                return self.added(add(rows, weight, None, *args))

            def of_shard(i: Int[Array, ""], _: None) -> tuple[PyTree, None]:
                cut = lambda x: lax.dynamic_slice_in_dim(x, i * self._length, self._length)  # noqa: E731
                return add(*jax.tree.map(cut, (rows, weight)), None, *args), None

            return self.added(sum_of_parts(of_shard, len(weight) // self._length, None)[0])

        return self.each(own, sample_weight, *args)

    def each(self, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """`fn(rows, first, *args)` on each device, with its rows and the position of the first.

        Its result must be the same on all devices, such as a sum by `added`.
        """

        def local(rows: PyTree, args: tuple[PyTree, ...]) -> PyTree:
            return fn(rows, lax.axis_index(self.axis) * ArrayRows(rows).size, *args)

        # In a sweep over a mesh of two axes this one is nested in the sweep's `shard_map`, which
        # maps the runs alone. Mapped over both axes at once and unchecked, a `psum` would be
        # transposed to a `psum`, and derivatives through it be wrong.
        around = jax.sharding.get_abstract_mesh().manual_axes
        spread = jax.shard_map(
            local,
            mesh=None if around else self.mesh,
            in_specs=(P(self.axis), P()),
            out_specs=P(),
            axis_names={self.axis},
            check_vma=False,  # otherwise each scan in a user's loss would have to mark its carry
        )
        return spread(self.arrays, args)

    def local_batch(self, batch: Batch, first: Int[Array, ""], held: int) -> Batch:
        """The part of a `Sharded` batch whose rows a device holds, indexed within those rows.

        `first` is the number of the first row it holds, padding included, `held` how many it holds.
        """
        count = batch.index.shape[0] * held // self.padded
        begin = first // held * count
        index, weight = (lax.dynamic_slice_in_dim(x, begin, count) for x in batch)
        place = self._place(index) - first
        is_here = (place >= 0) & (place < held)  # otherwise it was not drawn from these shards
        return Batch(jnp.where(is_here, place, 0), jnp.where(is_here, weight, jnp.nan))

    def _place(self, index: Int[Array, " B"]) -> Int[Array, " B"]:
        """Where the rows at `index` are in the arrays, padding included."""
        least, rest = divmod(self.size, self.shards)
        beyond = index - rest * (least + 1)
        shard = jnp.where(beyond < 0, index // (least + 1), rest + beyond // least)
        return index + shard * (self._length - least) - jnp.minimum(shard, rest)

    def weights(
        self, sample_weight: Shaped[Array, " n"] | None, first: Int[Array, ""], held: int
    ) -> Num[Array, " held"]:
        """The weights (float[held]) of the rows from a place on: 0 on padding."""
        least, rest = divmod(self.size, self.shards)
        shard, place = jnp.divmod(first + jnp.arange(held, dtype=jnp.int32), self._length)
        row = shard * least + jnp.minimum(shard, rest) + place
        is_row = place < least + (shard < rest)
        weight = jnp.ones(held) if sample_weight is None else gather(sample_weight, is_row * row)
        return jnp.where(is_row, weight, 0)

    @property
    def padded(self) -> int:
        """How many rows the arrays have, padding included."""
        return self._length * self.shards

    @property
    def _length(self) -> int:
        return -(-self.size // self.shards)


def process_rows(size: int, mesh: Mesh, *, axis: str = "data", shards: int = 8) -> slice:
    """The rows that this process hands to `MeshRows`: those of its devices' shards.

    Args:
      size: n, the number of rows of all processes.
      mesh, axis, shards: as in `MeshRows`.

    Raises:
      ValueError: devices of this process that are not neighbours on the axis.

    >>> jaxsgd.process_rows(1001, jax.make_mesh((1,), ("data",)))  # one process has them all
    slice(0, 1001, None)
    """
    size = validation.integer(size, "size", 1)
    held = counts(size, _checked(mesh, axis, shards, size))
    own = _own_shards(mesh, axis, shards)
    return slice(int(held[: own.start].sum()), int(held[: own.stop].sum()))


def auto(mesh: Mesh) -> Mesh:
    """The mesh without types of its axes, which would have to match: here all is mapped by hand."""
    return Mesh(mesh.devices, mesh.axis_names)


def _checked(mesh: Mesh, axis: str, shards: int, size: int) -> int:
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh is {mesh!r}, expected one such as jax.make_mesh((2,), ({axis!r},))")
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, expected one named {axis!r}")
    shards, devices = validation.integer(shards, "MeshRows's shards", 1), mesh.shape[axis]
    if shards % devices:
        raise ValueError(
            f"MeshRows's shards are {shards}, expected a multiple of the {devices} devices on the "
            f"mesh's axis {axis!r}"
        )
    if size < shards:
        raise ValueError(f"data have {size} rows, expected at least one a shard, {shards}")
    return shards


def _own_shards(mesh: Mesh, axis: str, shards: int) -> slice:
    """The shards of this process' devices."""
    devices = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
    here = [
        i
        for i, others in enumerate(devices.reshape(len(devices), -1))
        if any(device.process_index == jax.process_index() for device in others)
    ]
    if here != [*range(here[0], here[-1] + 1)]:
        raise ValueError(
            f"process {jax.process_index()} has devices {here} of the mesh's axis {axis!r}, "
            "expected neighbours; order the mesh's devices by process"
        )
    each = shards // len(devices)
    return slice(here[0] * each, (here[-1] + 1) * each)


def _padded(x: np.ndarray | Array, counts: np.ndarray, most: int) -> np.ndarray | Array:
    """Shards padded to the length of the longest, each by repeating its last row."""
    if counts.min() == most:
        return x
    first = np.cumsum(counts) - counts
    place = np.minimum(np.arange(most), counts[:, None] - 1)
    return x[(first[:, None] + place).ravel()]


def find_meshes(tree: PyTree) -> list[tuple[Mesh, str]]:
    """The mesh and the axis of each `MeshRows` in a tree."""
    is_rows = lambda x: isinstance(x, MeshRows)  # noqa: E731
    found = jax.tree.leaves(tree, is_leaf=is_rows)
    return [(rows.mesh, rows.axis) for rows in found if is_rows(rows)]
