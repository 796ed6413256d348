"""What is trained: rows, a model, how many epochs, and the objective all contenders must reach."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Layers = list[tuple[np.ndarray, np.ndarray]]  # of (in, out) weights and (out,) biases, float32


class Cannot(Exception):
    """What a peer cannot do, in a few words for its row."""


@dataclass(frozen=True)
class Training:
    """Plain minibatch SGD: every epoch all rows in a new order, a short last batch included.

    The loss of a row is (x w + b - y)^2 for `linear`, log(1 + exp z) - y z for `logistic`, the
    cross entropy for `softmax` and `mlp` (a hidden layer of relu); a batch's is the mean.
    """

    model: str
    rows: int
    features: int
    batch: int
    epochs: int
    rate: float
    classes: int = 1
    hidden: int = 128

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch)

    @property
    def sizes(self) -> list[int]:
        hidden = [self.hidden] if self.model == "mlp" else []
        return [self.features, *hidden, self.classes]

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (float32) and targets: float32 numbers, int32 classes."""
        rng = np.random.default_rng(0)
        x = rng.random((self.rows, self.features), np.float32)
        x -= np.float32(0.5)
        teacher = rng.standard_normal((self.features, self.classes), np.float32)
        z = x @ teacher
        z += z.std() * rng.standard_normal(z.shape, np.float32)
        if self.model == "linear":
            return x, z[:, 0] + np.float32(1)
        return x, (z[:, 0] > 0 if self.classes == 1 else z.argmax(1)).astype(np.int32)

    def start(self) -> Layers:
        """The parameters all start from: zeros, or for the hidden layer one fixed draw."""
        if self.model != "mlp":
            return [(np.zeros(self.sizes, np.float32), np.zeros(self.classes, np.float32))]
        rng = np.random.default_rng(1)
        pairs = list(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        return [
            (rng.standard_normal((m, k), np.float32) / np.sqrt(m, dtype=np.float32),
             np.zeros(k, np.float32))
            for m, k in pairs
        ]  # fmt: skip

    def objective(self, layers: Layers, data: Any) -> float:
        """The mean loss, in float64, over all rows or the first 200,000."""
        total, rows = 0.0, min(self.rows, 200_000)
        for begin in range(0, rows, 10_000):
            x, y = (a[begin : min(begin + 10_000, rows)] for a in data)
            z = x.astype(np.float64)
            for i, (w, b) in enumerate(layers):
                z = (np.maximum(z, 0) if i else z) @ np.asarray(w, float) + np.asarray(b, float)
            if self.model == "linear":
                total += np.sum((z[:, 0] - y) ** 2)
            elif self.classes == 1:
                total += np.sum(np.logaddexp(0, z[:, 0]) - y * z[:, 0])
            else:
                z -= z.max(1, keepdims=True)
                total += np.sum(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y])
        return float(total / rows)

    @property
    def counts(self) -> tuple[float, float]:
        """Bytes and operations that a step cannot do without, of a float32 implementation.

        It reads its rows once, reads and writes the parameters, and multiplies forwards and back.
        """
        weights = [m * k for m, k in zip(self.sizes[:-1], self.sizes[1:], strict=True)]
        rows = self.rows / self.steps_per_epoch
        moved = 4 * (rows * (self.features + 1) + 2 * (sum(weights) + sum(self.sizes[1:])))
        return moved, rows * 2 * (2 * sum(weights) + sum(weights[1:]))


@dataclass(frozen=True)
class Grid:
    """Many trainings: every rate from every seed. The objective is the mean over all of them."""

    one: Training
    lowest: float
    highest: float
    rates: int
    seeds: int

    @property
    def runs(self) -> int:
        return self.rates * self.seeds

    @property
    def steps(self) -> int:
        return self.runs * self.one.steps

    def learning_rates(self) -> np.ndarray:
        return np.geomspace(self.lowest, self.highest, self.rates).astype(np.float32)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        return self.one.data()

    def objective(self, layers: Layers, data: Any) -> float:
        """Of parameters with a leading axis of runs."""
        runs = [[(w[i], b[i]) for w, b in layers] for i in range(self.runs)]
        return float(np.mean([self.one.objective(run, data) for run in runs]))

    @property
    def counts(self) -> tuple[float, float]:
        """A step of one run; rows shared by all rates of a seed are read once."""
        rows, params = self.one.features + 1, (self.one.features + 1) * self.one.classes
        moved = 4 * (self.one.batch * rows / self.rates + 2 * params)
        return moved, self.one.counts[1]


@dataclass(frozen=True)
class Shuffle:
    """`count` positions of a random order of `rows` rows, drawn `times` over."""

    rows: int
    count: int
    times: int = 1

    @property
    def steps(self) -> int:
        return self.times

    def objective(self, found: Any, _: None) -> float:
        """1 where the rows are those of a permutation."""
        found = np.asarray(found)
        is_inside = found.shape == (self.count,) and found.min() >= 0 and found.max() < self.rows
        return float(is_inside and np.bincount(found).max() == 1)

    def data(self) -> None:
        return None

    @property
    def counts(self) -> tuple[float, float]:
        return 4.0 * self.count, 0.0


@dataclass(frozen=True)
class Start:
    """A new process, from its start to trained parameters, 20 epochs of `seed`."""

    training: Training = field(default_factory=lambda: SEED(20))
    steps: int = 1
    counts: None = None

    def data(self) -> Any:
        return self.training.data()

    def objective(self, layers: Layers, data: Any) -> float:
        return self.training.objective(layers, data)


def SEED(epochs: int) -> Training:
    return Training("linear", 1_000, 1, 64, epochs, 0.05)
