"""Rows on the host, in chunks: the same run, bit for bit."""

import threading
from itertools import islice

import chex
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

import jaxsgd
from tests import table
from tests.table import key_data

NAMES = ["full", "keyed", "stateful", "momentum schedule"]


def host(data, **options):
    """Chunks of two batches, so that a turn of five steps has three."""
    options = {"chunk_bytes": 2 * table.BATCH * 16, "prefetch": 2} | options
    return jaxsgd.HostRows(jax.tree.map(np.asarray, data), **options)


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_run_bit_for_bit_wherever_the_rows_are(name):
    solver, carry = table.all_solvers()[name]
    state, data = table.start(solver, carry)
    whole, trace = jaxsgd.run(solver, state, data, 10)
    for rows in (data, host(data)):
        turns = list(islice(jaxsgd.chunks(solver, state, rows, every=5), 2))
        chex.assert_trees_all_equal(key_data(turns[-1][0]), key_data(whole))
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *(trace for _, trace in turns))
        chex.assert_trees_all_equal(joined, trace)
    chex.assert_trees_all_equal(key_data(state), key_data(table.start(solver, carry)[0]))


def sources(data, folder):
    x, y = jax.tree.map(np.asarray, data)
    mapped = np.memmap(folder / "x.f64", np.float64, "w+", shape=x.shape)
    mapped[:] = x
    with h5py.File(folder / "rows.h5", "w") as file:
        file["x"] = x
        file["y"] = y
    stored = h5py.File(folder / "rows.h5")
    zipped = zarr.create_array(zarr.storage.MemoryStore(), data=x, chunks=(3, 3))
    yield "a float64 memory map", mapped, y
    yield "h5py", stored["x"], stored["y"]
    yield "zarr", zipped, y
    yield "a sequence of rows", Sequence(x), y


class Sequence:
    """A length and rows, nothing else; it notes what is read."""

    def __init__(self, rows):
        self.rows, self.reads = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        self.reads.append(item)
        return self.rows[item]


@pytest.mark.parametrize("name", ["shuffled", "blocks"])
def test_any_source_gives_the_same_fit(name, tmp_path):
    params, data = table.problem()
    fit = lambda data: jaxsgd.fit(  # noqa: E731
        table.loss, params, data, key=jax.random.key(0), epochs=3, learning_rate=0.1, validation=data,
        sampler=table.SAMPLERS[name], metrics={"error": table.residual}, progress=False,
    )  # fmt: skip
    expected = fit(data)
    for told, x, y in sources(data, tmp_path):
        found = fit(jaxsgd.HostRows((x, y), chunk_bytes=200))
        chex.assert_trees_all_equal(found.params, expected.params)
        for entry in ("loss", "validation_loss", "validation_error"):
            np.testing.assert_allclose(
                found.history[entry], expected.history[entry], rtol=1e-6, err_msg=told
            )


def test_x64_and_integers_reach_the_device_as_they_do_alone():
    rows = np.arange(20, dtype=np.int64), np.linspace(0, 1, 20)
    loss = lambda w, row: (row[0] * w - row[1]) ** 2  # noqa: E731
    for x64 in (False, True):
        with jax.enable_x64(x64):
            solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), jaxsgd.SGD(1e-3))
            state = solver.init(
                jnp.zeros((), jnp.float64 if x64 else None), rows, key=jax.random.key(0)
            )
            whole, _ = jaxsgd.run(solver, state, rows, 6)
            streamed, _ = next(
                jaxsgd.chunks(solver, state, jaxsgd.HostRows(rows, chunk_bytes=200), 6)
            )
            chex.assert_trees_all_equal(streamed.params, whole.params)
    wide = jaxsgd.HostRows((rows[0] + 2**40, rows[1]))
    with pytest.raises(ValueError, match=r"data\[0\] holds integers beyond 32 bits"):
        next(jaxsgd.chunks(solver, state, wide, 6))


def test_blocks_are_read_in_order_and_few_times():
    rows = Sequence(np.arange(1000.0))
    solver = jaxsgd.Solver(
        lambda w, x: (w - x) ** 2, jaxsgd.Blocks(10, block=50, window=4), jaxsgd.SGD(0.1)
    )
    data = jaxsgd.HostRows(rows, chunk_bytes=1)  # a chunk is a window all the same
    state = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    rows.reads.clear()
    turns = jaxsgd.chunks(solver, state, data, every=100)  # an epoch
    next(turns)
    turns.close()
    sizes = [read.stop - read.start for read in rows.reads]
    epoch = np.cumsum(sizes) <= 1000
    assert sum(sizes[: epoch.sum()]) == 1000  # each row once
    assert min(sizes) >= 50  # by whole blocks, or neighbours together


