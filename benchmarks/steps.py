"""What a step costs by rule, with a stop, and by sampler.

    python -m benchmarks.steps [--rounds 15]

Contenders take turns. Times are medians over rounds, ratios are per round. Prints Markdown.
"""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import jaxsgd
from benchmarks.ours import problem
from benchmarks.tasks import SEED
from benchmarks.turns import report, rounds_asked
from benchmarks.works import softmax

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


def samplers(n: int, batch: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.choice(5, n, p=[0.3, 0.3, 0.2, 0.19, 0.01])
    rate = batch / n
    capacity = math.ceil(batch + 5 * math.sqrt(batch * (1 - rate)))
    return {
        "Shuffled": jaxsgd.Shuffled(batch),
        "Sequential": jaxsgd.Sequential(batch),
        "WithReplacement": jaxsgd.WithReplacement(batch),
        "ImportanceSampled": jaxsgd.ImportanceSampled(rng.uniform(0.1, 1, n), batch),
        "Stratified, 5 classes": jaxsgd.Stratified(labels, batch),
        "Stratified, in equal parts": jaxsgd.Stratified(labels, batch, (1, 1, 1, 1, 1)),
        f"Poisson, {capacity} slots": jaxsgd.Poisson(rate, capacity),
    }


def started(task: Any, rule: Any, sampler: Any = None) -> tuple[Any, Any, Any]:
    loss, params = problem(task)
    solver = jaxsgd.Solver(loss, sampler or jaxsgd.Shuffled(task.batch), rule)
    data = jax.device_put(task.data())
    return solver, solver.init(params, data, key=jax.random.key(0)), data


def main() -> None:
    rounds = rounds_asked(__doc__, 15)
    tasks = {
        "linear regression, 1,000 x 1, batch 64": (SEED(200), 3200),
        "softmax regression, 60,000 x 784, batch 64": (softmax(64), 300),
    }
    for title, (task, steps) in tasks.items():
        by_rule = {n: partial(jaxsgd.run, *started(task, r), steps) for n, r in RULES.items()}
        report(f"{title}, by rule", by_rule, steps, rounds)
        solver, state, data = started(task, RULES["SGD"])
        never = jaxsgd.SmallStep(0.0)  # it looks, and never says so
        until = partial(
            jaxsgd.run_until, solver, state, data, never, max_steps=steps, check_every=100
        )
        both = {
            "run": partial(jaxsgd.run, solver, state, data, steps),
            "run_until, every 100": until,
        }
        report(f"{title}, with a stop", both, steps, rounds)
        of = samplers(task.rows, task.batch)
        sgd = RULES["SGD"]
        by_sampler = {n: partial(jaxsgd.run, *started(task, sgd, s), steps) for n, s in of.items()}
        report(f"{title}, by sampler", by_sampler, steps, rounds)


if __name__ == "__main__":
    main()
