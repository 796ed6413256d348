"""A small convolutional network (Flax NNX) on 28 x 28 images, compared with hand-written loops.

    python -m benchmarks.convolutions [--rounds 7]

Contenders take turns. Times are medians over rounds, ratios are per round. Prints Markdown.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxsgd
from benchmarks.turns import report, rounds_asked

BATCH, STEPS, RATE = 64, 20, 0.05


class CNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.last = nnx.Linear(7 * 7 * 32, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
        x = pool(jax.nn.relu(self.first(images)))
        x = pool(jax.nn.relu(self.second(x)))
        return self.last(x.reshape(len(x), -1))


graph, params = nnx.split(CNN(nnx.Rngs(0)))


def losses(params: Any, rows: Any) -> jax.Array:
    images, labels = rows
    logits = nnx.merge(graph, params)(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def sgd_step(state: Any, rows: Any) -> tuple[Any, jax.Array]:
    params, moments = state
    loss, grads = jax.value_and_grad(lambda p: jnp.mean(losses(p, rows)))(params)
    updates, moments = optax.sgd(RATE).update(grads, moments)
    return (optax.apply_updates(params, updates), moments), loss


def by_hand(data: Any) -> dict[str, Callable[[], Any]]:
    """A jitted step called from Python, and a scan over the rows of an order drawn before."""
    start = params, optax.sgd(RATE).init(params)
    step = jax.jit(sgd_step)
    host = jax.tree.map(np.asarray, data)
    orders = np.random.default_rng(0)

    def loop() -> Any:
        state = start
        for index in orders.permutation(len(host[1]))[: STEPS * BATCH].reshape(STEPS, BATCH):
            state, _ = step(state, jax.tree.map(lambda x: x[index], host))  # noqa: B023
        return state

    @jax.jit
    def scan(state: Any, data: Any, key: Any) -> Any:
        order = jax.random.permutation(key, len(data[1]))[: STEPS * BATCH].reshape(STEPS, BATCH)
        rows = lambda index: jax.tree.map(lambda x: x[index], data)  # noqa: E731
        return jax.lax.scan(lambda state, index: sgd_step(state, rows(index)), state, order)

    return {
        "jitted NNX step fed from NumPy": loop,
        "NNX in a hand-written scan": partial(scan, start, data, jax.random.key(0)),
    }


def ours(data: Any) -> dict[str, Callable[[], Any]]:
    solver = jaxsgd.Solver(jaxsgd.RowsLoss(losses), jaxsgd.Shuffled(BATCH), jaxsgd.SGD(RATE))
    state = solver.init(params, data, key=jax.random.key(0))
    step = jax.jit(solver.step)

    def loop() -> Any:
        after = state
        for _ in range(STEPS):
            after, _ = step(after, data)
        return after

    return {
        "jaxsgd.run": partial(jaxsgd.run, solver, state, data, STEPS),
        "jaxsgd.chunks": lambda: next(jaxsgd.chunks(solver, state, data, STEPS)),
        "jax.jit(solver.step), called from Python": loop,
    }


def main() -> None:
    rounds = rounds_asked(__doc__, 7)
    rng = np.random.default_rng(0)
    images = rng.random((6_000, 28, 28, 1), np.float32)
    data = jax.device_put((images, rng.integers(0, 10, 6_000).astype(np.int32)))
    title = f"a CNN of 2 convolutions, batch {BATCH}, 28 x 28"
    report(title, ours(data) | by_hand(data), STEPS, rounds)


if __name__ == "__main__":
    main()
