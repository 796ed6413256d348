"""The loops that JAX and NumPy users write themselves, and a bare scan as a lower limit."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.tasks import Cannot, Grid, Shuffle, Training


def batches(task: Training, rng: np.random.Generator) -> Any:
    """An epoch's batches of rows: all of them as they lie, or some in a new order."""
    if task.batch == task.rows:
        return [slice(None)]
    order = rng.permutation(task.rows)
    return [order[i : i + task.batch] for i in range(0, task.rows, task.batch)]


def numpy_loop(task: Training, data: Any) -> Callable[[int], Any]:
    """Backpropagation written out, one gather a step."""
    x, y = data
    if task.model == "linear":
        return lambda seed: partial(numpy_line, task, x, y, task.rate, seed)
    rate = np.float32(task.rate)

    def train(seed: int) -> Any:
        rng, layers = np.random.default_rng(seed), task.start()
        for _ in range(task.epochs):
            for index in batches(task, rng):
                inputs = [x[index]]
                for w, b in layers[:-1]:
                    inputs.append(np.maximum(inputs[-1] @ w + b, 0))
                z = inputs[-1] @ layers[-1][0] + layers[-1][1]
                if task.classes == 1:
                    delta = 1 / (1 + np.exp(-z))
                    delta[:, 0] -= y[index]
                else:
                    z = np.exp(z - z.max(1, keepdims=True))
                    delta = z / z.sum(1, keepdims=True)
                    delta[np.arange(len(z)), y[index]] -= 1
                delta *= np.float32(1 / len(z))
                for i in reversed(range(len(layers))):
                    w, b = layers[i]
                    layers[i] = w - rate * (inputs[i].T @ delta), b - rate * delta.sum(0)
                    if i:
                        delta = (delta @ w.T) * (inputs[i] > 0)
        return layers

    return lambda seed: partial(train, seed)


def numpy_line(task: Training, x: Any, y: Any, rate: Any, seed: int) -> Any:
    rng, rate = np.random.default_rng(seed), np.float32(rate)
    w, b = np.zeros(task.features, np.float32), np.float32(0)
    for _ in range(task.epochs):
        for index in batches(task, rng):
            rows = x[index]
            slope = (rows @ w + b - y[index]) * np.float32(2 / len(rows))
            w, b = w - rate * (rows.T @ slope), b - rate * slope.sum()
    return [(w[:, None], b[None])]


def numpy_grid(task: Grid, data: Any) -> Callable[[int], Any]:
    """Run after run."""
    rates = task.learning_rates()

    def train(seed: int) -> Any:
        seeds = range(seed * task.seeds, (seed + 1) * task.seeds)
        runs = [numpy_line(task.one, *data, rate, s) for rate in rates for s in seeds]
        return [tuple(np.stack(part) for part in zip(*layers, strict=True))
                for layers in zip(*runs, strict=True)]  # fmt: skip

    return lambda seed: partial(train, seed)


