"""Many devices: the run of one, whatever their number; nothing is exchanged but the gradient."""

import re
import socket

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.data.arrays import as_rows
from jaxsgd.sweeps import sweep
from tests import processes, table

N, RAGGED = 48, 43  # 8 shards of 6 rows, or of 5 and 6: padding, and a walk that is slow to compile


def mesh(*sizes, names=("data",)):
    return jax.make_mesh(sizes, names, devices=jax.devices()[: int(np.prod(sizes))])


@pytest.fixture(scope="module")
def problem():
    return table.problem(n=N)


@pytest.fixture(scope="module")
def ragged():
    return table.problem(n=RAGGED)


def noisy(params, row, key):
    return table.loss(params, row) * (1 + 0.1 * jax.random.normal(key))


def averaged(params, row, model_state):
    return table.loss(params, row), 0.9 * model_state + 0.1 * row[1]


LOSSES = {
    "row": (table.loss, None),
    "keyed": (jaxsgd.RowLoss(noisy, keyed=True), None),
    "stateful": (jaxsgd.RowLoss(averaged, has_model_state=True), jnp.zeros(())),
    "ragged": (jaxsgd.RowsLoss(lambda params, rows: table.residual(params, rows) ** 2), None),
}


def trained(loss, data, params, model_state=None, sampler=None, rule=None):
    sampler = jaxsgd.Shuffled(16) if sampler is None else sampler
    rule = jaxsgd.Momentum(0.05, 0.5) if rule is None else rule
    weight = np.linspace(0, 1, as_rows(data).size, dtype=np.float32)
    solver = jaxsgd.Solver(loss, sampler, rule, jaxsgd.L2(0.01), weight)
    state = solver.init(params, data, key=jax.random.key(0), model_state=model_state)
    return jaxsgd.run(solver, state, data, 12)


PER_SHARD = {
    "with replacement": lambda n: jaxsgd.WithReplacement(16),
    "poisson": lambda n: jaxsgd.Poisson(0.2, capacity=24),
    "importance": lambda n: jaxsgd.ImportanceSampled(np.arange(1.0, n + 1), 16),
    "stratified": lambda n: jaxsgd.Stratified(np.arange(n) % 3, 16),
    "dynamic": lambda n: jaxsgd.DynamicBatch(jaxsgd.Shuffled(24), 16),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in PER_SHARD if name != "importance"]


@pytest.mark.parametrize("name", ["importance", *SLOW])
def test_each_sampler_draws_shard_by_shard(name, problem, ragged):
    for params, data in (problem, ragged):
        n = len(data[1])
        sampler = jaxsgd.PerShard(PER_SHARD[name](n), shards=8)
        one = trained(table.loss, data, params, sampler=sampler)
        rows = jaxsgd.MeshRows(data, mesh(4))
        four = trained(table.loss, rows, params, sampler=sampler)
        chex.assert_trees_all_close(one[0].params, four[0].params, rtol=2e-5, atol=1e-7)
        assert np.isfinite(four[1].loss).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_number_of_devices_changes_nothing(name, problem, ragged):
    params, data = ragged if name == "ragged" else problem
    loss, model_state = LOSSES[name]
    counts = (1, 2, 4, 8) if name == "row" else (1, 4)
    runs = [trained(loss, jaxsgd.MeshRows(data, mesh(d)), params, model_state) for d in counts]
    if name != "keyed":  # a key for each row of a batch, not for each shard
        runs.append(trained(loss, data, params, model_state, jaxsgd.Sharded(16)))
    for state, trace in runs[1:]:
        chex.assert_trees_all_close(state.params, runs[0][0].params, rtol=2e-5)
        chex.assert_trees_all_close(trace.loss, runs[0][1].loss, rtol=2e-5)
        assert int(state.sampler.step) == 12
        if model_state is not None:
            chex.assert_trees_all_close(state.model_state, runs[0][0].model_state, rtol=2e-5)
    assert len(runs[len(counts) - 1][0].params["bias"].sharding.device_set) == counts[-1]


COLLECTIVE = re.compile(
    r"= (\S.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|"
    r"collective-broadcast)(?:-start)?\("
)


