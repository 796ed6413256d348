"""A loop compiled by Numba, of models with one output: what steps cost without any framework."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from benchmarks.tasks import Cannot, Training


def loop(task: Training, data: Any) -> Callable[[int], Any]:
    if task.classes > 1:
        raise Cannot("has the products of the NumPy loop")
    x, y = data
    y = y.astype(np.float32)

    def prepare(seed: int) -> Any:
        rng = np.random.default_rng(seed)

        def go() -> Any:
            orders = np.stack([rng.permutation(task.rows) for _ in range(task.epochs)])
            w, b = train(x, y, orders, task.batch, np.float32(task.rate), task.model == "linear")
            return [(w[:, None], np.array([b]))]

        return go

    return prepare


ONE, TWO = np.float32(1), np.float32(2)  # Python's numbers would make all float64


@numba.njit(fastmath=True, error_model="numpy")
def train(x: Any, y: Any, orders: Any, batch: int, rate: Any, linear: bool) -> Any:
    rows, features = x.shape
    w, b = np.zeros(features, np.float32), np.float32(0)
    dw = np.empty(features, np.float32)
    for epoch in range(len(orders)):
        for first in range(0, rows, batch):
            last = min(first + batch, rows)
            dw[:], db = 0, np.float32(0)
            for i in orders[epoch, first:last]:
                z = b
                for j in range(features):
                    z += w[j] * x[i, j]
                delta = TWO * (z - y[i]) if linear else ONE / (ONE + np.exp(-z)) - y[i]
                db += delta
                for j in range(features):
                    dw[j] += delta * x[i, j]
            scale = rate / np.float32(last - first)
            for j in range(features):
                w[j] -= scale * dw[j]
            b -= scale * db
    return w, b
