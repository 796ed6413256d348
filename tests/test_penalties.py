"""Penalties as gradients and as proximal steps."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxsgd
from tests import table

DATA = table.problem()[1]
W = {"bias": jnp.float32(0.3), "weight": jnp.array([0.5, -1.0, 2.0])}


def test_l2_is_half_the_strength_times_the_sum_of_squares():
    params = {"bias": jnp.float32(2.0), "layers": (jnp.array([1.0, -2.0]), jnp.full((2, 2), 3.0))}
    value, slope = jax.jit(jax.value_and_grad(jaxsgd.L2(0.1)))(params)
    assert float(value) == pytest.approx(0.05 * (4 + 5 + 36))
    chex.assert_trees_all_close(slope, jax.tree.map(lambda x: 0.1 * x, params), rtol=1e-6)
    assert jax.tree.leaves(jaxsgd.L2(0.1)) == [0.1]
    assert float(jax.grad(lambda s: jaxsgd.L2(s)(params))(0.1)) == pytest.approx(22.5)
    assert float(jaxsgd.L2(0)(params)) == 0


def test_l2s_mask_is_a_prefix_of_the_parameters():
    params = {"bias": jnp.float32(2.0), "layers": (jnp.array([1.0, -2.0]), jnp.full((2, 2), 3.0))}
    mask = lambda params: {"bias": False, "layers": True}  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(jaxsgd.L2(0.1, mask=mask)))(params)
    assert float(value) == pytest.approx(0.05 * 41)
    expected = jax.tree.map(lambda x: 0.1 * x, params) | {"bias": jnp.float32(0.0)}
    chex.assert_trees_all_close(slope, expected, rtol=1e-6)
    none = jaxsgd.L2(0.1, mask=lambda params: jax.tree.map(lambda _: False, params))(params)
    assert (float(none), none.dtype) == (0, jnp.float32)


def test_l2_is_computed_in_the_accumulators_dtype():
    penalty = jax.jit(jaxsgd.L2(0.1))(jnp.full(1000, 1.01, jnp.bfloat16))
    assert penalty.dtype == jnp.float32
    assert float(penalty) == pytest.approx(50 * float(jnp.bfloat16(1.01)) ** 2, rel=1e-5)
    with jax.enable_x64(True):
        assert jaxsgd.L2(0.1)(jnp.ones(2, jnp.float64)).dtype == jnp.float64
        assert jaxsgd.L2(0.1)(jnp.ones(2, jnp.float32)).dtype == jnp.float32
        masked = jaxsgd.L2(0.1, mask=lambda params: False)
        assert masked(jnp.ones(2, jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("strength", [-0.1, float("nan"), jnp.array(-1.0), np.array([0.1, -0.1])])
def test_a_negative_strength_is_refused(strength):
    with pytest.raises(ValueError, match=r"L2's strength is .*, expected at least 0"):
        jaxsgd.L2(strength)


def test_a_strength_that_is_no_number_is_refused():
    for strength in ("strong", True, 1j):
        with pytest.raises(TypeError, match=r"L2's strength is .*, expected a"):
            jaxsgd.L2(strength)


@pytest.mark.parametrize(
    "sampler", [jaxsgd.Sequential(1), jaxsgd.Sequential(8), jaxsgd.FullBatch()]
)
def test_the_penalty_enters_once_a_step_whatever_the_batch(sampler):
    """With a loss that is flat, each step shrinks the parameters by 1 - rate * strength."""
    flat = lambda params, row: 7.0 + 0 * row[1]  # noqa: E731
    solver = jaxsgd.Solver(flat, sampler, jaxsgd.SGD(0.5), jaxsgd.L2(0.2))
    state = solver.init(W, DATA, key=jax.random.key(0))
    state, info = jaxsgd.run(solver, state, DATA, 5, record=lambda state, info: info)
    chex.assert_trees_all_close(state.params, jax.tree.map(lambda x: 0.9**5 * x, W), rtol=1e-5)
    squares = 0.3**2 + 0.5**2 + 1 + 4
    np.testing.assert_allclose(info.loss, 7.0, rtol=1e-6)
    np.testing.assert_allclose(info.penalty, 0.1 * squares * 0.81 ** np.arange(5), rtol=1e-5)
    np.testing.assert_allclose(
        info.grad_norm, 0.2 * np.sqrt(squares) * 0.9 ** np.arange(5), rtol=1e-5
    )


def test_info_tells_loss_and_penalty_apart_and_the_gradient_is_of_both():
    solver = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1), jaxsgd.L2(0.2))
    state = solver.init(W, DATA, key=jax.random.key(0))
    state, info = jaxsgd.run(solver, state, DATA, 1, record=lambda state, info: info)
    x, y = (np.asarray(a, np.float64) for a in DATA)
    residual = x @ np.asarray(W["weight"]) + 0.3 - y
    loss = np.mean(residual**2) / 2
    grads = {"bias": residual.mean(), "weight": x.T @ residual / len(y)}
    np.testing.assert_allclose(info.loss[0], loss, rtol=1e-5)
    np.testing.assert_allclose(info.penalty[0], 0.1 * (0.3**2 + 0.5**2 + 1 + 4), rtol=1e-5)
    grads = jax.tree.map(lambda g, w: g + 0.2 * np.asarray(w), grads, W)
    expected = jax.tree.map(lambda g, w: np.asarray(w) - 0.1 * g, grads, W)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5)


def test_a_penalty_is_any_function_of_the_parameters_to_a_scalar():
    lasso = Partial(lambda strength, params: strength * jnp.abs(params).sum(), jnp.float32(0.5))
    solver = jaxsgd.Solver(lambda w, row: 0 * row, jaxsgd.FullBatch(), jaxsgd.SGD(0.1), lasso)
    y = jnp.ones(2)
    state, _ = jaxsgd.run(
        solver, solver.init(jnp.array([1.0, -2.0]), y, key=jax.random.key(0)), y, 2
    )
    np.testing.assert_allclose(state.params, [0.9, -1.9], rtol=1e-6)
    solver = jaxsgd.Solver(lambda w, row: 0 * row, jaxsgd.FullBatch(), jaxsgd.SGD(0.1), jnp.abs)
    with pytest.raises(
        TypeError, match=r"penalty .* returned an array of shape \(2,\), expected a scalar"
    ):
        jaxsgd.run(solver, solver.init(jnp.ones(2), y, key=jax.random.key(0)), y, 1)
    with pytest.raises(TypeError, match=r"penalty is 0.1 of type float, expected a function"):
        jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1), 0.1)


# L1, elastic nets, and what a proximal step is


def test_l1_and_the_elastic_net_are_their_sums():
    params = {"bias": jnp.float32(2.0), "weight": jnp.array([1.0, -3.0, 0.0])}
    only = jaxsgd.models.weights_only
    assert float(jaxsgd.L1(0.5)(params)) == 3.0
    assert float(jaxsgd.L1(0.5, mask=only)(params)) == 2.0
    assert float(jaxsgd.ElasticNet(0.5, 0.1, mask=only)(params)) == pytest.approx(2.0 + 0.5)
    slope = jax.grad(jaxsgd.L1(0.5))(params)
    assert slope["weight"].tolist() == [0.5, -0.5, 0.0]  # the subgradient at 0 is 0
    for penalty in (jaxsgd.L1(0.5), jaxsgd.ElasticNet(0.5, 0.1)):
        assert penalty(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
    net = jaxsgd.ElasticNet(0.5, 1.0, mask=only).prox(params, 1.0)  # a Python rate does too
    assert (float(net["bias"]), net["weight"].tolist()) == (2.0, [0.25, -1.25, 0.0])
    with pytest.raises(ValueError, match="ElasticNet's l2 is -1, expected at least 0"):
        jaxsgd.ElasticNet(0.1, -1)


@pytest.mark.parametrize("penalty", [jaxsgd.L2(0.7), jaxsgd.L1(0.7), jaxsgd.ElasticNet(0.4, 0.5)])
def test_prox_is_the_minimiser_it_is_defined_as(penalty):
    grid = jnp.linspace(-3, 3, 60_001)
    rate = 0.8
    objective = jax.vmap(penalty)(grid[:, None])
    points = jnp.array([-2.0, -0.5, 0.0, 0.1, 1.7])
    found = [grid[jnp.argmin(objective + (grid - z) ** 2 / (2 * rate))] for z in points]
    np.testing.assert_allclose(penalty.prox(points, jnp.float32(rate)), found, atol=5e-4)


def lasso_optimum(x, y, strength):
    """Coordinate descent in float64, on |y - x w|^2 / (2 n) + strength |w|_1."""
    w, n = np.zeros(x.shape[1]), len(y)
    for _ in range(2000):
        for j in range(len(w)):
            slope = x[:, j] @ (y - x @ w + x[:, j] * w[j]) / n
            w[j] = np.sign(slope) * max(abs(slope) - strength, 0) / (x[:, j] @ x[:, j] / n)
    return w


@pytest.mark.parametrize(
    "inner", [jaxsgd.SGD(0.3), jaxsgd.Momentum(0.1, 0.8)], ids=["sgd", "momentum"]
)
def test_proximal_steps_reach_the_lasso_with_exact_zeros(inner):
    """Momentum too: a velocity that did not know of the proximal step would rest elsewhere."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 6))
    y = x @ [2.0, 0, 0, -1.0, 0, 0] + 0.1 * rng.normal(size=40)
    strength = 0.3
    loss = lambda w, row: (row[0] @ w - row[1]) ** 2 / 2  # noqa: E731
    with jax.enable_x64(True):
        data = jnp.asarray(x), jnp.asarray(y)
        rule = jaxsgd.Proximal(inner, jaxsgd.L1(strength))
        solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), rule)
        state = solver.init(jnp.ones(6), data, key=jax.random.key(0))
        state, info = jaxsgd.run(solver, state, data, 400, lambda state, info: info)
        expected = lasso_optimum(x, y, strength)
        np.testing.assert_allclose(state.params, expected, rtol=1e-9, atol=0)
        assert (state.params == 0).sum() >= 3
        # Info tells the proximal penalty as well
        np.testing.assert_allclose(info.penalty[-1], strength * abs(expected).sum(), rtol=1e-6)
        assert info.learning_rate[-1] == inner.learning_rate


