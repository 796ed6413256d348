"""What a step costs: by rows, by features, by batch, by rule, and with a stop.

    python benchmarks/steps.py [--rounds 15]

As in `core.py`: contenders take turns, medians over rounds, ratios round by round. Prints Markdown.
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import core
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsgd

RULES = {
    "SGD": jaxsgd.SGD(0.01),
    "Momentum": jaxsgd.Momentum(0.01),
    "Nesterov": jaxsgd.Nesterov(0.01),
    "AdaGrad": jaxsgd.AdaGrad(0.01),
    "RMSProp": jaxsgd.RMSProp(0.01),
    "Adam": jaxsgd.Adam(0.001),
    "optax.adam": jaxsgd.FromOptax(optax.adam, learning_rate=0.001),
    "SGD, CosineDecay": jaxsgd.SGD(jaxsgd.CosineDecay(0.01, 0.0, 10_000)),
    "TailAverage(SGD)": jaxsgd.TailAverage(jaxsgd.SGD(0.01)),
    "Proximal(SGD, L1)": jaxsgd.Proximal(jaxsgd.SGD(0.01), jaxsgd.L1(0.001)),
    "LineSearch": jaxsgd.LineSearch(),
}


def rows(n: int, d: int, classes: int | None = None) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    y = rng.integers(0, classes, n) if classes else x.sum(1)
    kind = jnp.int32 if classes else jnp.float32
    return jax.block_until_ready((jnp.asarray(x), jnp.asarray(y, kind)))


def linear(d: int, classes: int | None = None) -> Any:
    shape = (d, classes) if classes else (d,)
    return {"weight": jnp.zeros(shape), "bias": jnp.zeros(shape[1:])}


def runs(
    sampler: Any, rule: Any, data: Any, steps: int, loss: Any, params: Any
) -> Callable[[], Any]:
    solver = jaxsgd.Solver(loss, sampler, rule)
    state = solver.init(params, data, key=core.KEY)
    return lambda: jaxsgd.run(solver, state, data, steps)[0].params


def by_rows(rounds: int) -> None:
    """The arithmetic does not know n; the caches do, where a row is small."""
    sgd, sizes = jaxsgd.SGD(1e-4), (1_000, 10_000, 100_000, 1_000_000)
    for title, d, classes, loss, steps in [
        ("softmax regression, d = 784, batch 64", 784, 10, core.softmax_loss, 500),
        ("linear regression, d = 20, batch 64", 20, None, core.line_loss, 5_000),
    ]:
        start, sampler = linear(d, classes), jaxsgd.Shuffled(64)
        contenders = {
            f"n = {n:,}": runs(sampler, sgd, rows(n, d, classes), steps, loss, start) for n in sizes
        }
        core.report(title, core.take_turns(contenders, rounds), steps, "us a step")


def by_features(rounds: int) -> None:
    sgd, steps = jaxsgd.SGD(1e-6), 500
    contenders = {
        f"d = {d:,}": runs(
            jaxsgd.Shuffled(64), sgd, rows(5_000, d), steps, core.line_loss, linear(d)
        )
        for d in (100, 1_000, 10_000)
    }
    core.report(
        "one step, batch 64, n = 5,000", core.take_turns(contenders, rounds), steps, "us a step"
    )


def by_batch(rounds: int) -> None:
    data, params, sgd = rows(60_000, 784, 10), linear(784, 10), jaxsgd.SGD(0.01)
    title = "softmax regression, 60,000 x 784"
    small = runs(jaxsgd.Shuffled(10), sgd, data, 1_000, core.softmax_loss, params)
    full = runs(jaxsgd.FullBatch(), sgd, data, 3, core.softmax_loss, params)
    told = core.report(title, core.take_turns({"batch 10": small}, rounds), 1_000, "us a step")
    times = core.take_turns({"all 60,000 rows": full}, max(3, rounds // 5))
    told |= core.report(title, times, 3, "us a step")
    ratio = told["all 60,000 rows"]["us a step"] / told["batch 10"]["us a step"]
    print(f"\n6,000 times the rows take {ratio:,.0f} times as long.")


def by_rule(rounds: int) -> None:
    data, params, steps = rows(60_000, 784, 10), linear(784, 10), 300
    contenders = {
        name: runs(jaxsgd.Shuffled(64), rule, data, steps, core.softmax_loss, params)
        for name, rule in RULES.items()
    }
    core.report(
        "softmax regression, batch 64, by rule",
        core.take_turns(contenders, rounds),
        steps,
        "us a step",
    )


def with_stops(rounds: int) -> None:
    """`run_until` looks at every step; the stop here never says so."""
    line = rows(1_000, 1), linear(1), core.line_loss, 10_000
    softmax = rows(60_000, 784, 10), linear(784, 10), core.softmax_loss, 500
    for title, (data, params, loss, steps) in {
        "linear regression, 1,000 x 1, batch 64": line,
        "softmax regression, 60,000 x 784, batch 64": softmax,
    }.items():
        solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(64), jaxsgd.SGD(1e-3))
        state = solver.init(params, data, key=core.KEY)
        stop = jaxsgd.SmallStep(0.0)
        until = partial(jaxsgd.run_until, max_steps=steps, every=100)
        contenders = {
            "run": partial(jaxsgd.run, solver, state, data, steps),
            "run_until, every 100": partial(until, solver, state, data, stop),
        }
        core.report(title, core.take_turns(contenders, rounds), steps, "us a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), {platform.platform()}, JAX {jax.__version__}")
    for table in (by_rows, by_features, by_batch, by_rule, with_stops):
        table(rounds)


if __name__ == "__main__":
    main()
