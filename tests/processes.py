"""Functions that tests run in other processes. Importing this module uses no device."""

import multiprocessing

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd
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
    arrays = {"loss": trace.loss, "weight": state.params["weight"], "mean": mean, "bits": bits}
    np.savez(file, rows=len(data[1]), **jax.device_get(arrays))
