"""Variants of jaxsgd in one process, taking turns: for what has no counterpart elsewhere."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def clock(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start


def rounds_asked(doc: str | None, default: int) -> int:
    """The option `--rounds` of a benchmark, which prints the machine first."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--rounds", type=int, default=default)
    rounds = parser.parse_args().rounds
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), {platform.platform()}, JAX {jax.__version__}")
    return rounds


def report(title: str, contenders: dict[str, Callable[[], Any]], steps: int, rounds: int) -> None:
    """Microseconds a step: medians over rounds, ratios to the first round by round."""
    first_calls = {name: clock(fn) for name, fn in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, fn in contenders.items():
            times[name].append(clock(fn))
    reference = next(iter(times.values()))
    print(f"\n### {title}\n\n| | first call, s | us a step | ratio |\n|---|---|---|---|")
    for name, found in times.items():
        ratio = statistics.median(b / a for a, b in zip(reference, found, strict=True))
        steady = 1e6 * statistics.median(found) / steps
        print(f"| {name} | {first_calls[name]:.2f} | {steady:.3g} | {ratio:.2f} |")