def test_a_proximal_step_uses_the_rate_in_use_and_leaves_the_masked_alone():
    flat = lambda params, row: 0 * row[1]  # noqa: E731
    penalty = jaxsgd.L1(1.0, mask=jaxsgd.models.weights_only)
    schedule = jaxsgd.StepDecay(0.2, 0.5, 1)
    solver = jaxsgd.Solver(flat, jaxsgd.FullBatch(), jaxsgd.Proximal(jaxsgd.SGD(schedule), penalty))
    state = solver.init(W, DATA, key=jax.random.key(0))
    state, path = jaxsgd.run(solver, state, DATA, 4, lambda state, info: state.params)
    np.testing.assert_allclose(path["weight"][:, 0], [0.3, 0.2, 0.15, 0.125], rtol=1e-5)
    np.testing.assert_allclose(path["bias"], 0.3)
    narrow = jnp.array([1.0, 0.01], jnp.bfloat16)
    rule = jaxsgd.Proximal(jaxsgd.SGD(0.1), jaxsgd.L1(1.0))
    updates, _ = rule.update(0 * narrow, rule.init(narrow), narrow)
    assert updates.dtype == jnp.float32
    assert float((narrow + updates)[1]) == 0


def test_rules_without_one_rate_are_refused():
    with pytest.raises(
        TypeError, match="Proximal was given the rule Adam.*expected SGD or Momentum"
    ):
        jaxsgd.Proximal(jaxsgd.Adam(), jaxsgd.L1(0.1))
    with pytest.raises(TypeError, match="expected one with prox"):
        jaxsgd.Proximal(jaxsgd.SGD(0.1), lambda params: 0.0)
    rule = jaxsgd.Proximal(jaxsgd.SGD(0.1), jaxsgd.L1(0.1))
    with pytest.raises(ValueError, match="Proximal.update was given no params"):
        rule.update(jnp.ones(2), rule.init(jnp.ones(2)))