def test_a_loop_left_early_leaves_no_thread_behind():
    solver, _ = table.all_solvers()["shuffled"]
    state, data = table.start(solver, None)
    for _ in jaxsgd.chunks(solver, state, host(data), every=2):
        assert any("jaxsgd-rows" in thread.name for thread in threading.enumerate())
        break
    del _
    assert not any("jaxsgd-rows" in thread.name for thread in threading.enumerate())


class Failing(Sequence):
    """A block that cannot be read, until it is mended."""

    bad = 13

    def __getitem__(self, item):
        if self.bad is not None and np.isin(self.bad, np.arange(len(self))[item]):
            raise OSError("bad block")
        return super().__getitem__(item)


def test_a_read_error_ends_the_run_with_a_sentence_and_its_state(tmp_path):
    params, data = table.problem()
    x, y = jax.tree.map(np.asarray, data)
    rows = Failing(x)
    fit = lambda rows, **options: jaxsgd.fit(  # noqa: E731
        table.loss, params, jaxsgd.HostRows((rows, y), chunk_bytes=1, prefetch=1), epochs=3,
        key=jax.random.key(0), sampler=jaxsgd.Sequential(4), learning_rate=0.1, progress=False, **options,
    )  # fmt: skip
    told = r"rows 12 to 15 of data\[0\] could not be read: bad block"
    with pytest.raises(OSError, match=told) as caught:
        fit(rows, checkpoint=tmp_path / "run")
    assert int(caught.value.result.state.step) == 3
    assert "fit stood at step 3" in caught.value.__notes__[0]
    rows.bad = None
    chex.assert_trees_all_equal(fit(rows, checkpoint=tmp_path / "run").params, fit(x).params)


def test_a_truncated_file_does_not_end_the_process(tmp_path):
    path = tmp_path / "x.f32"
    mapped = np.memmap(path, np.float32, "w+", shape=(10_000, 3))
    data = jaxsgd.HostRows(mapped, chunk_bytes=1)
    solver = jaxsgd.Solver(lambda w, x: jnp.sum((w - x) ** 2), jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
    turns = jaxsgd.chunks(solver, solver.init(jnp.ones(()), data, key=jax.random.key(0)), data, 1)
    state, _ = next(turns)
    with open(path, "r+b") as file:
        file.truncate(60_000)
    with pytest.raises(OSError, match=r"x.f32 has 60000 bytes, expected at least 120000"):
        list(turns)
    assert jnp.isfinite(state.params)  # the last one handed out is alive
    with pytest.raises(OSError, match="was it truncated"):
        jaxsgd.evaluate(lambda w, x: jnp.sum(x), state.params, data)


def test_refusals():
    solver, _ = table.all_solvers()["shuffled"]
    state, data = table.start(solver, None)
    for act in (
        lambda *args: jaxsgd.run(*args, 5),
        lambda *args: jaxsgd.run_until(*args, jaxsgd.Diverged(), max_steps=5, every=1),
    ):
        with pytest.raises(TypeError, match=r"stay on the host.*use jaxsgd.chunks or jaxsgd.fit"):
            act(solver, state, host(data))
    with pytest.raises(TypeError, match=r"data is an iterator \(generator\).*solver.step_on"):
        jaxsgd.HostRows(row for row in range(3))
    with pytest.raises(TypeError, match=r"data is of type set"):
        jaxsgd.HostRows({1, 2})
    with pytest.raises(TypeError, match=r"data\['x'\] is an array of <U1, expected numbers"):
        jaxsgd.HostRows({"x": np.array(["a"])})
    with pytest.raises(ValueError, match=r"data\[0\] has 3, data\[1\] has 4"):
        jaxsgd.HostRows((np.zeros(3), np.zeros(4)))
    with pytest.raises(ValueError, match="prefetch is 0"):
        jaxsgd.HostRows(np.zeros(3), prefetch=0)
    with pytest.raises(ValueError, match="Blocks's block of data with 20 rows is 21"):
        jaxsgd.Blocks(8, block=21, size=20)
    with pytest.raises(ValueError, match="Blocks's window is 0"):
        jaxsgd.Blocks(8, block=2, window=0)
    with pytest.raises(ValueError, match="every is 0"):
        jaxsgd.chunks(solver, state, data, every=0)
