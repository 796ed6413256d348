"""A batch, and a sweep, on two virtual devices of the same cores, beside one.

    python benchmarks/devices.py [--rounds 9]

As in `core.py`: contenders take turns, medians over rounds, ratios round by round. Prints Markdown.
On a machine with two accelerators or more it takes two of those.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", 2)  # before anything touches a device

import core  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from sweeps import RATES, line, line_rows, take_turns  # noqa: E402

import jaxsgd  # noqa: E402


def two_devices(rounds: int) -> dict[str, Any]:
    """Softmax regression, 40,960 x 784, batch 4,096, on one and on two virtual devices."""
    rng = np.random.default_rng(0)
    x = rng.random((40_960, 784), np.float32)
    y = rng.integers(0, 10, 40_960).astype(np.int32)
    params = {"weight": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}
    steps = 30

    def ours(data: Any, sampler: Any) -> tuple[int, Callable[[], Any]]:
        solver = jaxsgd.Solver(core.softmax_loss, sampler, jaxsgd.SGD(0.01))
        state = solver.init(params, data, key=core.KEY)
        return 1, lambda: jaxsgd.run(solver, state, data, steps)[1].loss[-1]

    contenders = {}
    for count in (2, 1):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        rows = jaxsgd.MeshRows((x, y), mesh)
        name = f"MeshRows, {count} device{'s' * (count > 1)}"
        contenders[name] = ours(rows, jaxsgd.Shuffled(4096))
    contenders["plain arrays, Sharded"] = ours(jax.device_put((x, y)), jaxsgd.Sharded(4096))
    contenders["plain arrays, Shuffled"] = ours(jax.device_put((x, y)), jaxsgd.Shuffled(4096))
    print("\n### softmax regression, 40,960 x 784, batch 4,096\n")
    return take_turns(contenders, steps, rounds)


def runs(rounds: int) -> dict[str, Any]:
    """64 rates x 16 seeds of linear regression, as in `sweeps.py`."""
    data, params = line_rows()
    over = {"learning_rate": RATES, "key": jax.random.split(core.KEY, 16)}
    two = jax.make_mesh((2,), ("runs",), devices=jax.devices()[:2])
    print("\n### 64 rates x 16 seeds of linear regression, 1,000 x 1, batch 64, 320 steps\n")
    contenders = {
        name: (1024, lambda mesh=mesh: jaxsgd.sweep(line, data, params, over=over, mesh=mesh).value)
        for name, mesh in [("sweep on two devices", two), ("sweep on one of them", None)]
    }
    return take_turns(contenders, 320, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    print(f"{jax.device_count()} of {jax.devices()[0].device_kind}, jax {jax.__version__}")
    two_devices(args.rounds)
    runs(args.rounds)


if __name__ == "__main__":
    main()
