"""What tests run in processes of their own: nothing here touches a device when imported."""

import multiprocessing

import jax
import jax.numpy as jnp

import jaxsgd
from tests import table

PROCESSES = multiprocessing.get_context("forkserver")  # one that has imported all that is slow
PROCESSES.set_forkserver_preload(["jaxsgd", "orbax.checkpoint", "tests.table"])


def fit(folder, epochs=6, every=2, loss=table.loss, rule="momentum schedule", rate=0.05, **options):
    params, data = table.problem(n=40)  # five steps an epoch
    options = {"batch_size": 8, "key": jax.random.key(0), "validation": data} | options
    options = {"stop": jaxsgd.EarlyStopping(5)} | options
    return jaxsgd.fit(
        loss, params, data, epochs=epochs, rule=table.RULES[rule](rate), progress=False,
        checkpoint=folder, every=None if folder is None else every, **options,
    )  # fmt: skip


def in_a_process(folder, cache, epochs, begun):
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    fit(folder, epochs, log=lambda record: begun.set())


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
