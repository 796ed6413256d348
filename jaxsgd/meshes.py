"""Rows spread over the devices of a mesh: the same run, computed by many.

JAX's own runtime does the work: `jax.make_mesh` on one machine, `jax.distributed.initialize` before
it on several.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsgd import checks
from jaxsgd.gradients import take
from jaxsgd.pairs import Batch, Estimate, PyTree, part, static
from jaxsgd.samplers import Shuffled, for_rows
from jaxsgd.shards import Sharded, counts


@part
class MeshRows:
    """Rows spread over an axis of a mesh: given as data, they spread each batch over its devices.

    The rows are cut into logical `shards`, of which each device holds as many. The solver's
    `Shuffled` sampler becomes `Sharded`: each device draws from its own rows and computes its part
    of the gradient, `sum_i weight[i] grad loss_i`, and the parts are summed; nothing else is
    exchanged. The shards decide which rows a step takes, the devices only who computes them: the
    run does not depend on how many there are, but for rounding. It is the run of
    `Sharded(batch_size, shards)` on one device (but for the keys of a `keyed` loss), in another
    order than that of `Shuffled`.

    `solver.init`, `run`, `run_until`, `chunks`, `fit` and `evaluate` take it as data. In a `sweep`
    over a mesh with an axis "runs" as well, each run is spread over the axis of its rows.

    Args:
      arrays: a pytree of arrays with n rows, on the host or a device; they are copied to their
        places, padded so that all shards are as long.
      mesh: from `jax.make_mesh`.
      axis: the axis of the mesh.
      shards: how many logical shards, a multiple of the axis' devices.
      size: n, needed where several processes each give their own rows: `process_rows` tells which.

    Raises:
      ValueError: no such axis, devices that do not divide the shards, or other rows than expected.

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
    size: int | None = static(default=None)

    def __post_init__(self) -> None:
        if hasattr(self.arrays, "row_shapes"):
            raise TypeError(f"MeshRows's arrays are {self.arrays!r}, expected arrays")
        given = checks.rows(self.arrays)
        size = given if self.size is None else checks.integer(self.size, "MeshRows's size", 1)
        shards = _checked(self.mesh, self.axis, self.shards, size)
        object.__setattr__(self, "mesh", auto(self.mesh))
        object.__setattr__(self, "size", size)
        held, own = counts(size, shards), _own_shards(self.mesh, self.axis, shards)
        if given != held[own].sum():
            raise ValueError(
                f"process {jax.process_index()} gave MeshRows {given} rows, expected "
                f"{held[own].sum()} of size={size}: where each process gives its own rows, size= "
                "is that of all, and jaxsgd.process_rows(size, mesh) tells which"
            )
        place = NamedSharding(self.mesh, P(self.axis))

        def put(x: Any) -> jax.Array:
            local = _padded(x, held[own], self._length)
            if jax.process_count() == 1:
                return jax.device_put(local, place)
            shape = (self.padded, *x.shape[1:])
            return jax.make_array_from_process_local_data(place, np.asarray(local), shape)

        object.__setattr__(self, "arrays", jax.tree.map(put, self.arrays))

    def __repr__(self) -> str:
        rows = jax.tree.map(lambda s: f"{s.dtype}{list(s.shape)}", self.row_shapes)
        return f"MeshRows of {rows} in {self.shards} shards on {dict(self.mesh.shape)}"

    @property
    def row_shapes(self) -> PyTree:
        """The shapes of all rows, without padding."""
        shape = lambda x: jax.ShapeDtypeStruct((self.size, *x.shape[1:]), x.dtype)  # noqa: E731
        return jax.tree.map(shape, self.arrays)

    def each(self, fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
        """`fn(rows, first, *args)` on each device, its rows and the place of the first of them.

        What it returns must be the same on all: sums by `lax.psum(x, axis)`.
        """

        def local(rows: PyTree, args: tuple[PyTree, ...]) -> PyTree:
            return fn(rows, lax.axis_index(self.axis) * checks.rows(rows), *args)

        around = jax.sharding.get_abstract_mesh().manual_axes  # of a sweep over the same mesh
        spread = jax.shard_map(
            local,
            mesh=None if around else self.mesh,
            in_specs=(P(self.axis), P()),
            out_specs=P(),
            axis_names={self.axis},
            check_vma=False,  # or each scan in a user's loss would have to mark its carry
        )
        return spread(self.arrays, args)

    def own(self, batch: Batch, first: jax.Array, held: int) -> Batch:
        """The slots of a `Sharded` batch whose rows lie from a place on, by their places there."""
        count = batch.index.shape[0] * held // self.padded
        slot = first // held * count
        index, weight = (lax.dynamic_slice_in_dim(x, slot, count) for x in batch)
        least, rest = divmod(self.size or 0, self.shards)
        beyond = index - rest * (least + 1)
        shard = jnp.where(beyond < 0, index // (least + 1), rest + beyond // least)
        place = index + shard * (self._length - least) - jnp.minimum(shard, rest) - first
        is_here = (place >= 0) & (place < held)  # else the batch was not drawn from these shards
        return Batch(jnp.where(is_here, place, 0), jnp.where(is_here, weight, jnp.nan))

    def weights(self, row_weight: Any, first: jax.Array, held: int) -> jax.Array:
        """The weights (float[held]) of the rows from a place on: 0 on padding."""
        least, rest = divmod(self.size or 0, self.shards)
        shard, turn = jnp.divmod(first + jnp.arange(held, dtype=jnp.int32), self._length)
        row = shard * least + jnp.minimum(shard, rest) + turn
        is_row = turn < least + (shard < rest)
        weight = jnp.ones(held) if row_weight is None else take(row_weight, is_row * row)
        return jnp.where(is_row, weight, 0)

    @property
    def padded(self) -> int:
        """How many rows the arrays have, padding included."""
        return self._length * self.shards

    @property
    def _length(self) -> int:
        return -(-(self.size or 0) // self.shards)


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
    held = counts(size, _checked(mesh, axis, shards, size))
    own = _own_shards(mesh, axis, shards)
    return slice(int(held[: own.start].sum()), int(held[: own.stop].sum()))


def sampler_for(sampler: Any, data: PyTree, size: int) -> Any:
    """A solver's sampler with its size filled in; on `MeshRows` the one of their shards."""
    if not isinstance(data, MeshRows):
        return for_rows(sampler, size)
    if isinstance(sampler, Shuffled) and not sampler.drop_last:
        sampler = Sharded(sampler.batch_size, data.shards, sampler.size)
    if not isinstance(sampler, Sharded) or sampler.shards != data.shards:
        raise TypeError(
            f"the solver's sampler is {sampler}, expected Shuffled(batch_size) without drop_last "
            f"on MeshRows, which becomes Sharded(batch_size, shards={data.shards})"
        )
    return for_rows(sampler, size)


def update(
    gradient: Any, params: PyTree, data: PyTree, batch: Batch, state: Any
) -> tuple[Estimate, Any]:
    """`gradient.update`; on `MeshRows` the sum of what each device makes of its own rows."""
    if not isinstance(data, MeshRows):
        return gradient.update(params, data, batch, state)

    def part(params: PyTree, rows: PyTree, batch: Batch, state: Any) -> Any:
        estimate, after = gradient.update(params, rows, batch, state)
        return (estimate, jax.tree.map(jnp.subtract, after.carry, state.carry)), after

    (estimate, change), after = _summed(gradient, part, params, data, batch, state)
    if jax.tree.leaves(change):
        after = after._replace(carry=jax.tree.map(jnp.add, state.carry, change))
    return estimate, after


def value(gradient: Any, params: PyTree, data: PyTree, batch: Batch, state: Any) -> jax.Array:
    """`gradient.value`, in the same way."""
    if not isinstance(data, MeshRows):
        return gradient.value(params, data, batch, state)
    part = lambda *args: (gradient.value(*args), args[-1])  # noqa: E731
    return _summed(gradient, part, params, data, batch, state)[0]


def _summed(
    gradient: Any, part: Any, params: PyTree, data: MeshRows, batch: Batch, state: Any
) -> tuple[Any, Any]:
    """The sum over devices of `part(params, rows, batch, state)[0]`, and one of its new states."""
    if not getattr(gradient, "is_linear", False):
        raise TypeError(
            f"the gradient is {gradient!r}, expected one that is a sum over rows on MeshRows, of "
            "which each device has its own: a RowLoss, or a RowsLoss without a carry (a gradient "
            "of your own says so by `is_linear = True`)"
        )
    slots = batch.index.shape[0]
    if slots % data.shards:
        raise ValueError(
            f"a batch has {slots} slots, expected a multiple of the {data.shards} shards of "
            "MeshRows, drawn by solver.sampler_for(rows)"
        )
    is_keyed = getattr(gradient, "is_keyed", False)

    def local(rows: PyTree, first: jax.Array, params: PyTree, batch: Batch, state: Any) -> Any:
        held = checks.rows(rows)
        own = data.own(batch, first, held)
        if not is_keyed:
            total, after = part(params, rows, own, state)
            return lax.psum(total, data.axis), after

        # a key for each shard, or each device would draw the same numbers
        def of_shard(shard: jax.Array, batch: Batch) -> Any:
            key = jax.random.fold_in(state.key, shard)
            return part(params, rows, batch, state._replace(key=key))

        shards = held * data.shards // data.padded
        numbers = first * data.shards // data.padded + jnp.arange(shards)
        batches = jax.tree.map(lambda x: x.reshape(shards, -1), own)
        totals, states = jax.vmap(of_shard)(numbers, batches)
        total = lax.psum(jax.tree.map(lambda x: x.sum(0), totals), data.axis)
        return total, jax.tree.map(lambda x: x[0], states)._replace(key=state.key)

    return data.each(local, params, batch, state)


def auto(mesh: Mesh) -> Mesh:
    """The mesh without types of its axes, which would have to match: here all is mapped by hand."""
    return Mesh(mesh.devices, mesh.axis_names)


def _checked(mesh: Mesh, axis: str, shards: int, size: int) -> int:
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has axes {mesh.axis_names}, expected one named {axis!r}")
    shards, devices = checks.integer(shards, "MeshRows's shards", 1), mesh.shape[axis]
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


def _padded(x: Any, counts: np.ndarray, most: int) -> Any:
    """Shards made as long as the longest, by a row of their own."""
    if counts.min() == most:
        return x
    first = np.cumsum(counts) - counts
    turn = np.minimum(np.arange(most), counts[:, None] - 1)
    return x[(first[:, None] + turn).ravel()]
