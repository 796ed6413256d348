"""Rows on the host, in chunks: the same run, bit for bit."""

import threading
import time
import tracemalloc
from contextlib import closing
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
    solver, model_state = table.all_solvers()[name]
    state, data = table.start(solver, model_state)
    whole, trace = jaxsgd.run(solver, state, data, 10)
    for rows in (data, host(data)):
        turns = list(islice(jaxsgd.chunks(solver, state, rows, steps=5), 2))
        chex.assert_trees_all_equal(key_data(turns[-1][0]), key_data(whole))
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *(trace for _, trace in turns))
        chex.assert_trees_all_equal(joined, trace)
    chex.assert_trees_all_equal(key_data(state), key_data(table.start(solver, model_state)[0]))


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
        sampler=table.SAMPLERS[name](), metrics={"error": table.residual}, progress=False,
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
    with pytest.raises(OSError, match=r"data\[0\] holds integers beyond 32 bits"):
        next(jaxsgd.chunks(solver, state, wide, 6))


@pytest.mark.parametrize("every", [100, 7])  # an epoch, and turns that cut the windows
def test_blocks_are_read_in_order_and_once(every):
    rows = Sequence(np.arange(1000.0))
    solver = jaxsgd.Solver(
        lambda w, x: (w - x) ** 2, jaxsgd.Blocks(10, block=50, window=4), jaxsgd.SGD(0.1)
    )
    data = jaxsgd.HostRows(rows, chunk_bytes=1)  # a chunk is a window all the same
    state = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    rows.reads.clear()
    turns = jaxsgd.chunks(solver, state, data, every)
    list(islice(turns, 100 // every))
    turns.close()
    sizes = np.array([read.stop - read.start for read in rows.reads])
    assert sizes[np.cumsum(sizes) <= 1000].sum() == 1000  # an epoch reads each row once
    assert sizes.min() >= 50  # by whole blocks, or neighbours together


def test_the_windows_of_blocks_have_orders_of_their_own():
    sampler = jaxsgd.Blocks(16, block=16, window=1, size=64)
    batches = jax.jit(jax.vmap(sampler.batch, (None, 0)))(jax.random.key(0), jnp.arange(24))
    orders = {tuple(index % 16) for index in np.asarray(batches.index)}
    assert len(orders) == 24
    epochs = np.asarray(batches.index)[:, 0].reshape(6, 4) // 16
    assert len({tuple(order) for order in epochs}) > 3


def test_rows_handed_out_stay_until_the_one_after_the_next_is_asked_for():
    rows = np.arange(1000.0, dtype=np.float32)
    sampler = jaxsgd.Sequential(10, size=1000)
    data, state = jaxsgd.HostRows(rows, prefetch=2), sampler.init(jax.random.key(0))
    state = jaxsgd.State(None, None, None, state, None)
    with closing(data._stream(sampler, state, 2, None)) as chunks:
        _, before = next(chunks)
        for i in range(1, 20):
            _, now = next(chunks)
            time.sleep(0.01)  # so that the thread has filled what it may
            expected = rows.reshape(-1, 2, 10)
            np.testing.assert_array_equal(before, expected[i - 1])
            np.testing.assert_array_equal(now, expected[i])
            before = now


def slow(params, rows):
    """A loss whose computation takes some milliseconds."""
    start = jax.lax.stop_gradient(jnp.full((200, 200), params["bias"]))
    small = jax.lax.fori_loop(0, 40, lambda _, x: jnp.tanh(x @ x), start)
    return table.residual(params, rows) ** 2 + small[0, 0]


def test_no_rows_are_overwritten_while_they_are_computed_with():
    data = table.problem(n=400)[1]
    solver = jaxsgd.Solver(jaxsgd.RowsLoss(slow), jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
    state = solver.init(table.problem()[0], data, key=jax.random.key(0))
    whole, _ = jaxsgd.run(solver, state, data, 40)
    streamed, _ = next(jaxsgd.chunks(solver, state, host(data, chunk_bytes=1, prefetch=1), 40))
    chex.assert_trees_all_equal(streamed.params, whole.params)


@jaxsgd.part
class OwnGradient(jaxsgd.Gradient):
    """A gradient written to the protocol, which reads its rows by `read`."""

    read: object = jaxsgd.static()

    def init(self, params, data, key, model_state=None):
        return jaxsgd.GradientState()

    def update(self, params, data, batch, state):
        value = lambda params: self.value(params, data, batch, state)  # noqa: E731
        return jaxsgd.Estimate(*jax.value_and_grad(value)(params)), state

    def value(self, params, data, batch, state):
        rows = self.read(data, batch.index)
        return jnp.sum(batch.weight * table.residual(params, rows) ** 2)


def test_a_gradient_of_ones_own_reads_its_rows_by_take():
    solver = lambda read: jaxsgd.Solver(OwnGradient(read), jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))  # noqa: E731
    naive = lambda data, index: jax.tree.map(lambda x: x[index], data)  # noqa: E731
    state, data = table.start(solver(jaxsgd.take), None)
    whole, _ = jaxsgd.run(solver(jaxsgd.take), state, data, 5)
    streamed, _ = next(jaxsgd.chunks(solver(jaxsgd.take), state, host(data), 5))
    chex.assert_trees_all_equal(streamed.params, whole.params)
    with pytest.raises(TypeError, match=r"reads its rows by jaxsgd.take\(data, batch.index\)"):
        next(jaxsgd.chunks(solver(naive), state, host(data), 5))


def test_the_best_parameters_come_with_their_model_state():
    params, data = table.problem()
    result = jaxsgd.fit(
        jaxsgd.RowsLoss(table.counted, has_model_state=True), params, data, key=jax.random.key(0), epochs=8,
        learning_rate=0.3, batch_size=4, model_state=jnp.float32(0), validation=data, progress=False,
        metrics={"loss": lambda p, row, model_state: model_state}, stop=jaxsgd.EarlyStopping(3),
        restore_best=True,
    )  # fmt: skip
    best = np.argmin(result.history["validation_loss"])
    assert best < len(result.history["epoch"]) - 1
    np.testing.assert_allclose(
        result.model_state, result.history["validation_loss"][best], rtol=1e-6
    )
    assert result.model_state != result.state.model_state


def test_a_part_of_an_array_is_read_without_copying_the_whole():
    wide = np.zeros((100_000, 20), np.float32)
    for source in (wide[:, :4], np.asfortranarray(wide[:, :4]), wide[:, :4].astype(">f4")):
        data = jaxsgd.HostRows(source)
        out = np.empty((10, 4), np.float32)
        tracemalloc.start()
        data.read(np.arange(0, 100_000, 10_000), out)
        assert tracemalloc.get_traced_memory()[1] < 200_000
        tracemalloc.stop()


def test_a_loop_left_early_leaves_no_thread_behind():
    solver, _ = table.all_solvers()["shuffled"]
    state, data = table.start(solver, None)
    for _ in jaxsgd.chunks(solver, state, host(data), steps=2):
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
    told = r"rows 12 to 15 of data\[0\] could not be read: OSError: bad block"
    bad, rows.bad = rows.bad, None
    with pytest.raises(OSError, match=told) as caught:  # in the second epoch of five steps
        fit(rows, checkpoint=tmp_path / "run", log=lambda record: setattr(rows, "bad", bad))
    assert int(caught.value.result.state.step) == 8
    assert "fit failed after step 8" in caught.value.__notes__[0]
    rows.bad = None
    chex.assert_trees_all_equal(fit(rows, checkpoint=tmp_path / "run").params, fit(x).params)


def test_a_truncated_file_does_not_end_the_process(tmp_path):
    path = tmp_path / "x.f32"
    mapped = np.memmap(path, np.float32, "w+", shape=(10_000, 3))
    data = jaxsgd.HostRows(np.asarray(mapped[5000:]), chunk_bytes=1)  # a part of it
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
        lambda *args: jaxsgd.run_until(*args, jaxsgd.Diverged(), max_steps=5, check_every=1),
    ):
        with pytest.raises(TypeError, match=r"stay on the host.*use jaxsgd.chunks or jaxsgd.fit"):
            act(solver, state, host(data))
    with pytest.raises(TypeError, match=r"data is an iterator \(generator\).*solver.step_on"):
        jaxsgd.HostRows(row for row in range(3))
    for source in ({1, 2}, h5py):
        with pytest.raises(TypeError, match=r"data is of type (set|module), expected an array"):
            jaxsgd.HostRows(source)
    with pytest.raises(TypeError, match=r"data\[0\] is a HostRows.*give HostRows all arrays"):
        solver.init(table.problem()[0], (host(data), data), key=jax.random.key(0))
    with pytest.raises(TypeError, match="Objective's data stay on the host"):
        jaxsgd.Objective(table.loss, host(data))
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
    with pytest.raises(ValueError, match="steps is 0"):
        jaxsgd.chunks(solver, state, data, steps=0)
