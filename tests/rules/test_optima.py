"""The models of the textbook reach the optimum that other solvers find."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

import jaxsgd


def standardised(x):
    x = x - x.mean(0)
    return x / np.where(x.std(0) > 0, x.std(0), 1)


def synthetic():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 8))
    return standardised(x), x @ rng.normal(size=8) + 3 + rng.normal(size=500)


def diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    return standardised(x), y / y.std()


@pytest.mark.parametrize("rows", [synthetic, diabetes])
def test_linear_regression_with_and_without_tikhonov_is_least_squares(rows):
    x, y = rows()
    n, d = x.shape
    model = jaxsgd.models.Linear(d)
    design = np.column_stack([x, np.ones(n)])
    with jax.enable_x64(True):
        data = jnp.asarray(x), jnp.asarray(y)
        params = {"weight": jnp.zeros(d), "bias": jnp.zeros(())}
        loss = lambda params, row: optax.l2_loss(model(params, row[0]), row[1])  # noqa: E731

        @jax.jit
        def train(strength, rate, momentum):
            penalty = jaxsgd.L2(strength, mask=jaxsgd.models.weights_only)
            rule = jaxsgd.Momentum(rate, momentum)
            solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), rule, penalty)
            state = solver.init(params, data, key=jax.random.key(0))
            return jaxsgd.run(solver, state, data, 3000)[0].params

        for strength in (0.0, 0.1):
            hessian = design.T @ design / n + strength * np.diag([1.0] * d + [0.0])
            expected = np.linalg.solve(hessian, design.T @ y / n)
            low, high = np.sqrt(np.linalg.eigvalsh(hessian)[[0, -1]])
            found = train(strength, (2 / (low + high)) ** 2, ((high - low) / (high + low)) ** 2)
            found = np.append(found["weight"], found["bias"])
            assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["breast cancer, logistic", "digits, softmax"])
def test_classifiers_reach_the_optimum_of_scikit_learns_lbfgs(name):
    """Intercepts unpenalised on both sides; C = 1 / (strength n); float32 here."""
    is_binary = name.startswith("breast")
    load = datasets.load_breast_cancer if is_binary else datasets.load_digits
    x, y = load(return_X_y=True)
    x, strength = standardised(x), 0.01
    n, d = x.shape
    model = jaxsgd.models.Linear(d, None if is_binary else 10)

    def loss(params, row):
        output = model(params, row[0])
        if is_binary:
            return optax.sigmoid_binary_cross_entropy(output, row[1])
        return optax.softmax_cross_entropy_with_integer_labels(output, row[1])

    def objective(weight, bias):
        output = x @ weight.T + bias
        if is_binary:
            output = np.stack([np.zeros(n), output], axis=1)
        shifted = output - output.max(1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(n), y]
        return losses.mean() + strength / 2 * np.sum(weight**2)

    reference = LogisticRegression(C=1 / (strength * n), tol=1e-10, max_iter=10_000).fit(x, y)
    weight, bias = reference.coef_, reference.intercept_
    best = objective(weight[0], bias[0]) if is_binary else objective(weight, bias)
    data = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32 if is_binary else jnp.int32)
    penalty = jaxsgd.L2(strength, mask=jaxsgd.models.weights_only)
    curvature = np.linalg.norm(x, 2) ** 2 / n * (0.25 if is_binary else 0.5) + strength
    rule = jaxsgd.Nesterov(1 / curvature, 0.95)
    solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), rule, penalty)
    state = solver.init(model.init(jax.random.key(0)), data, key=jax.random.key(0))
    state, _ = jaxsgd.run(solver, state, data, 1500)
    found = [np.asarray(state.params[k], np.float64) for k in ("weight", "bias")]
    assert -1e-9 < objective(*found) - best < 1e-6
