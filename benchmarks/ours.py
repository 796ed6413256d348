"""jaxsgd's contenders."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsgd
from benchmarks.tasks import Grid, Shuffle, Training

LOSSES = {
    "linear": optax.squared_error,
    "logistic": optax.sigmoid_binary_cross_entropy,
    "softmax": optax.softmax_cross_entropy_with_integer_labels,
}


def problem(task: Training) -> tuple[Any, Any]:
    """A loss of one row, and the parameters to start from."""
    if task.classes == 1:
        model: Any = jaxsgd.models.Linear(task.features)
    else:
        model = jaxsgd.models.MLP(tuple(task.sizes))
    cost = LOSSES["softmax" if task.model == "mlp" else task.model]
    params = tuple({"weight": w.T, "bias": b} for w, b in task.start())
    if task.classes == 1:
        params = {"weight": params[0]["weight"][0], "bias": params[0]["bias"][0]}
    return lambda params, row: cost(model(params, row[0]), row[1]), jax.device_put(params)


def layers(params: Any) -> Any:
    """The parameters of one run or many on the host, as `(weight, bias)` pairs."""
    if isinstance(params, dict):  # of one output
        return [(np.asarray(params["weight"])[..., None], np.asarray(params["bias"])[..., None])]
    return [(np.asarray(p["weight"]).swapaxes(-1, -2), np.asarray(p["bias"])) for p in params]


def trained(task: Training, data: Any, sampler: Any) -> Callable[[int], Any]:
    loss, params = problem(task)
    solver = jaxsgd.Solver(loss, sampler, jaxsgd.SGD(task.rate))
    data = jax.device_put(data)

    def prepare(seed: int) -> Any:
        state = solver.init(params, data, key=jax.random.key(seed))
        jax.block_until_ready(state)
        return lambda: layers(jaxsgd.run(solver, state, data, task.steps)[0].params)

    return prepare


def shuffled(task: Training, data: Any) -> Any:
    whole = task.batch == task.rows
    return trained(task, data, jaxsgd.FullBatch() if whole else jaxsgd.Shuffled(task.batch))


def sequential(task: Training, data: Any) -> Any:
    return trained(task, data, jaxsgd.Sequential(task.batch))


def grid_point(task: Grid) -> tuple[Any, Any]:
    loss, params = problem(task.one)

    def train(data: Any, params: Any, learning_rate: Any, key: Any) -> Any:
        rule = jaxsgd.SGD(learning_rate)
        solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(task.one.batch), rule)
        state = solver.init(params, data, key=key)
        state, trace = jaxsgd.run(solver, state, data, task.one.steps)
        return state.params, trace.loss[-1]

    return train, params


def sweep(task: Grid, data: Any) -> Any:
    train, params = grid_point(task)
    data = jax.device_put(data)

    def prepare(seed: int) -> Any:
        keys = jax.random.split(jax.random.key(seed), task.seeds)
        over = {"learning_rate": task.learning_rates(), "key": keys}
        run = partial(jaxsgd.sweep, train, data, params, over=over, progress=False)

        def go() -> Any:
            return layers(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), run().value[0]))

        return go

    return prepare


def one_by_one(task: Grid, data: Any) -> Any:
    train, params = grid_point(task)
    train = jax.jit(train)
    data = jax.device_put(data)
    rates = list(jnp.asarray(task.learning_rates()))

    def prepare(seed: int) -> Any:
        keys = list(jax.random.split(jax.random.key(seed), task.seeds))
        run = lambda: [train(data, params, rate, key)[0] for rate in rates for key in keys]  # noqa: E731
        return lambda: layers(jax.tree.map(lambda *x: np.stack(x), *run()))

    return prepare


@partial(jax.jit, static_argnames="task")
def positions(key: Any, task: Shuffle) -> Any:
    """Draw after draw; the last one is returned."""

    def draw(_: Any, start: Any) -> Any:
        where = start + jnp.arange(task.count, dtype=jnp.int32)
        return jaxsgd.permute(key, where, task.rows), None

    starts = jnp.arange(task.times, dtype=jnp.int32) * task.count % (task.rows - task.count + 1)
    return jax.lax.scan(draw, jnp.zeros(task.count, jnp.int32), starts)[0]


def permuted(task: Shuffle, data: None) -> Any:
    def prepare(seed: int) -> Any:
        key = jax.random.key(seed)
        return lambda: np.asarray(positions(key, task))

    return prepare
