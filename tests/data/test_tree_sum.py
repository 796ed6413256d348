"""With `reproducible`, a run's bits do not depend on the number of devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxsgd
from jaxsgd.data.tree_sum import sum_of_parts
from tests.table import key_data

N, WIDTH = 200, 64  # 8 shards of 25 rows
DEVICES = (1, 2, 4, 8)


def mesh(count):
    return jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, WIDTH)).astype(np.float32)
    return x, rng.integers(0, 10, N).astype(np.int32)


def made(name, *shape):
    return 0.1 * jax.random.normal(jax.random.fold_in(jax.random.key(1), len(name)), shape)


entropy = optax.softmax_cross_entropy_with_integer_labels


def softmax(params, row):
    return entropy(row[0] @ params["last"] + params["bias"], row[1])


def perceptron(params, row):
    return entropy(jnp.tanh(row[0] @ params["first"]) @ params["last"] + params["bias"], row[1])


def normalised(params, row):
    hidden = row[0] @ params["first"]
    hidden = (hidden - hidden.mean()) / jnp.sqrt(hidden.var() + 1e-5)
    weight = jax.nn.softmax(hidden.reshape(4, 8) @ hidden.reshape(4, 8).T / jnp.sqrt(8.0))
    hidden = jax.nn.gelu(weight @ hidden.reshape(4, 8)).ravel()
    return entropy(hidden @ params["last"] + params["bias"], row[1])


def keyed(params, row, key):
    kept = jax.random.bernoulli(key, 0.5, (WIDTH,))
    return perceptron(params, (row[0] * kept, row[1]))


def counting(params, row, model_state):
    return softmax(params, row), 0.9 * model_state + 0.1 * row[0][0]


def convolutional(params, rows):
    images = rows[0].reshape(-1, 8, 8, 1)
    order = ("NHWC", "HWIO", "NHWC")
    hidden = lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=order
    )
    logits = jax.nn.relu(hidden).reshape(len(images), -1) @ params["last"] + params["bias"]
    return entropy(logits, rows[1])


BIAS = {"bias": jnp.zeros(10)}
LINEAR = BIAS | {"last": made("last", WIDTH, 10)}
LAYERS = BIAS | {"first": made("first", WIDTH, 32), "last": made("last", 32, 10)}
CONVOLUTION = BIAS | {"kernel": made("kernel", 3, 3, 1, 8), "last": made("last", 128, 10)}
CASES = {
    "softmax": (softmax, LINEAR, jaxsgd.Momentum(0.05, 0.9)),
    "perceptron": (perceptron, LAYERS, optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.01))),
    "layer norm and attention": (normalised, LAYERS, optax.adamw(0.01)),
    "keyed": (jaxsgd.RowLoss(keyed, keyed=True), LAYERS, jaxsgd.EMA(jaxsgd.Adam(0.01), 0.9)),
    "model state": (jaxsgd.RowLoss(counting, has_model_state=True), LINEAR, jaxsgd.RMSProp(0.01)),
    "line search": (softmax, LINEAR, jaxsgd.LineSearch()),
    "convolutional": (jaxsgd.RowsLoss(convolutional), CONVOLUTION, jaxsgd.Nesterov(0.05, 0.9)),
    "accumulated": (jaxsgd.Accumulated(perceptron, 2), LAYERS, jaxsgd.Adam(0.01)),
    "clipped": (jaxsgd.PerExampleClipped(softmax, 1.0), LINEAR, jaxsgd.SGD(0.1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_number_of_devices_does_not_change_a_bit(name):
    gradient, params, rule = CASES[name]
    model_state = jnp.zeros(()) if name == "model state" else None
    sample_weight = np.linspace(0.5, 1.5, N).astype(np.float32)
    record = lambda state, info: (info.loss, info.grad_norm, info.update_norm)  # noqa: E731

    def ends(count):
        rows = jaxsgd.MeshRows(data(), mesh(count), reproducible=True)
        solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(64), rule, jaxsgd.L2(0.01), sample_weight)
        state = solver.init(params, rows, key=jax.random.key(0), model_state=model_state)
        state, trace = jaxsgd.run(solver, state, rows, 10, record)
        return jax.device_get((key_data(state), trace))

    first, *others = map(ends, DEVICES if name == "perceptron" else (1, 8))
    for other in others:
        chex.assert_trees_all_equal(first, other)
    assert np.isfinite(first[1][0]).all()


def test_nor_of_a_fit_or_an_evaluation():
    def ends(count):
        rows = jaxsgd.MeshRows(data(), mesh(count), reproducible=True)
        result = jaxsgd.fit(perceptron, LAYERS, rows, key=jax.random.key(0), epochs=3, batch_size=64,
                            learning_rate=0.1, validation=rows, progress=False)  # fmt: skip
        weight = np.arange(N, dtype=np.float32)
        mean = jaxsgd.evaluate(perceptron, result.params, rows, sample_weight=weight, batch_size=7)
        losses = result.history["loss"], result.history["validation_loss"]
        return jax.device_get((result.params, losses, mean))

    one, many = ends(1), ends(4)
    chex.assert_trees_all_equal(one, many)
    plain = jaxsgd.evaluate(
        perceptron, one[0], data(), sample_weight=np.arange(N, dtype=np.float32)
    )
    np.testing.assert_allclose(one[2], plain, rtol=1e-5)


def test_it_is_the_plain_run_but_for_rounding():
    def end(**options):
        rows = jaxsgd.MeshRows(data(), mesh(4), **options)
        solver = jaxsgd.Solver(perceptron, jaxsgd.Shuffled(64), jaxsgd.Momentum(0.1, 0.5))
        state = solver.init(LAYERS, rows, key=jax.random.key(0))
        return jaxsgd.run(solver, state, rows, 10)[0].params

    plain, tree = end(), end(reproducible=True)
    chex.assert_trees_all_close(plain, tree, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_are_added_in_a_balanced_tree(parts):
    values = np.random.default_rng(0).normal(size=parts).astype(np.float32) * 10.0 ** np.arange(
        parts
    )
    values = jnp.asarray(values, jnp.float32)
    total, last = jax.jit(
        lambda: sum_of_parts(lambda i, _: (values[i], i), parts, jnp.zeros((), jnp.int32))
    )()
    expected = np.asarray(values)
    while len(expected) > 1:
        expected = expected[::2] + expected[1::2]
    assert total == expected[0]
    assert last == parts - 1


def test_reproducible_runs_can_be_differentiated():
    rows = jaxsgd.MeshRows(data(), mesh(2), reproducible=True)

    def final(rate):
        solver = jaxsgd.Solver(softmax, jaxsgd.Shuffled(64), jaxsgd.SGD(rate))
        state = solver.init(LINEAR, rows, key=jax.random.key(0))
        return jnp.sum(jaxsgd.run(solver, state, rows, 3)[0].params["last"] ** 2)

    slope = jax.grad(final)(0.1)
    np.testing.assert_allclose(slope, (final(0.101) - final(0.099)) / 0.002, rtol=2e-2)


def test_a_line_search_on_a_mesh_is_differentiated_forward():
    rows = jaxsgd.MeshRows(data(), mesh(2))

    def final(scale):
        solver = jaxsgd.Solver(softmax, jaxsgd.Shuffled(64), jaxsgd.LineSearch())
        start = jax.tree.map(lambda x: scale * x, LINEAR)
        state = solver.init(start, rows, key=jax.random.key(0))
        return jnp.sum(jaxsgd.run(solver, state, rows, 2)[0].params["last"] ** 2)

    slope = jax.jacfwd(final)(1.0)
    np.testing.assert_allclose(slope, (final(1.01) - final(0.99)) / 0.02, rtol=5e-2)


def test_shards_are_a_power_of_two():
    with pytest.raises(
        ValueError, match="shards are 12, expected a power of two with reproducible"
    ):
        jaxsgd.MeshRows(data(), mesh(4), shards=12, reproducible=True)
