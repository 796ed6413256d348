"""Functions that tests run in other processes. Importing this module uses no device."""

import multiprocessing
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd.core.trees import put_on
from tests import table

PROCESSES = multiprocessing.get_context("forkserver")  # its server imports the slow modules once
PROCESSES.set_forkserver_preload(["jaxsgd", "orbax.checkpoint", "tests.table"])


def fit(
    folder,
    epochs=6,
    checkpoint_every=2,
    loss=table.loss,
    rule="momentum schedule",
    rate=0.05,
    kind="plain",
    **options,
):
    params, data = table.problem(n=40)  # five steps an epoch
    options = {"key": jax.random.key(0), "validation": data} | options
    if kind == "stratified":
        options["sampler"] = jaxsgd.Stratified(np.arange(40) % 2, 8)
    else:
        options.setdefault("batch_size", 8)
    if kind == "saga":
        loss = jaxsgd.SAGA(loss)
    if kind == "streamed":
        data = jaxsgd.HostRows(jax.tree.map(np.asarray, data), chunk_bytes=1000)
    options = {"stop": jaxsgd.EarlyStopping(5), "restore_best": True} | options
    made_rule = table.RULES[rule](rate)
    made_rule = jaxsgd.EMA(made_rule, 0.9) if kind == "averaged" else made_rule
    return jaxsgd.fit(
        loss, params, data, epochs=epochs, rule=made_rule, progress=False,
        checkpoint=folder, checkpoint_every=None if folder is None else checkpoint_every, **options,
    )  # fmt: skip


def in_a_process(folder, cache, epochs, begun, kind="plain"):
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    fit(folder, epochs, log=lambda record: begun.set(), kind=kind)


def small(value):
    return {"params": jnp.full(300, value)}


def on_two_devices(folder, ended):
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = jax.make_mesh((2,), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    like = jax.device_put(small(0.0), split)
    again = jaxsgd.restore(folder, like)["params"]
    assert again.sharding == split
    assert again.tolist() == [1.0] * 300
    jaxsgd.save(folder, {"params": again + 1})
    ended.set()


def train_on(rows, params):
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(16), jaxsgd.Momentum(0.05, 0.5))
    state = solver.init(params, rows, key=jax.random.key(0))
    return jaxsgd.run(solver, state, rows, 12)


RATES = np.geomspace(1e-3, 0.1, 6)


def over():
    return {"rate": RATES, "key": jax.random.split(jax.random.key(0), 4)}


def searched(params, data, mesh):
    """A sweep, gathered and not, and a halving whose settings the devices do not divide."""

    def begin(params, data, rate):
        solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(rate))
        return solver, solver.init(params, data, key=jax.random.key(0))

    def go_on(state, params, data, steps, rate):
        solver, state = state
        state, trace = jaxsgd.run(solver, state, data, steps)
        return (solver, state), trace.loss[-1]

    def final(params, data, rate, key):
        solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(rate))
        return jaxsgd.run(solver, solver.init(params, data, key=key), data, 10)[1].loss

    swept, apart = (
        jaxsgd.sweep(final, params, data, over=over(), mesh=mesh, gather=gather)
        for gather in (True, False)
    )
    rates = {"rate": RATES}
    return swept, apart, jaxsgd.halving(begin, go_on, params, data, over=rates, steps=20, mesh=mesh)


def one_of_two(number, address, file):
    """One of two processes with two devices each: it holds its own rows alone."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    mesh = jax.make_mesh((4,), ("data",))
    params, data = table.problem(n=43)
    own = jaxsgd.process_rows(43, mesh)
    data = jax.tree.map(lambda x: np.asarray(x)[own], data)
    rows = jaxsgd.MeshRows(data, mesh, size=43)
    state, trace = train_on(rows, params)
    train_on(rows, state.params)  # from parameters that lie on both processes
    same = jaxsgd.MeshRows(data, mesh, size=43, reproducible=True)
    bits = train_on(same, params)[0].params["weight"]
    mean = jaxsgd.evaluate(table.loss, state.params, rows)
    runs = jax.make_mesh((4,), ("runs",))
    swept, apart, halved = searched(params, table.problem(n=43)[1], runs)
    assert not jax.tree.leaves(apart.runs)[0].is_fully_addressable
    arrays = {"loss": trace.loss, "weight": state.params["weight"], "mean": mean, "bits": bits}
    arrays |= {"swept": swept.value, "best": halved.best.place[0], "scores": halved.rungs[0].scores}
    arrays["again"] = jaxsgd.sweep(lambda a, rate, key: a, apart, over=over(), mesh=runs).value
    np.savez(file, rows=len(data[1]), **jax.device_get(arrays))


def fit_on_four(number, count, address, folder, epochs, file, begun=None):
    """One of `count` processes that fit on four devices; the first one writes the result."""
    jax.config.update("jax_num_cpu_devices", 4 // count)
    if count > 1:
        jax.distributed.initialize(
            address, num_processes=count, process_id=number, heartbeat_timeout_seconds=10
        )
    mesh = jax.make_mesh((4,), ("data",))
    params, data = table.problem(n=40)
    own = jaxsgd.process_rows(40, mesh)
    data = jax.tree.map(lambda x: np.asarray(x)[own], data)
    rows = jaxsgd.MeshRows(data, mesh, size=40, reproducible=True)
    result = jaxsgd.fit(
        table.loss, params, rows, key=jax.random.key(0), epochs=epochs, batch_size=8,
        rule=jaxsgd.EMA(jaxsgd.Adam(0.05), 0.9), validation=rows, stop=jaxsgd.EarlyStopping(50),
        restore_best=True, progress=False, checkpoint=folder,
        checkpoint_every=None if folder is None else 2,
        log=None if begun is None else lambda record: begun.set(),
    )  # fmt: skip
    if result.reason == jaxsgd.Reason.PREEMPTED:
        file.with_name(f"step{number}").write_text(str(result.state.step))
        sys.exit(os.EX_TEMPFAIL)
    if number == 0:
        losses = result.history["validation_loss"]
        np.savez(file, **jax.device_get(result.params), losses=losses)


def all_of(count, address, *args, fn=fit_on_four):
    """Start a function in as many processes."""
    started = [
        PROCESSES.Process(target=fn, args=(number, count, address, *args))
        for number in range(count)
    ]
    for process in started:
        process.start()
    return started


def split_over_four(number, count, address, folder, before, after):
    """One of `count` processes that restore a state which is split over devices, and save it."""
    jax.config.update("jax_num_cpu_devices", 4 // count)
    if count > 1:
        jax.distributed.initialize(address, num_processes=count, process_id=number)
    mesh = jax.make_mesh((4,), ("data",))
    everywhere, split = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in ((), ("data",))
    )

    def state(value):
        params = np.arange(40, dtype=np.float32) + value
        key = put_on(everywhere, jax.random.key(value))
        return {"params": put_on(split, params), "key": key, "history": np.arange(value)}

    if before is not None:
        again = jaxsgd.restore(folder, state(0))
        assert again["params"].sharding == split
        for shard in again["params"].addressable_shards:
            assert np.array_equal(shard.data, np.arange(40)[shard.index] + before)
        data = np.asarray(jax.random.key_data(again["key"]).addressable_data(0))
        assert np.array_equal(data, jax.random.key_data(jax.random.key(before)))
        assert np.array_equal(again["history"], np.arange(before))
    jaxsgd.save(folder, state(after))