def collectives(compiled):
    """(kind, numbers moved) of each."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := COLLECTIVE.search(line):
            sizes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found.append(
                (match[2], sum(int(np.prod([int(n) for n in s.split(",") if n])) for s in sizes))
            )
    return found


def train(data, params, learning_rate, key):
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(16), jaxsgd.SGD(learning_rate))
    state = solver.init(params, data, key=key)
    state, trace = jaxsgd.run(solver, state, data, 6)
    return state.params, trace.loss


OVER = {"learning_rate": [0.01, 0.02, 0.04, 0.05], "key": jax.random.split(jax.random.key(2), 3)}


def test_a_step_exchanges_the_gradient_and_nothing_else(problem):
    params, data = problem
    rows = jaxsgd.MeshRows(data, mesh(4))
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(16), jaxsgd.Momentum(0.05, 0.5))
    state = solver.init(params, rows, key=jax.random.key(0))
    run = jax.jit(lambda solver, state, rows: jaxsgd.run(solver, state, rows, 6))
    moved = collectives(run.lower(solver, state, rows).compile())
    assert {kind for kind, _ in moved} == {"all-reduce"}
    assert sum(size for _, size in moved) == table.D + 1 + 1  # weight, bias, loss
    # the witness sees a gather
    place = jax.sharding.NamedSharding(mesh(4), jax.sharding.PartitionSpec())
    gather = jax.jit(lambda x: x, out_shardings=place).lower(rows.arrays[0]).compile()
    assert ("all-gather", 48 * table.D) in collectives(gather)


def test_runs_are_spread_over_a_mesh_and_each_over_another_axis(problem, monkeypatch):
    params, data = problem
    alone = jaxsgd.sweep(train, data, params, over=OVER)
    spread = jaxsgd.sweep(train, data, params, over=OVER, mesh=mesh(2, names=("runs",)))
    chex.assert_trees_all_close(spread.value, alone.value, rtol=2e-5)
    assert len(jax.tree.leaves(spread.runs)[0].sharding.device_set) == 2
    with_key_axis = jaxsgd.sweep(
        train, data, params, over=OVER, mesh=mesh(3, names=("runs",)), chunk=7
    )
    chex.assert_trees_all_close(with_key_axis.value, alone.value, rtol=2e-5)

    compiled = []
    real = sweep.run_all

    def run_all(*args, **options):
        compiled.append(real.trace(*args, **options).lower().compile())
        return real(*args, **options)

    run_all.trace = real.trace
    monkeypatch.setattr(sweep, "run_all", run_all)
    one = jaxsgd.sweep(train, jaxsgd.MeshRows(data, mesh(1)), params, over=OVER)
    both = mesh(2, 4, names=("runs", "data"))
    data_of = lambda mesh: jaxsgd.MeshRows(data, mesh)  # noqa: E731
    rows = data_of(both)
    split = jaxsgd.sweep(train, rows, params, over=OVER, mesh=both)
    chex.assert_trees_all_close(split.value, one.value, rtol=2e-5)
    moved = collectives(compiled[-1])
    assert {kind for kind, _ in moved} == {"all-reduce"}
    assert sum(size for _, size in moved) == (table.D + 2) * 12 / 2  # of the runs on a device

    with pytest.raises(
        ValueError, match=r"lengths \(4, 3\), expected one that is a multiple .* 8 dev"
    ):
        jaxsgd.sweep(train, data, params, over=OVER, mesh=mesh(8, names=("runs",)))
    with pytest.raises(ValueError, match="expected one named 'runs'"):
        jaxsgd.sweep(train, data, params, over=OVER, mesh=mesh(8))


def test_means_and_fits_leave_out_the_padding(problem, ragged):
    params, data = ragged
    rows = jaxsgd.MeshRows(data, mesh(4))
    weight = np.arange(RAGGED, dtype=np.float32)
    for options in ({}, {"sample_weight": weight}, {"batch_size": 3}):
        plain = jaxsgd.evaluate(table.loss, params, data, **options)
        spread = jaxsgd.evaluate(table.loss, params, rows, **options)
        np.testing.assert_allclose(spread, plain, rtol=1e-6)
    params, data = problem
    rows = jaxsgd.MeshRows(data, mesh(4))
    options = {"key": jax.random.key(0), "epochs": 2, "learning_rate": 0.05, "progress": False}
    fits = [
        jaxsgd.fit(
            table.loss, params, data, sampler=jaxsgd.Sharded(16), validation=data, **options
        ),
        jaxsgd.fit(table.loss, params, rows, batch_size=16, validation=rows, **options),
    ]
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(fits[0].history[name], fits[1].history[name], rtol=1e-5)


def test_what_does_not_fit_a_mesh_is_refused_in_a_sentence(problem, ragged):
    params, data = problem
    uneven = jaxsgd.MeshRows(ragged[1], mesh(2))
    rows = jaxsgd.MeshRows(data, mesh(2))
    batch = jaxsgd.BatchLoss(table.weighted)
    stateful = jaxsgd.RowsLoss(table.counted, has_model_state=True)
    for call, error, message in [
        (lambda: jaxsgd.MeshRows(data, mesh(3)), ValueError, "shards are 8, expected a multiple of the 3"),
        (lambda: jaxsgd.MeshRows(data, mesh(2), "rows"), ValueError, "expected one named 'rows'"),
        (lambda: jaxsgd.MeshRows(data, mesh(2), size=50), ValueError, "gave MeshRows 48 rows, expected 50 of size=50"),
        (lambda: jaxsgd.MeshRows(jnp.ones(7), mesh(2)), ValueError, "7 rows, expected at least one a shard"),
        (lambda: trained(table.loss, rows, params, sampler=jaxsgd.WithReplacement(16)), TypeError,
         r"sampler is WithReplacement.* expected Shuffled\(batch_size\) without drop_last on MeshRows"),
        (lambda: trained(table.loss, rows, params, sampler=jaxsgd.Sharded(16, 4)), TypeError, "shards=8"),
        (lambda: trained(table.loss, uneven, params, sampler=jaxsgd.Shuffled(8)), ValueError,
         "would find a shard empty at some step, expected a batch size of at least 16"),
        (lambda: trained(table.loss, rows, params, sampler=jaxsgd.Shuffled(20)), ValueError,
         "batch_size is 20, expected a multiple of its 8 shards"),
        (lambda: jaxsgd.Sharded(64, size=48), ValueError, "of data with 48 rows is 64, expected 1 to 48"),
        (lambda: trained(batch, rows, params), TypeError, "expected one that is a sum over rows"),
        (lambda: trained(stateful, rows, params, jnp.zeros(())), TypeError, "expected one that is a sum over rows"),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()

    @jaxsgd.part
    class Clipped(jaxsgd.Gradient):  # of its batch: no sum
        def init(self, *args):
            return inner.init(*args)

        def update(self, *args):
            return inner.update(*args)

        def value(self, *args):
            return inner.value(*args)

    inner = jaxsgd.MinibatchGradient(table.loss)
    with pytest.raises(
        TypeError, match=r"gradient is .*Clipped.* expected one that is a sum over rows"
    ):
        trained(Clipped(), rows, params)
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(16), jaxsgd.SGD(0.1))
    state = solver.init(params, rows, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match="a batch has length 12, expected a multiple of the 8 shards"
    ):
        solver.step_at(state, rows, jaxsgd.Batch(jnp.arange(12), jnp.full(12, 1 / 12)))
    backwards = jaxsgd.Batch(
        jnp.arange(16)[::-1], jnp.full(16, 1 / 16)
    )  # not drawn from the shards
    assert not jnp.isfinite(solver.step_at(state, rows, backwards)[1].loss)


@pytest.mark.slow
def test_two_processes_train_on_their_own_halves(tmp_path, ragged):
    params, data = ragged
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [
        processes.PROCESSES.Process(
            target=processes.one_of_two, args=(number, address, tmp_path / f"{number}.npz")
        )
        for number in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(100)
        assert process.exitcode == 0
    rows = jaxsgd.MeshRows(data, mesh(4))
    state, trace = processes.train_on(rows, params)
    mean = jaxsgd.evaluate(table.loss, state.params, rows)
    same = [jaxsgd.MeshRows(data, mesh(devices), reproducible=True) for devices in (1, 8)]
    bits = [processes.train_on(rows, params)[0].params["weight"] for rows in same]
    swept, _, halved = processes.searched(params, data, None)
    on_mesh = processes.searched(params, data, mesh(4, names=("runs",)))[2]
    assert [rung.settings.tolist() for rung in on_mesh.rungs] == [
        rung.settings.tolist() for rung in halved.rungs
    ]
    np.testing.assert_allclose(on_mesh.best.score, halved.best.score, rtol=1e-5)
    for number in range(2):
        told = np.load(tmp_path / f"{number}.npz")
        np.testing.assert_allclose(told["loss"], trace.loss, rtol=2e-5)
        np.testing.assert_allclose(told["weight"], state.params["weight"], rtol=2e-5)
        np.testing.assert_allclose(told["mean"], mean, rtol=2e-5)
        for name in ("swept", "again"):
            np.testing.assert_allclose(told[name], swept.value, rtol=1e-5)
        assert told["best"] == halved.best.place[0]
        np.testing.assert_allclose(told["scores"], halved.rungs[0].scores, rtol=1e-5)
        for weight in bits:  # one device, or eight, of one process; four of two
            np.testing.assert_array_equal(told["bits"], weight)
        assert int(told["rows"]) == (23, 20)[number]  # of four shards each


@pytest.mark.accelerator
def test_an_accelerator_follows_the_cpu(problem):
    params, data = problem
    for name in ("row", "keyed"):
        loss, model_state = LOSSES[name]
        here = trained(loss, data, params, model_state)
        with jax.default_device(jax.devices("cpu")[0]):
            there = trained(loss, *jax.device_get((data, params)), model_state)
        chex.assert_trees_all_close(here[0].params, jax.device_get(there[0].params), rtol=1e-3)
