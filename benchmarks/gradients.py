"""What gradients cost: per-row clipping, noise scale, accumulation; SAGA against scikit-learn's.

    python -m benchmarks.gradients [--rounds 9]

Contenders take turns. Times are medians over rounds, ratios are per round. Prints Markdown.
scikit-learn's saga and jaxsgd's run until the objective, in float64, is within 1e-6 of its optimum.
"""

import statistics
import warnings
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import scipy.optimize

import jaxsgd
from benchmarks.turns import clock, report, rounds_asked

STRENGTH, GAP = 1e-3, 1e-6


def perceptron(rounds: int) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.uniform(size=(10_000, 784)).astype(np.float32), rng.integers(0, 10, 10_000)
    data = jax.device_put((x, np.eye(10, dtype=np.float32)[labels]))
    model = jaxsgd.models.MLP((784, 128, 10))
    known = jaxsgd.models.ModelLoss(model, optax.softmax_cross_entropy)
    loss = lambda params, row: known(params, row)  # noqa: E731  # the same, as any function
    contenders = {
        "MinibatchGradient": jaxsgd.MinibatchGradient(loss),
        "PerExampleClipped, any loss": jaxsgd.PerExampleClipped(loss, 1.0),
        "PerExampleClipped, ModelLoss": jaxsgd.PerExampleClipped(known, 1.0),
        "the same with noise": jaxsgd.PerExampleClipped(known, 1.0, 1.0, 1 / 256),
        "NoiseScale": jaxsgd.NoiseScaleGradient(loss),
        "Accumulated, 8 parts": jaxsgd.Accumulated(loss, 8),
        "SVRG, every 40": jaxsgd.SVRG(loss, 40),
    }
    runs, steps = {}, 40
    for name, gradient in contenders.items():
        solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(256), jaxsgd.SGD(0.01))
        state = solver.init(model.init(jax.random.key(0)), data, key=jax.random.key(1))
        compiled = (
            jax.jit(lambda *args: args[0].step(*args[1:])).lower(solver, state, data).compile()
        )
        mebibytes = compiled.memory_analysis().temp_size_in_bytes / 2**20
        runs[f"{name}, {mebibytes:.1f} MiB"] = partial(jaxsgd.run, solver, state, data, steps)
    report("MLP 784-128-10, batch 256, by gradient; temporaries of a step", runs, steps, rounds)


def table(rounds: int) -> None:
    runs, steps = {}, 2000
    for n in (10_000, 1_000_000):
        x = np.random.default_rng(0).normal(size=(n, 50)).astype(np.float32)
        data = jax.device_put((x, (x[:, 0] > 0).astype(np.float32)))
        model = jaxsgd.models.Linear(50)
        loss = jaxsgd.models.ModelLoss(model, optax.sigmoid_binary_cross_entropy)
        for batch in (1, 64):
            solver = jaxsgd.Solver(jaxsgd.SAGA(loss), jaxsgd.Shuffled(batch), jaxsgd.SGD(0.01))
            state = solver.init(model.init(jax.random.key(0)), data, key=jax.random.key(1))
            run = partial(jaxsgd.run, solver, state, data, steps)
            runs[f"batch {batch}, {n:,} rows"] = run
    report("SAGA, logistic regression of 50 features, by rows", runs, steps, rounds)


def logistic(rounds: int) -> None:
    from sklearn.linear_model import LogisticRegression

    n, d = 100_000, 50
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)).astype(np.float32)
    z = x @ rng.normal(size=d) * 2 / np.sqrt(d)
    y = (rng.uniform(size=n) < 1 / (1 + np.exp(-z))).astype(np.float32)
    wide, sign = x.astype(np.float64), 2.0 * y - 1

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        w, margin = v[:d], sign * (wide @ v[:d] + v[d])
        slope = -sign / (1 + np.exp(margin)) / n
        value = np.logaddexp(0, -margin).mean() + STRENGTH / 2 * w @ w
        return value, np.append(wide.T @ slope + STRENGTH * w, slope.sum())

    how = {"ftol": 1e-16, "gtol": 1e-10, "maxiter": 1000}
    least = scipy.optimize.minimize(
        objective, np.zeros(d + 1), jac=True, method="L-BFGS-B", options=how
    ).fun

    def peer(passes: int) -> np.ndarray:
        saga = LogisticRegression(
            C=1 / (n * STRENGTH), solver="saga", max_iter=passes, tol=1e-12, random_state=0
        ).fit(x, y)
        return np.append(saga.coef_[0], saga.intercept_).astype(np.float64)

    model, data = jaxsgd.models.Linear(d), jax.device_put((x, y))
    loss = jaxsgd.models.ModelLoss(model, optax.sigmoid_binary_cross_entropy)
    penalty = jaxsgd.L2(STRENGTH, mask=jaxsgd.models.weights_only)
    params = model.init(jax.random.key(0))
    curved = jaxsgd.diagnostics.estimate_smoothness(
        loss, params, data, key=jax.random.key(1), penalty=penalty
    )

    def ours(batch: int, passes: int) -> np.ndarray:
        rule = jaxsgd.SGD(curved.rate(batch))
        solver = jaxsgd.Solver(jaxsgd.SAGA(loss), jaxsgd.Shuffled(batch), rule, penalty)
        state = solver.init(params, data, key=jax.random.key(2))
        after, _ = jaxsgd.run(solver, state, data, passes * -(-n // batch))
        return np.append(after.params["weight"], after.params["bias"]).astype(np.float64)

    contenders: dict[str, Any] = {"scikit-learn, saga": peer}
    contenders |= {f"jaxsgd, SAGA, batch {b}": partial(ours, b) for b in (1, 16, 64, 256, 1024)}
    warnings.filterwarnings("ignore", message=".*max_iter")  # it is what is counted
    needed = {}
    for name, fn in contenders.items():  # which also compiles
        gaps = ((k, objective(fn(k))[0] - least) for k in range(1, 100))
        needed[name] = next((k, gap) for k, gap in gaps if gap < GAP)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, fn in contenders.items():
            times[name].append(clock(partial(fn, needed[name][0])))
    print(f"\n### Logistic regression, {n:,} x {d}, L2 {STRENGTH:g}, to a gap of {GAP:g}\n")
    print("| | passes | gap | s | ratio |\n|---|---|---|---|---|")
    first = times["scikit-learn, saga"]
    for name, found in times.items():
        ratio = statistics.median(b / a for a, b in zip(first, found, strict=True))
        passes, gap = needed[name]
        print(f"| {name} | {passes} | {gap:.1e} | {statistics.median(found):.3f} | {ratio:.2f} |")


def main() -> None:
    rounds = rounds_asked(__doc__, 9)
    perceptron(rounds)
    table(rounds)
    logistic(rounds)


if __name__ == "__main__":
    main()
