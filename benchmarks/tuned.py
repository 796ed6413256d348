"""The hand-written JAX loops as an expert would write them for a CPU.

Weights are (out, in), or a vector for one output: XLA's matrix products then read both operands
along their rows. NumPy draws the orders of all epochs at once, without sorting. Nothing is masked:
a short last batch is a separate step.
"""

from collections.abc import Callable, Iterator
from functools import partial
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


def epochs_of(task: Training, gathered: bool = False) -> Callable[..., Any]:
    """A function of params, data, the rate, and an order of all rows for each epoch.

    The rows of a step are gathered in the step, or those of an epoch before it.
    """
    loss, _ = problem(task)
    whole = task.rows - task.rows % task.batch

    def train(params: Any, data: Any, rate: Any, orders: Any) -> Any:
        step = step_of(loss, rate)
        rows_at = lambda index: jax.tree.map(  # noqa: E731
            lambda x: x.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False), data
        )

        def steps(params: Any, order: Any) -> Any:
            index = order.reshape(-1, task.batch)
            if gathered:
                return jax.lax.scan(lambda p, rows: (step(p, rows), None), params, rows_at(index))
            return jax.lax.scan(lambda p, i: (step(p, rows_at(i)), None), params, index)

        def epoch(params: Any, order: Any) -> Any:
            if task.batch == task.rows:
                return step(params, data), None
            params, _ = steps(params, order[:whole])
            return (step(params, rows_at(order[whole:])) if whole < task.rows else params), None

        return jax.lax.scan(epoch, params, orders, length=task.epochs)[0]

    return train


def orders(task: Training, rng: np.random.Generator) -> np.ndarray | None:
    """An order of the rows for each epoch (int32), or None where each step takes all."""
    if task.batch == task.rows:
        return None
    return np.stack([rng.permutation(task.rows).astype(np.int32) for _ in range(task.epochs)])


def scan(task: Training, data: Any, gathered: bool = False) -> Callable[[int], Any]:
    if gathered and task.batch == task.rows:
        raise Cannot("takes all rows, which are not gathered")
    train, (_, start) = jax.jit(epochs_of(task, gathered)), problem(task)
    data, rate = jax.device_put((data, np.float32(task.rate)))

    def prepare(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return lambda: layers(task, train(start, data, rate, orders(task, rng)))

    return prepare


gathered_scan = partial(scan, gathered=True)


def stepped(task: Training, batches_of: Callable[[int], Iterator[Any]]) -> Callable[[int], Any]:
    """A jitted step, which takes over the memory of the parameters, and a loop of Python."""
    loss, start = problem(task)
    step = jax.jit(step_of(loss, task.rate), donate_argnums=0)

    def prepare(seed: int) -> Any:
        own = jax.block_until_ready(jax.tree.map(jax.numpy.copy, start))

        def go() -> Any:
            params = own
            for rows in batches_of(seed):
                params = step(params, rows)
            return layers(task, params)

        return go

    return prepare


def step(task: Training, data: Any) -> Callable[[int], Any]:
    """Rows gathered by NumPy."""
    x, y = data
    held = jax.device_put(data) if task.batch == task.rows else None

    def batches(seed: int) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        for _ in range(task.epochs):
            if held is not None:
                yield held
                continue
            order = rng.permutation(task.rows)
            for i in range(0, task.rows, task.batch):
                index = order[i : i + task.batch]
                yield x[index], y[index]

    return stepped(task, batches)


def grain(task: Training, data: Any) -> Callable[[int], Any]:
    """Rows in grain's order, gathered by NumPy; threads of grain took 1.4 to 2.7 times as long."""
    import grain

    x, y = data

    def batches(seed: int) -> Iterator[Any]:
        order = grain.MapDataset.range(task.rows).seed(seed).shuffle().batch(task.batch)
        rows = order.map(lambda index: (x[index], y[index])).repeat(task.epochs)
        return iter(rows.to_iter_dataset(grain.ReadOptions(num_threads=0)))

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
            each = [orders(task.one, rng) for _ in range(task.seeds)]
            if task.one.batch == task.one.rows:  # no order, but an axis of seeds
                each = np.zeros((task.seeds, task.one.epochs, 0), np.int32)
            params = grid(start, data, rate, np.stack(each))
            return layers(task.one, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), params))

        return go

    return prepare
