"""What limits the speed of a step: bytes and operations, random row reads, matrix products.

    python -m benchmarks.limits [--rounds 7]

All take turns in one process. Times are medians over rounds. Writes a table into this machine's
results.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ours, report
from benchmarks.machine import machine
from benchmarks.tasks import Training
from benchmarks.turns import clock, rounds_asked
from benchmarks.works import WORKS

Part = tuple[Callable[[], Any], int]  # what runs, and for how many steps that is
# a case, and what holds it
CASES = {
    ("seed", ""): "arithmetic: 64 rows hashed to their places and read from a cache, in one kernel",
    ("airfoil-like", "10"): "the fixed work of a step: the order of its rows, its record",
    ("two-class", "1"): "cache misses: a row is 4 lines of memory that no prefetcher foresees",
    ("two-class", "32"): "cache misses, as above",
    ("softmax", "10"): "XLA's overhead, of about 30 operations",
    ("softmax", "64"): "random rows, and products with a side of 10, which reuse few numbers",
    ("softmax", "256"): "the same; rows that one core gathered are read by the other",
    ("softmax", "60000"): "products with a side of 10",
    ("mlp", ""): "products",
}
HEADS = [
    "case", "jaxsgd", "bytes", "operations", "random rows", "products", "rows and products",
    "what holds it",
]  # fmt: skip
INTRODUCTION = """Made by `python -m benchmarks.limits`, all in one process, in microseconds a step:
jaxsgd; the time in which as many bytes of a large array are negated in place, and as many
multiplications of a large product done; random rows gathered alone, many at once; the products of
matrices of both passes alone, over the same rows again; rows and products in one scan, without
losses, biases and the order of the rows. A product of two 4 x 4 matrices, which is an operation of
XLA that does next to nothing, takes {overhead:.2f} us in a scan; a run that is one kernel has no
such overhead."""


def whole(task: Training, data: Any) -> Part:
    return ours.shuffled(task, data)(0), task.steps


def random_rows(task: Training, data: Any) -> Part:
    """As many at once as a cache holds."""
    many = max(task.batch, 2**16 // task.features // task.batch * task.batch)
    times = max(2, 2**18 // many)
    order = np.random.default_rng(0).integers(0, task.rows, (times, many), np.int32)

    @jax.jit
    def gather(data: Any, order: Any) -> Any:
        take = lambda index: jax.tree.map(lambda x: rows_at(x, index), data)  # noqa: E731
        return jax.lax.scan(lambda _, index: (take(index), None), take(order[0]), order)[0]

    return partial(gather, data, jnp.asarray(order)), times * many // task.batch


def rows_at(x: Any, index: Any) -> Any:
    return x.at[index].get(mode="promise_in_bounds")


def products(task: Training, data: Any, gathered: bool) -> Part:
    """Of the first rows, or of rows in a random order."""
    times = 5 if task.batch > 10_000 else min(2_000, task.rows // task.batch)
    order = np.random.default_rng(0).permutation(task.rows)[: times * task.batch]
    order = order.reshape(times, -1).astype(np.int32) if gathered else None
    weights = [jnp.asarray(w.T) for w, _ in task.start()]

    @jax.jit
    def multiply(weights: Any, x: Any, order: Any) -> Any:
        def step(weights: Any, index: Any) -> Any:
            inputs = [x if index is None else rows_at(x, index)]
            for w in weights:
                inputs.append(inputs[-1] @ w.T)
            delta, after = inputs.pop(), []
            for w, z in zip(reversed(weights), reversed(inputs), strict=True):
                after.append(w - 1e-9 * (delta.T @ z))
                delta = delta @ w
            return after[::-1], None

        return jax.lax.scan(step, weights, order, length=times)[0]

    return partial(multiply, weights, data[0] if gathered else data[0][: task.batch], order), times


def overhead() -> Part:
    """A scan of tiny products, none of which XLA fuses with another."""
    times, count = 1_000, 20
    matrix = jnp.eye(4)

    @jax.jit
    def chain(x: Any, matrix: Any) -> Any:
        def step(x: Any, _: None) -> Any:
            for _ in range(count):
                x = x @ matrix
            return x, None

        return jax.lax.scan(step, x, length=times)[0]

    return partial(chain, matrix, matrix), times * count


def in_turns(parts: dict[str, Part], rounds: int) -> dict[str, float]:
    """Microseconds a step."""
    for fn, _ in parts.values():
        clock(fn)
    times = [[1e6 * clock(fn) / steps for fn, steps in parts.values()] for _ in range(rounds)]
    return dict(zip(parts, map(statistics.median, zip(*times, strict=True)), strict=True))


def main() -> None:
    rounds = rounds_asked(__doc__, 7)
    able = machine()
    if not able["device"].startswith("cpu"):
        raise SystemExit("benchmarks.limits explains the steps of a CPU")
    lines = [f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
    for (work, case), reason in CASES.items():
        task = WORKS[work].cases[case]
        data = jax.device_put(task.data())
        parts = {"jaxsgd": whole(task, data)}
        if task.batch < task.rows:
            parts["random rows"] = random_rows(task, data)
        if task.classes > 1:
            parts["products"] = products(task, data, False)
        if task.classes > 1 and task.batch < task.rows:
            parts["rows and products"] = products(task, data, True)
        moved, multiplied = task.counts
        found = {
            "bytes": 1e6 * moved / able["bandwidth"],
            "operations": 1e6 * multiplied / able["rate"],
        }
        found |= in_turns(parts, rounds)
        title = WORKS[work].title.split(", an epoch")[0] + (f", batch {case}" if case else "")
        cells = [report.short(found[head]) if head in found else "" for head in HEADS[1:-1]]
        lines.append(f"| {title} | {' | '.join(cells)} | {reason} |")
        print(lines[-1], flush=True)
    each = in_turns({"overhead": overhead()}, rounds)
    text = "\n\n".join(("# Limits", INTRODUCTION.format(**each), "\n".join(lines)))
    (report.folder(able["device"]) / "limits.md").write_text(f"{text}\n")


if __name__ == "__main__":
    main()
