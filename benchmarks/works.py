"""The works (benchmark workloads): tasks and contenders. Ratios are to the first one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tasks import SEED, Grid, Shuffle, Start, Training

TRAINERS = {
    "jaxsgd": "ours:shuffled",
    "jaxsgd, `Sequential`": "ours:sequential",
    "Optax in a scan": "handwritten:optax_scan",
    "Optax in a scan, tuned": "tuned:scan",
    "Optax in a scan, tuned, rows gathered before": "tuned:gathered_scan",
    "jitted Optax step": "handwritten:optax_step",
    "jitted Optax step, tuned": "tuned:step",
    "jitted Optax step fed by grain": "tuned:grain",
    "NumPy loop": "handwritten:numpy_loop",
    "Numba loop": "numba_loop:loop",
    "PyTorch DataLoader": "pytorch:loader",
    "PyTorch tuned, 1 thread": "pytorch:one_thread",
    "PyTorch tuned, all threads": "pytorch:tuned",
    "PyTorch tuned, `torch.compile`": "pytorch:compiled",
    "Keras 3 on JAX": "keras_fit:fit",
    "scikit-learn": "sklearn_fit:fit",
}
BARE = {"bare scan": "handwritten:bare_scan"}
SWEEPS = {
    "`jaxsgd.sweep`": "ours:sweep",
    "jaxsgd, run after run": "ours:one_by_one",
    "scan under `jax.vmap`": "handwritten:vmapped_scan",
    "scan under `jax.vmap`, tuned": "tuned:vmapped_scan",
    "PyTorch, `torch.func`": "pytorch:func",
    "NumPy, run after run": "handwritten:numpy_grid",
}
SHUFFLES = {
    "`jaxsgd.permute`": "ours:permuted",
    "`jax.random.permutation`": "handwritten:jax_permutation",
    "NumPy permutation": "handwritten:numpy_permutation",
    "`torch.randperm`": "pytorch:permutation",
}
STARTS = {
    "jaxsgd, cold": "start:jaxsgd",
    "jaxsgd, JAX's cache": "start:jaxsgd_cached",
    "Optax in a scan, cold": "start:optax_scan",
    "Optax in a scan, JAX's cache": "start:optax_scan_cached",
    "Optax in a scan, tuned, cold": "start:tuned_scan",
    "PyTorch DataLoader, cold": "start:loader",
    "PyTorch tuned, cold": "start:tuned",
    "NumPy loop, cold": "start:numpy_loop",
}
CONTENDERS = TRAINERS | BARE | SWEEPS | SHUFFLES | STARTS
FEW = ["jaxsgd", "Optax in a scan, tuned", "NumPy loop"]


@dataclass(frozen=True)
class Work:
    """`axis` names what the cases differ by: a number, or nothing where there is one case."""

    title: str
    cases: Mapping[str, Any]
    contenders: Sequence[str]
    axis: str = ""
    unit: str = "us a step"


def softmax(batch: int, epochs: int = 1) -> Training:
    rate = 0.01 if batch < 256 else 0.05  # so that the objective moves far enough to be compared
    return Training("softmax", 60_000, 784, batch, epochs, rate, classes=10)


def powers(first: int, last: int) -> dict[str, int]:
    return {f"1e{k}": 10**k for k in range(first, last + 1)}


def by_batch(task: Any, *batches: int) -> dict[str, Training]:
    return {str(batch): task(batch) for batch in batches}


WORKS = {
    "seed": Work(
        "linear regression, 1,000 x 1, batch 64, 200 epochs",
        {"": SEED(200)},
        [*TRAINERS, *BARE],
    ),
    "airfoil-like": Work(
        "linear regression, 1,500 x 5, 10 epochs",
        by_batch(lambda b: Training("linear", 1_500, 5, b, 10, 0.05), 1, 10, 100, 1_500),
        [name for name in TRAINERS if name != "jaxsgd, `Sequential`"],
        axis="batch",
        unit="ms an epoch",
    ),
    "two-class": Work(
        "logistic regression, 100,000 x 50, an epoch",
        by_batch(lambda b: Training("logistic", 100_000, 50, b, 1, 0.01), 1, 8, 32),
        [*list(TRAINERS)[:5], "Numba loop", "scikit-learn", *BARE],
        axis="batch",
        unit="ns a row",
    ),
    "softmax": Work(
        "softmax regression, 60,000 x 784, 10 classes, an epoch (3 with full batches)",
        by_batch(lambda b: softmax(b, 3 if b == 60_000 else 1), 10, 64, 256, 60_000),
        [*TRAINERS, *BARE],
        axis="batch",
    ),
    "mlp": Work(
        "a perceptron, 784-128-10, 60,000 rows, batch 64, an epoch",
        {"": Training("mlp", 60_000, 784, 64, 1, 0.05, classes=10)},
        [*TRAINERS, *BARE],
    ),
    "sweep-lines": Work(
        "64 rates x 16 seeds of linear regression, 1,000 x 1, batch 64, 20 epochs",
        {"": Grid(SEED(20), 0.05, 0.5, 64, 16)},
        list(SWEEPS),
        unit="us a step of a run",
    ),
    "sweep-softmax": Work(
        "64 rates of softmax regression, 6,000 x 784, batch 64, an epoch",
        {"": Grid(Training("softmax", 6_000, 784, 64, 1, 0.01, classes=10), 1e-3, 0.03, 64, 1)},
        [name for name in SWEEPS if name != "NumPy, run after run"],
        unit="us a step of a run",
    ),
    "shuffle": Work(
        "a whole random permutation",
        {name: Shuffle(n, n) for name, n in powers(3, 8).items()},
        list(SHUFFLES),
        axis="rows",
        unit="ms",
    ),
    "shuffle-batch": Work(
        "64 positions of a random order, the mean of 1,000 times",
        {name: Shuffle(n, 64, 1_000) for name, n in powers(3, 8).items()},
        list(SHUFFLES),
        axis="rows",
        unit="us",
    ),
    "scaling-rows": Work(
        "linear regression, 50 features, batch 64, 10,000 steps or an epoch",
        {
            name: Training("linear", n, 50, 64, -(-640_000 // n), 0.01)
            for name, n in powers(3, 7).items()
        },
        FEW,
        axis="rows",
    ),
    "scaling-rows-wide": Work(
        "softmax regression, 784 features, batch 64, 500 steps or an epoch",
        {
            name: Training("softmax", n, 784, 64, -(-32_000 // n), 0.01, classes=10)
            for name, n in powers(3, 6).items()
        },
        FEW,
        axis="rows",
    ),
    "scaling-batch": Work(
        "linear regression, 65,536 x 50, an epoch",
        by_batch(lambda b: Training("linear", 65_536, 50, b, 1, 0.05), *[4**k for k in range(8)]),
        FEW,
        axis="batch",
    ),
    "scaling-features": Work(
        "linear regression, 5,000 rows, batch 64, 10 epochs",
        {str(d): Training("linear", 5_000, d, 64, 10, 0.1 / d) for d in (10, 100, 1_000, 10_000)},
        FEW,
        axis="features",
    ),
    "start": Work(
        "process start to trained parameters: linear regression, 1,000 x 1, batch 64, 20 epochs",
        {"": Start()},
        list(STARTS),
        unit="s",
    ),
}