def numpy_permutation(task: Shuffle, data: None) -> Any:
    if task.count < task.rows:
        raise Cannot("only the whole order at once")

    def prepare(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return lambda: rng.permutation(task.rows)

    return prepare


def jax_permutation(task: Shuffle, data: None) -> Any:
    if task.count < task.rows:
        raise Cannot("only the whole order at once")
    if task.rows > 10**7:
        raise Cannot("sorts for minutes")
    import jax

    draw = jax.jit(jax.random.permutation, static_argnums=1)

    def prepare(seed: int) -> Any:
        key = jax.random.key(seed)
        return lambda: np.asarray(draw(key, task.rows))

    return prepare


def jax_problem(task: Training) -> tuple[Any, Any]:
    """The losses of rows (batched, as experts write them), and the parameters to start from."""
    import jax
    import optax

    def losses(params: Any, rows: Any) -> Any:
        z, y = rows
        for i, (w, b) in enumerate(params):
            z = (jax.nn.relu(z) if i else z) @ w + b
        if task.model == "linear":
            return optax.squared_error(z[:, 0], y)
        if task.classes == 1:
            return optax.sigmoid_binary_cross_entropy(z[:, 0], y)
        return optax.softmax_cross_entropy_with_integer_labels(z, y)

    return losses, jax.device_put(task.start())


def optax_step(task: Training, data: Any) -> Callable[[int], Any]:
    """A jitted Optax step fed from NumPy."""
    import jax
    import optax

    losses, start = jax_problem(task)
    rule = optax.sgd(task.rate)
    x, y = data

    @jax.jit
    def step(params: Any, state: Any, rows: Any) -> Any:
        grads = jax.grad(lambda params: losses(params, rows).mean())(params)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(seed: int) -> Any:
        rng, params, state = np.random.default_rng(seed), start, rule.init(start)
        for _ in range(task.epochs):
            for index in batches(task, rng):
                params, state = step(params, state, (x[index], y[index]))
        return jax.device_get(params)

    return lambda seed: partial(train, seed)


def scan_of(task: Training) -> tuple[Any, Any]:
    """A `lax.scan` over `jax.random.permutation`, padded and masked, and its first parameters."""
    import jax
    import jax.numpy as jnp
    import optax

    losses, start = jax_problem(task)
    slots = task.steps_per_epoch * task.batch

    def train(params: Any, data: Any, rate: Any, key: Any) -> Any:
        rule = optax.sgd(rate)

        def step(carry: Any, chosen: Any) -> Any:
            params, state = carry
            index, valid = chosen
            whole = task.batch == task.rows
            rows = data if whole else jax.tree.map(lambda x: x[index], data)
            mean = lambda params: jnp.sum(valid * losses(params, rows)) / jnp.sum(valid)  # noqa: E731
            value, grads = jax.value_and_grad(mean)(params)
            updates, state = rule.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), value

        def epoch(carry: Any, key: Any) -> Any:
            whole = task.batch == task.rows
            order = jnp.arange(slots) if whole else jax.random.permutation(key, task.rows)
            order = jnp.pad(order, (0, slots - len(order)), mode="edge")
            valid = (jnp.arange(slots) < task.rows).astype(jnp.float32)
            batches = [x.reshape(-1, task.batch) for x in (order, valid)]
            return jax.lax.scan(step, carry, tuple(batches))

        keys = jax.random.split(key, task.epochs)
        (params, _), values = jax.lax.scan(epoch, (params, rule.init(params)), keys)
        return params, values

    return train, start


def optax_scan(task: Training, data: Any) -> Callable[[int], Any]:
    import jax

    train, start = scan_of(task)
    train = jax.jit(train)
    data, rate = jax.device_put((data, np.float32(task.rate)))

    def prepare(seed: int) -> Any:
        key = jax.random.key(seed)
        return lambda: jax.device_get(train(start, data, rate, key)[0])

    return prepare


def vmapped_scan(task: Grid, data: Any) -> Callable[[int], Any]:
    """The same scan under two vmaps, rates innermost."""
    import jax

    train, start = scan_of(task.one)
    rates = jax.vmap(train, (None, None, 0, None))
    grid = jax.jit(jax.vmap(rates, (None, None, None, 0), out_axes=1))
    data, rate = jax.device_put((data, task.learning_rates()))

    def prepare(seed: int) -> Any:
        keys = jax.random.split(jax.random.key(seed), task.seeds)

        def go() -> Any:
            params = jax.device_get(grid(start, data, rate, keys)[0])
            return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), params)

        return go

    return prepare


def bare_scan(task: Training, data: Any) -> Callable[[int], Any]:
    """The limit of tiny steps: the update alone, over batches gathered beforehand, no losses."""
    import jax
    import jax.numpy as jnp

    losses, start = jax_problem(task)
    slots = task.steps_per_epoch * task.batch
    valid = (np.arange(slots) < task.rows).reshape(-1, task.batch)
    weight = (valid / valid.sum(1, keepdims=True)).astype(np.float32)

    @jax.jit
    def train(params: Any, batches: Any) -> Any:
        def step(params: Any, batch: Any) -> Any:
            rows, weight = batch
            grads = jax.grad(lambda params: weight @ losses(params, rows))(params)
            return jax.tree.map(lambda p, g: p - task.rate * g, params, grads), None

        again = lambda params, _: (jax.lax.scan(step, params, batches)[0], None)  # noqa: E731
        return jax.lax.scan(again, params, length=task.epochs)[0]

    def prepare(seed: int) -> Any:
        order = np.resize(np.random.default_rng(seed).permutation(task.rows), slots)
        rows = [jnp.asarray(a[order].reshape(-1, task.batch, *a.shape[1:])) for a in data]
        batches = jax.device_put((tuple(rows), weight))
        return lambda: jax.device_get(train(start, batches))

    return prepare
