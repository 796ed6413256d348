"""The core's figures: compile time and steady state apart, beside what a user would write.

    python benchmarks/core.py [--rounds 15] [--json FILE]

Contenders of a table do the same work: same rows, same batch size, the short last batch included,
the same number of steps. They take turns, several rounds; each figure is the median over rounds,
each ratio the median of the rounds' ratios. Prints Markdown, with the device.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsgd

KEY = jax.random.key(0)


def clock(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def take_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender: its first call (trace, compile, run), then each round's."""
    times = {name: [clock(fn)] for name, fn in contenders.items()}
    for _ in range(rounds):
        for name, fn in contenders.items():
            times[name].append(clock(fn))
    return times


def report(title: str, times: dict[str, list[float]], per: int, unit: str) -> dict[str, Any]:
    first = next(iter(times))
    print(f"\n### {title}\n\n| contender | first call, s | {unit} | ratio to {first} |")
    print("|---|---|---|---|")
    scale = {"us a step": 1e6, "ms": 1e3}[unit]
    rows = {}
    for name, (start, *seconds) in times.items():
        ratio = statistics.median(b / a for a, b in zip(times[first][1:], seconds, strict=True))
        steady = scale * statistics.median(seconds) / per
        rows[name] = {"first call, s": start, unit: steady, "ratio": ratio}
        print(f"| {name} | {start:.2f} | {steady:.2f} | {ratio:.2f} |")
    return rows


