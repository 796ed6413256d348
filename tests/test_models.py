"""The plain models: shapes, forward passes, initialisations, and what they refuse."""

import dataclasses
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd


def filled(shapes, seed=0):
    """Random parameters of the shapes of others."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes)


@jax.jit
def start(model, key):
    return model.init(key)


def init(model, seed=0):
    return start(model, jax.random.key(seed))


# shapes and forward passes


@pytest.mark.parametrize(("outputs", "tail"), [(None, ()), (1, (1,)), (4, (4,))])
def test_linear_is_a_product_and_a_bias(outputs, tail):
    model = jaxsgd.models.Linear(3, outputs)
    params = init(model)
    chex.assert_shape([params["weight"], params["bias"]], [(*tail, 3), tail])
    chex.assert_type(jax.tree.leaves(params), jnp.float32)
    params = filled(params)
    rows = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    expected = rows @ np.asarray(params["weight"]).T + np.asarray(params["bias"])
    assert model(params, rows[0]).shape == tail
    np.testing.assert_allclose(model(params, rows[0]), expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(params, rows), expected, rtol=1e-5, atol=1e-6)
    by_row = jax.vmap(model, (None, 0))(params, rows)
    np.testing.assert_allclose(by_row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 2), (3, 8, 6, 4)])
def test_mlp_is_linear_layers_with_relu_between(sizes):
    model = jaxsgd.models.MLP(sizes)
    params = init(model)
    assert len(params) == len(sizes) - 1
    for layer, fan_in, fan_out in zip(params, sizes[:-1], sizes[1:], strict=True):
        chex.assert_shape([layer["weight"], layer["bias"]], [(fan_out, fan_in), (fan_out,)])
        assert not layer["bias"].any()
        assert layer["weight"].any()
    chex.assert_type(jax.tree.leaves(params), jnp.float32)
    params = filled(params)
    rows = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    out = rows
    for i, layer in enumerate(params):
        out = out @ np.asarray(layer["weight"]).T + np.asarray(layer["bias"])
        out = np.maximum(out, 0) if i < len(params) - 1 else out
    assert (out < 0).any()  # or a relu on the outputs would pass
    assert model(params, rows[0]).shape == sizes[-1:]
    np.testing.assert_allclose(model(params, rows[0]), out[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(params, rows), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [None, jnp.tanh])
def test_mlp_takes_another_activation_or_none(activation):
    model = jaxsgd.models.MLP((3, 8, 4), activation=activation)
    (first, second), x = (params := filled(init(model))), jnp.arange(3.0)
    hidden = x @ first["weight"].T + first["bias"]
    hidden = hidden if activation is None else jnp.tanh(hidden)
    expected = hidden @ second["weight"].T + second["bias"]
    np.testing.assert_allclose(model(params, x), expected, rtol=1e-5)
    # and the gradients that are made of errors and inputs are those of the loss
    loss = jaxsgd.models.ModelLoss(model, lambda out, y: jnp.sum((out - y) ** 2))
    rows = jnp.stack([x, x + 1]), jnp.zeros((2, 4))
    _, errors, inputs = loss.errors(params, rows)
    grads = jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, rows).sum())
    chex.assert_trees_all_close(loss.summed(errors, inputs), grads(params), rtol=1e-4)


def test_dropout_leaves_units_out_with_a_key_and_none_without():
    model = jaxsgd.models.MLP((3, 1000, 1), activation=None, dropout=0.25)
    ones = jnp.ones((1000, 3)) / 3, jnp.ones((1, 1000)) / 1000
    params = tuple({"weight": w, "bias": jnp.zeros(len(w))} for w in ones)
    x = jnp.ones(3)
    np.testing.assert_allclose(model(params, x), 1, rtol=1e-5)
    keys = jax.random.split(jax.random.key(0), 400)
    outputs = jax.vmap(lambda key: model(params, x, key)[0])(keys)
    # each of 1,000 units is 0 or 4/3, in the mean 1, of variance 1/3
    np.testing.assert_allclose(outputs.mean(), 1, atol=5 * np.sqrt(1 / 3 / 1000 / 400))
    np.testing.assert_allclose(outputs.var(), 1 / 3 / 1000, rtol=0.4)
    two = jnp.stack([x, x])
    assert float(jnp.ptp(model(params, two, jax.random.key(1)))) > 0  # a mask for each row
    assert jax.tree.leaves(model) == [0.25]
    two_layers = jaxsgd.models.MLP((3, 50, 50, 50), activation=None, dropout=0.5)
    eyes = tuple(
        {"weight": jnp.eye(50)[:, :n], "bias": jnp.full(50, b)}
        for n, b in ((3, 1.0), (50, 0.0), (50, 0.0))
    )
    kept = two_layers(eyes, 0 * x, jax.random.key(4)) > 0
    assert 0.1 < kept.mean() < 0.4  # by two masks, of which one alone keeps a half
    half = jaxsgd.models.MLP((3, 1000, 1), activation=None, dropout=0.001)
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    apart = [
        half(low, x.astype(jnp.bfloat16), key) for key in jax.random.split(jax.random.key(5), 9)
    ]
    assert len({float(out[0]) for out in apart}) > 1  # in bfloat16 a rate of 0.001 would be none
    with pytest.raises(ValueError, match="which is 1 in float32"):
        jaxsgd.models.MLP((3, 2, 1), dropout=1 - 1e-9)
    assert pickle.loads(pickle.dumps(jaxsgd.models.MLP((3, 2, 1)))).activation == "relu"
    same = jaxsgd.models.MLP((3, 1000, 1), activation=None)
    np.testing.assert_array_equal(same(params, x, jax.random.key(2)), same(params, x))
    with pytest.raises(ValueError, match="whose dropout needs a key, expected RowLoss"):
        jaxsgd.models.ModelLoss(model, lambda out, y: 0.0)


def test_a_model_is_static_and_its_parameters_a_tree_of_their_own():
    for model in (jaxsgd.models.Linear(3, 2), jaxsgd.models.MLP([3, 4, 2])):
        assert jax.tree.leaves(model) == []
        params, x = init(model), jnp.ones(3)
        chex.assert_trees_all_close(
            jax.jit(lambda m, p, x: m(p, x))(model, params, x), model(params, x)
        )
        chex.assert_trees_all_equal(params, init(model))


# initialisations


def weights(model, seed=0):
    return [np.asarray(x).ravel() for x in jax.tree.leaves(init(model, seed)) if x.ndim > 1]


def assert_normal(x, deviation):
    """Mean 0 and the given deviation, within 4 standard errors."""
    assert abs(x.mean()) < 4 * deviation / np.sqrt(len(x))
    assert abs(np.mean(x**2) / deviation**2 - 1) < 4 * np.sqrt(2 / len(x))


def test_linear_starts_from_zeros():
    for model in (
        jaxsgd.models.Linear(3),
        jaxsgd.models.Linear(3, 2),
        jaxsgd.models.MLP((3, 2), initialise="zeros"),
    ):
        assert not any(x.any() for x in jax.tree.leaves(init(model)))


def test_normal_has_a_standard_deviation_of_a_hundredth():
    for model in (
        jaxsgd.models.Linear(50, 400, initialise="normal"),
        jaxsgd.models.MLP((50, 200, 50), initialise="normal"),
    ):
        for weight in weights(model):
            assert_normal(weight, 0.01)


def test_lecun_has_the_variance_of_one_over_the_inputs():
    first, second = weights(jaxsgd.models.MLP((50, 200, 30)))
    assert_normal(first, 1 / np.sqrt(50))
    assert_normal(second, 1 / np.sqrt(200))
    assert_normal(weights(jaxsgd.models.Linear(50, 400, initialise="lecun"))[0], 1 / np.sqrt(50))
    alone = init(jaxsgd.models.Linear(5000, initialise="lecun"))["weight"]
    assert_normal(np.asarray(alone), 1 / np.sqrt(5000))


def test_xavier_glorot_and_he_have_their_papers_variances():
    for name in ("xavier", "glorot"):
        first, second = weights(jaxsgd.models.MLP((50, 200, 30), initialise=name))
        assert_normal(first, np.sqrt(2 / 250))
        assert_normal(second, np.sqrt(2 / 230))
    first, second = weights(jaxsgd.models.MLP((50, 200, 30), initialise="he"))
    assert_normal(first, np.sqrt(2 / 50))
    assert_normal(second, np.sqrt(2 / 200))


def test_keys_and_layers_start_apart():
    model = jaxsgd.models.MLP((8, 8, 8))
    first, second = weights(model)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, weights(model, seed=1)[0])


# refusals


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: jaxsgd.models.Linear(0), ValueError, r"Linear's features is 0, expected 1 to"),
        (lambda: jaxsgd.models.Linear(2.0), TypeError, r"Linear's features is 2\.0 of type float"),
        (lambda: jaxsgd.models.Linear(True), TypeError, r"Linear's features is True"),
        (lambda: jaxsgd.models.Linear(3, 0), ValueError, r"Linear's outputs is 0, expected 1 to"),
        (lambda: jaxsgd.models.Linear(3, "2"), TypeError, r"Linear's outputs is '2' of type str"),
        (lambda: jaxsgd.models.Linear(3, initialise="ones"), ValueError, r"initialise is 'ones', expected one of zeros, normal, lecun, xavier"),
        (lambda: jaxsgd.models.MLP((3,)), ValueError, r"MLP's sizes are \(3,\), expected features and outputs"),
        (lambda: jaxsgd.models.MLP((3, 0, 2)), ValueError, r"each of MLP's sizes is 0, expected 1 to"),
        (lambda: jaxsgd.models.MLP((3, 1.5, 2)), TypeError, r"each of MLP's sizes is 1\.5 of type float"),
        (lambda: jaxsgd.models.MLP((3, 4, 2), initialise="zeros"), ValueError, r"hidden units would remain equal"),
        (lambda: jaxsgd.models.MLP((3, 4, 2), initialise="best"), ValueError, r"initialise is 'best', expected one of"),
    ],
)  # fmt: skip
def test_what_is_no_model_is_refused(make, error, told):
    with pytest.raises(error, match=told):
        make()


# the penalty's mask


def test_weights_only_leaves_the_biases_out_of_a_penalty():
    penalty = jaxsgd.L2(0.1, mask=jaxsgd.models.weights_only)
    for model in (
        jaxsgd.models.Linear(3),
        jaxsgd.models.Linear(3, 2),
        jaxsgd.models.MLP((3, 4, 2)),
    ):
        params = filled(init(model))
        chex.assert_trees_all_equal_structs(jaxsgd.models.weights_only(params), params)
        layers = params if isinstance(params, tuple) else (params,)
        squares = sum(float(jnp.sum(layer["weight"] ** 2)) for layer in layers)
        value, slope = jax.value_and_grad(penalty)(params)
        assert float(value) == pytest.approx(0.05 * squares, rel=1e-5)
        for layer, grads in zip(
            layers, slope if isinstance(slope, tuple) else (slope,), strict=True
        ):
            np.testing.assert_allclose(grads["weight"], 0.1 * layer["weight"], rtol=1e-5)
            assert not grads["bias"].any()


def test_weights_only_knows_a_bias_by_its_name_in_any_tree():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Layer:
        weight: jax.Array
        bias: jax.Array

    mask = jaxsgd.models.weights_only({"a": Layer(jnp.ones(2), jnp.ones(1)), "b": [jnp.ones(2)]})
    assert (mask["a"].weight, mask["a"].bias, mask["b"]) == (True, False, [True])


def test_weights_only_of_a_bare_array_is_the_array():
    assert jaxsgd.models.weights_only(jnp.ones(3)) is True
    assert float(jaxsgd.L2(2.0, mask=jaxsgd.models.weights_only)(jnp.ones(3))) == 3


def test_a_model_loss_of_many_numbers_is_refused_by_all_gradients():
    data = jnp.ones((4, 3)), jnp.ones((4, 2))
    model = jaxsgd.models.Linear(3, 2)
    loss = jaxsgd.models.ModelLoss(model, lambda output, y: (output - y) ** 2)
    for gradient in (loss, jaxsgd.SAGA(loss), jaxsgd.PerExampleClipped(loss, 1.0)):
        solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(2), jaxsgd.SGD(0.1))
        state = solver.init(model.init(jax.random.key(0)), data, key=jax.random.key(1))
        with pytest.raises(TypeError, match="expected a scalar"):
            jaxsgd.run(solver, state, data, 1)
