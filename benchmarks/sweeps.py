"""Many runs at once beside one after the other.

    python benchmarks/sweeps.py [--rounds 5] [--json FILE]

As in `core.py`: contenders take turns, medians over rounds, ratios round by round. Those that run
one after the other are given fewer runs, as many as are told, of the same steps on the same rows;
figures are for a step of a run. All must end near the same mean loss. Prints Markdown.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import core
import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxsgd


def trained(
    data: Any, params: Any, learning_rate: Any, key: Any, *, loss: Any, batch: int, steps: int
) -> Any:
    """The loss of the last step."""
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(batch), jaxsgd.SGD(learning_rate))
    state = solver.init(params, data, key=key)
    _, trace = jaxsgd.run(solver, state, data, steps)
    return trace.loss[-1]


def torch_line(x: Any, y: Any, rate: float, batch: int, epochs: int, seed: int) -> float:
    """Indexed batches of tensors."""
    torch.manual_seed(seed)
    w, b = torch.zeros(1, requires_grad=True), torch.zeros((), requires_grad=True)
    rule = torch.optim.SGD([w, b], lr=rate)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x), batch):
            index = order[start : start + batch]
            rule.zero_grad()
            loss = torch.mean((x[index] @ w + b - y[index]) ** 2)
            loss.backward()
            rule.step()
    return float(loss.detach())


def numpy_line(x: Any, y: Any, rate: float, batch: int, epochs: int, seed: int) -> float:
    rng, w, b = np.random.default_rng(seed), np.zeros(1, np.float32), np.float32(0)
    rate = np.float32(rate)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch):
            index = order[start : start + batch]
            rows = x[index]
            error = rows @ w + b - y[index]
            slope = error * np.float32(2 / len(index))
            w, b = w - rate * (rows.T @ slope), b - rate * slope.sum()
    return float(np.mean(error**2))


def take_turns(
    contenders: dict[str, tuple[int, Callable[[], Any]]], steps: int, rounds: int
) -> dict[str, Any]:
    """By contender (how many runs, what runs them): microseconds a step and run, and the ratio."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    ends = {name: float(np.mean(fn())) for name, (_, fn) in contenders.items()}
    for _ in range(rounds):
        for name, (runs, fn) in contenders.items():
            times[name].append(1e6 * core.clock(fn) / (runs * steps))
    if max(ends.values()) > 1.5 * min(ends.values()):
        raise SystemExit(f"the contenders end at different losses, so they did other work: {ends}")
    first = next(iter(times))
    print("| contender | runs | us a step and run | ratio | mean loss at the end |")
    print("|---|---|---|---|---|")
    rows = {}
    for name, found in times.items():
        ratio = statistics.median(b / a for a, b in zip(times[first], found, strict=True))
        steady = statistics.median(found)
        rows[name] = {"us": steady, "ratio": ratio, "loss": ends[name]}
        print(f"| {name} | {contenders[name][0]} | {steady:.3g} | {ratio:.3g} | {ends[name]:.3g} |")
    return rows


def line_rows() -> Any:
    """1,000 rows of a noisy line, and where runs on them start."""
    rng = np.random.default_rng(0)
    x = rng.random((1000, 1), np.float32)
    y = 3.5 * x[:, 0] + np.float32(1.2) + np.float32(0.1) * rng.standard_normal(1000, np.float32)
    return (x, y), {"weight": jnp.zeros(1), "bias": jnp.zeros(())}


RATES = np.geomspace(0.05, 0.5, 64)  # all of which come near the noise in 20 epochs


def line(*args: Any, **point: Any) -> Any:
    return trained(*args, **point, loss=core.line_loss, batch=64, steps=320)


def lines(rounds: int) -> dict[str, Any]:
    """64 rates x 16 seeds of linear regression, 1,000 x 1, batch 64, 320 steps."""
    (x, y), params = line_rows()
    data = jax.device_put((x, y))
    keys = jax.random.split(core.KEY, 16)
    over = {"learning_rate": RATES, "key": keys}
    counted: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: counted.append(name) if "backend_compile" in name else None
    )
    everything = lambda: jaxsgd.sweep(line, data, params, over=over).value  # noqa: E731
    first = core.clock(everything)
    others = {"learning_rate": RATES / 2, "key": jax.random.split(jax.random.key(1), 16)}
    jax.block_until_ready(others)
    counted.clear()
    core.clock(lambda: jaxsgd.sweep(line, data, params, over=others).value)
    again = len(counted)
    one = jax.jit(line)
    few = [
        {"learning_rate": jnp.float32(rate), "key": key} for rate in RATES[::4] for key in keys[:4]
    ]
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    seeds = [(float(rate), seed) for rate in RATES[::16] for seed in range(2)]
    print("\n### 64 rates x 16 seeds of linear regression, 1,000 x 1, batch 64, 320 steps\n")
    print(
        f"first call {first:.2f} s; programs compiled by a second sweep of other values: {again}\n"
    )
    figures = take_turns(
        {
            "jaxsgd.sweep": (1024, everything),
            "jaxsgd, run after run": (
                64,
                lambda: [one(data, params, **point) for point in few],
            ),
            "NumPy, run after run": (8, lambda: [numpy_line(x, y, a, 64, 20, s) for a, s in seeds]),
            "PyTorch, indexed batches, run after run": (
                8,
                lambda: [torch_line(*tensors, a, 64, 20, s) for a, s in seeds],
            ),
        },
        320,
        rounds,
    )
    return {"first call, s": first, "compiled again": again} | figures


def softmax(rounds: int) -> dict[str, Any]:
    """64 rates of softmax regression, 6,000 x 784, 10 classes, batch 64, one epoch, one seed."""
    rng = np.random.default_rng(0)
    x = rng.random((6000, 784), np.float32)
    y = rng.integers(0, 10, 6000).astype(np.int32)
    data = jax.device_put((x, y))
    params = {"weight": jnp.zeros((784, 10)), "bias": jnp.zeros(10)}
    train = partial(trained, loss=core.softmax_loss, batch=64, steps=94)
    rates = np.geomspace(1e-4, 1e-2, 64)
    fn = lambda *args, **point: train(*args, key=core.KEY, **point)  # noqa: E731
    one = jax.jit(partial(train, key=core.KEY))
    numbers = [jnp.float32(rate) for rate in rates]
    print("\n### 64 rates of softmax regression, 6,000 x 784, batch 64, 94 steps\n")
    over = {"learning_rate": rates}
    return take_turns(
        {
            "jaxsgd.sweep": (64, lambda: jaxsgd.sweep(fn, data, params, over=over).value),
            "jaxsgd, run after run": (64, lambda: [one(data, params, rate) for rate in numbers]),
        },
        94,
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures here too")
    args = parser.parse_args()
    device = jax.devices()[0]
    about = {"device": device.device_kind, "backend": device.platform, "jax": jax.__version__,
             "torch": torch.__version__, "python": platform.python_version()}  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    figures = {
        "linear regressions": lines(args.rounds),
        "softmax regressions": softmax(args.rounds),
    }
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"about": about, "figures": figures}, file, indent=2)


if __name__ == "__main__":
    main()