def permutations(rounds: int, n: int = 1_000_000) -> dict[str, Any]:
    ours = jax.jit(lambda key: jaxsgd.permute(key, jnp.arange(n, dtype=jnp.int32), n))
    theirs = jax.jit(lambda key: jax.random.permutation(key, n))
    rng = np.random.default_rng(0)
    times = take_turns(
        {
            "jaxsgd.permute": lambda: ours(KEY),
            "jax.random.permutation": lambda: theirs(KEY),
            "numpy permutation": lambda: rng.permutation(n),
        },
        max(3, rounds // 3),
    )
    return report(f"a permutation of {n:,} rows", times, 1, "ms")


def line_loss(params: Any, row: Any) -> Any:
    x, y = row
    return jnp.square(x @ params["weight"] + params["bias"] - y)


def softmax_loss(params: Any, row: Any) -> Any:
    x, y = row
    logits = x @ params["weight"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def hand_written(loss: Any, n: int, batch: int) -> Callable[..., Any]:
    """The scan a user would write: an epoch's permutation, padded and masked, then its steps."""
    steps = -(-n // batch)

    @partial(jax.jit, static_argnames="epochs")
    def train(params: Any, key: Any, rate: Any, data: Any, epochs: int) -> Any:
        def epoch(params: Any, key: Any) -> Any:
            order = jax.random.permutation(key, n)
            order = jnp.pad(order, (0, steps * batch - n), mode="edge").reshape(steps, batch)
            mask = (jnp.arange(steps * batch) < n).astype(jnp.float32).reshape(steps, batch)

            def step(params: Any, chosen: Any) -> Any:
                index, valid = chosen
                rows = jax.tree.map(lambda x: x[index], data)

                def mean(params: Any) -> Any:
                    losses = jax.vmap(loss, (None, 0))(params, rows)
                    return jnp.sum(valid * losses) / jnp.sum(valid)

                value, grads = jax.value_and_grad(mean)(params)
                return jax.tree.map(lambda p, g: p - rate * g, params, grads), value

            return jax.lax.scan(step, params, (order, mask))

        return jax.lax.scan(epoch, params, jax.random.split(key, epochs))

    return train


def optax_loop(loss: Any, params: Any, data: Any, batch: int, epochs: int) -> Any:
    """The other loop a user would write: a jitted Optax step fed from NumPy."""
    rule = optax.sgd(0.01)
    x, y = data

    @jax.jit
    def step(params: Any, state: Any, rows: Any) -> Any:
        mean = lambda params: jnp.mean(jax.vmap(loss, (None, 0))(params, rows))  # noqa: E731
        value, grads = jax.value_and_grad(mean)(params)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def train() -> Any:
        rng, state, now = np.random.default_rng(0), rule.init(params), params
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), batch):
                index = order[start : start + batch]
                now, state, _ = step(now, state, (x[index], y[index]))
        return now

    return train


def numpy_line(x: np.ndarray, y: np.ndarray, batch: int, epochs: int) -> tuple[Any, Any]:
    rng, w, b = np.random.default_rng(0), np.zeros(1, np.float32), np.float32(0)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            index = order[start : start + batch]
            rows = x[index]
            slope = (rows @ w + b - y[index]) * np.float32(2 / len(index))
            w, b = w - np.float32(0.01) * (rows.T @ slope), b - np.float32(0.01) * slope.sum()
    return w, b


def ours(loss: Any, sampler: Any, params: Any, data: Any, steps: int) -> Callable[[], Any]:
    solver = jaxsgd.Solver(loss, sampler, jaxsgd.SGD(0.01))
    state = solver.init(params, data, key=KEY)
    return lambda: jaxsgd.run(solver, state, data, steps)


def regression(rounds: int) -> dict[str, Any]:
    """Linear regression, n = 1,000, d = 1, batch 64, 3,200 steps."""
    rng = np.random.default_rng(0)
    x = rng.random((1000, 1), np.float32)
    y = 3.5 * x[:, 0] + np.float32(1.2)
    data = jax.device_put((x, y))
    params = {"weight": jnp.zeros(1), "bias": jnp.zeros(())}
    steps, epochs = 3200, 200
    scan = hand_written(line_loss, 1000, 64)
    times = take_turns(
        {
            "jaxsgd": ours(line_loss, jaxsgd.Shuffled(64), params, data, steps),
            "jaxsgd, Sequential": ours(line_loss, jaxsgd.Sequential(64), params, data, steps),
            "hand-written scan": lambda: scan(params, KEY, jnp.float32(0.01), data, epochs=epochs),
            "NumPy loop": lambda: numpy_line(x, y, 64, epochs),
        },
        rounds,
    )
    return report("linear regression, 1,000 x 1, batch 64", times, steps, "us a step")


def softmax(rounds: int) -> dict[str, Any]:
    """Softmax regression, 60,000 x 784, 10 classes, batch 64, one epoch (938 steps)."""
    rng = np.random.default_rng(0)
    x = rng.random((60_000, 784), np.float32)
    y = rng.integers(0, 10, 60_000).astype(np.int32)
    data = jax.device_put((x, y))
    params = {"weight": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}
    scan = hand_written(softmax_loss, 60_000, 64)
    times = take_turns(
        {
            "jaxsgd": ours(softmax_loss, jaxsgd.Shuffled(64), params, data, 938),
            "hand-written scan": lambda: scan(params, KEY, jnp.float32(0.01), data, epochs=1),
            "Optax step fed from NumPy": optax_loop(softmax_loss, params, (x, y), 64, 1),
        },
        max(3, rounds // 3),
    )
    return report("softmax regression, 60,000 x 784, batch 64", times, 938, "us a step")


def first_call() -> dict[str, Any]:
    """Trace, compile and run of the linear regression, then another rate and key."""
    problem = jaxsgd.problems.line()
    counted: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: counted.append(name) if "backend_compile" in name else None
    )

    def train(rate: float, seed: int) -> tuple[float, float, int]:
        solver = jaxsgd.Solver(problem.loss, jaxsgd.Shuffled(64), jaxsgd.SGD(rate))
        start = clock(lambda: solver.init(problem.params, problem.data, key=jax.random.key(seed)))
        state = solver.init(problem.params, problem.data, key=jax.random.key(seed))
        counted.clear()
        seconds = clock(lambda: jaxsgd.run(solver, state, problem.data, 3200))
        return start, seconds, len(counted)

    rows = {}
    print("\n### first call of the linear regression\n")
    print("| call | init, s | run, s | programs compiled by run |\n|---|---|---|---|")
    for name, rate, seed in [("first", 0.01, 0), ("another rate and key", 0.02, 1)]:
        start, seconds, programs = train(rate, seed)
        rows[name] = {"init s": start, "run s": seconds, "compiled": programs}
        print(f"| {name} | {start:.3f} | {seconds:.3f} | {programs} |")
    return rows


def mistakes() -> dict[str, Any]:
    """One full-batch step at each of five rates: rate and data as arguments, or in a closure."""
    data = jnp.ones((1_000_000, 10)), jnp.ones(1_000_000)
    params = {"weight": jnp.zeros(10), "bias": jnp.zeros(())}

    def step(params: Any, data: Any, rate: Any) -> Any:
        mean = lambda params: jnp.mean(jax.vmap(line_loss, (None, 0))(params, data))  # noqa: E731
        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(mean)(params))

    compiled = jax.jit(step)
    contenders = {
        "arguments": lambda rate: compiled(params, data, rate),
        "in a closure": lambda rate: jax.jit(lambda params: step(params, data, rate))(params),
    }
    print("\n### one step on 1,000,000 x 10 at each of five rates\n")
    print("| rate and data | first rate, s | each further rate, s |\n|---|---|---|")
    rows = {}
    for name, fn in contenders.items():
        first, *rest = [clock(partial(fn, rate)) for rate in (0.01, 0.02, 0.03, 0.04, 0.05)]
        rows[name] = {"first, s": first, "further, s": statistics.median(rest)}
        print(f"| {name} | {first:.2f} | {statistics.median(rest):.3f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    device = jax.devices()[0]
    about = {"device": device.device_kind, "backend": device.platform, "jax": jax.__version__,
             "python": platform.python_version(), "machine": platform.machine()}  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    figures = {
        "first call": first_call(),
        "permutation": permutations(args.rounds),
        "linear regression": regression(args.rounds),
        "softmax regression": softmax(args.rounds),
        "mistakes": mistakes(),
    }
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"about": about, "figures": figures}, file, indent=2)


if __name__ == "__main__":
    main()
