"""Batches, and a sweep, on two virtual devices of the same cores, compared with one device.

    python -m benchmarks.devices [--rounds 9]

Contenders take turns. Times are medians over rounds, ratios are per round. Prints Markdown.
On a machine with two accelerators or more it takes two of those.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 2)  # before anything touches a device

import jaxsgd  # noqa: E402
from benchmarks.ours import grid_point, problem  # noqa: E402
from benchmarks.tasks import Training  # noqa: E402
from benchmarks.turns import report  # noqa: E402
from benchmarks.works import WORKS  # noqa: E402

TASKS = {
    "softmax regression": Training("softmax", 40_960, 784, 4_096, 5, 0.01, classes=10),
    "perceptron, 128 hidden": Training("mlp", 40_960, 784, 4_096, 5, 0.01, classes=10),
}


def two_devices(name: str, rounds: int) -> None:
    """A task on one and on two virtual devices, summed by JAX or in a reproducible tree."""
    task = TASKS[name]
    loss, params = problem(task)
    arrays = jax.device_put(task.data())

    def ours(data: Any, sampler: Any) -> Callable[[], Any]:
        solver = jaxsgd.Solver(loss, sampler, jaxsgd.SGD(task.rate))
        state = solver.init(params, data, key=jax.random.key(0))
        return lambda: jaxsgd.run(solver, state, data, task.steps)

    contenders = {}
    for count in (2, 1):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        where = f"MeshRows, {count} device{'s' * (count > 1)}"
        for reproducible in (False, True):
            rows = jaxsgd.MeshRows(arrays, mesh, reproducible=reproducible)
            label = where + ", reproducible" * reproducible
            contenders[label] = ours(rows, jaxsgd.Shuffled(4096))
    contenders["plain arrays, Sharded"] = ours(arrays, jaxsgd.Sharded(4096))
    contenders["plain arrays, Shuffled"] = ours(arrays, jaxsgd.Shuffled(4096))
    report(f"{name}, 40,960 x 784, batch 4,096", contenders, task.steps, rounds)


def runs(rounds: int) -> None:
    """The sweep of lines; times are for a step of a run."""
    work = WORKS["sweep-lines"]
    grid = work.cases[""]
    train, params = grid_point(grid)
    data = jax.device_put(grid.data())
    keys = jax.random.split(jax.random.key(0), grid.seeds)
    over = {"learning_rate": grid.learning_rates(), "key": keys}
    two = jax.make_mesh((2,), ("runs",), devices=jax.devices()[:2])
    contenders = {
        name: lambda mesh=mesh: jaxsgd.sweep(train, data, params, over=over, mesh=mesh).value
        for name, mesh in [("sweep on two devices", two), ("sweep on one of them", None)]
    }
    report(work.title, contenders, grid.steps, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"{jax.device_count()} of {jax.devices()[0].device_kind}, JAX {jax.__version__}")
    for name in TASKS:
        two_devices(name, args.rounds)
    runs(args.rounds)


if __name__ == "__main__":
    main()
