"""The hand-written JAX loops as an expert would write them for a CPU.

Weights are (out, in), of one output a vector: XLA's products of matrices read both along their
rows. Orders are drawn by NumPy, which does not sort, for all epochs at once; nothing is masked: a
short last batch is a step of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.tasks import Cannot, Grid, Training


def problem(task: Training) -> tuple[Any, Any]:
    """The mean loss of some rows, and the parameters to start from."""

    def loss(params: Any, rows: Any) -> Any:
        z, y = rows
        for i, (w, b) in enumerate(params):
            z = (jax.nn.relu(z) if i else z) @ w.T + b
        if task.model == "linear":
            return optax.squared_error(z, y).mean()
        if task.classes == 1:
            return optax.sigmoid_binary_cross_entropy(z, y).mean()
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

    start = [(w.T, b) if task.classes > 1 else (w[:, 0], b[0]) for w, b in task.start()]
    return loss, jax.device_put(start)


def layers(task: Training, params: Any) -> Any:
    """The parameters of one run or many as NumPy's `(in, out)` weights and `(out,)` biases."""
    params = jax.device_get(params)
    if task.classes == 1:
        return [(w[..., None], b[..., None]) for w, b in params]
    return [(w.swapaxes(-1, -2), b) for w, b in params]


def step_of(loss: Any, rate: Any) -> Callable[..., Any]:
    rule = optax.sgd(rate)

    def step(params: Any, rows: Any) -> Any:
        updates, _ = rule.update(jax.grad(loss)(params, rows), rule.init(params))
        return optax.apply_updates(params, updates)

    return step


def epochs_of(task: Training) -> Callable[..., Any]:
    """A function of params, data, the rate, and an order of all rows for each epoch."""
    loss, _ = problem(task)
    whole = task.rows - task.rows % task.batch

    def train(params: Any, data: Any, rate: Any, orders: Any) -> Any:
        step = step_of(loss, rate)

        def at(params: Any, index: Any) -> Any:
            return step(params, jax.tree.map(lambda x: x[index], data)), None

        def epoch(params: Any, order: Any) -> Any:
            if task.batch == task.rows:
                return step(params, data), None
            params, _ = jax.lax.scan(at, params, order[:whole].reshape(-1, task.batch))
            return (at(params, order[whole:])[0] if whole < task.rows else params), None

        return jax.lax.scan(epoch, params, orders)[0]

    return train


def orders(task: Training, rng: np.random.Generator) -> np.ndarray:
    """An order of the rows for each epoch, int32."""
    if task.batch == task.rows:
        return np.zeros((task.epochs, 1), np.int32)
    return np.stack([rng.permutation(np.int32(task.rows)) for _ in range(task.epochs)])


def scan(task: Training, data: Any) -> Callable[[int], Any]:
    train, (_, start) = jax.jit(epochs_of(task)), problem(task)
    data, rate = jax.device_put((data, np.float32(task.rate)))

    def prepare(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return lambda: layers(task, train(start, data, rate, orders(task, rng)))

    return prepare


def stepped(task: Training, batches_of: Callable[[int], Iterator[Any]]) -> Callable[[int], Any]:
    """A jitted step, which takes over the memory of the parameters, and a loop of Python."""
    loss, start = problem(task)
    step = jax.jit(step_of(loss, task.rate), donate_argnums=0)

    def prepare(seed: int) -> Any:
        def go() -> Any:
            params = jax.tree.map(jax.numpy.copy, start)
            for rows in batches_of(seed):
                params = step(params, rows)
            return layers(task, params)

        return go

    return prepare


def step(task: Training, data: Any) -> Callable[[int], Any]:
    """Rows gathered by NumPy."""
    x, y = data

    def batches(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        for _ in range(task.epochs):
            order = rng.permutation(task.rows)
            for i in range(0, task.rows, task.batch):
                index = order[i : i + task.batch]
                yield (x, y) if task.batch == task.rows else (x[index], y[index])

    return stepped(task, batches)


def grain(task: Training, data: Any) -> Callable[[int], Any]:
    """Rows gathered by grain, in threads."""
    if task.batch < 10:
        raise Cannot("makes each batch of single rows, in Python")
    import grain

    x, y = data

    class Source:
        def __len__(self) -> int:
            return task.rows

        def __getitem__(self, i: int) -> Any:
            return x[i], y[i]

    def batches(seed: int) -> Iterator[Any]:
        rows = grain.MapDataset.source(Source()).shuffle(seed=seed).repeat(task.epochs)
        return iter(rows.batch(task.batch).to_iter_dataset())

    return stepped(task, batches)


def vmapped_scan(task: Grid, data: Any) -> Callable[[int], Any]:
    """The same scan under two vmaps, rates innermost; the rates of a seed share its rows."""
    train, (_, start) = epochs_of(task.one), problem(task.one)
    rates = jax.vmap(train, (None, None, 0, None))
    grid = jax.jit(jax.vmap(rates, (None, None, None, 0), out_axes=1))
    data, rate = jax.device_put((data, task.learning_rates()))

    def prepare(seed: int) -> Any:
        rng = np.random.default_rng(seed)

        def go() -> Any:
            each = np.stack([orders(task.one, rng) for _ in range(task.seeds)])
            params = grid(start, data, rate, each)
            return layers(task.one, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), params))

        return go

    return prepare
