"""What the lecture proves, measured: first-order form, rates, noise, floors, critical points."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.problems import quadratic

# the first-order form x_t = x_0 + sum_i Gamma_i g_i: rows are the gradients themselves


def linear(params, row):
    return params @ row


def drive(rule, grads, record=lambda state, info: state.params):
    """A run whose gradients are given: row t is that of step t."""
    solver = jaxsgd.Solver(linear, jaxsgd.Sequential(1), rule)
    state = solver.init(jnp.zeros(grads.shape[1], grads.dtype), grads, key=jax.random.key(0))
    return jaxsgd.run(solver, state, grads, len(grads), record)


T, A, M = 12, 0.1, 0.7
AGES = T - np.arange(T)
COEFFICIENTS = {
    "sgd": (jaxsgd.SGD(A), -A + 0 * AGES),
    "sgd schedule": (jaxsgd.SGD(jaxsgd.InverseTimeDecay(A, 0.3)), -A / (1 + 0.3 * np.arange(T))),
    "momentum": (jaxsgd.Momentum(A, M), -A * (1 - M**AGES) / (1 - M)),
    "momentum schedule": (
        jaxsgd.Momentum(jaxsgd.InverseTimeDecay(A, 0.3), M),
        -A / (1 + 0.3 * np.arange(T)) * (1 - M**AGES) / (1 - M),
    ),
    "nesterov": (jaxsgd.Nesterov(A, M), -A * (1 - M ** (AGES + 1)) / (1 - M)),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_linear_rules_have_their_closed_form_coefficients(name):
    rule, expected = COEFFICIENTS[name]
    with jax.enable_x64(True):
        grads = jnp.asarray(np.random.default_rng(0).normal(size=(T, 2)))
        gamma = jax.jacrev(lambda g: drive(rule, g)[0].params)(grads)  # [2, T, 2]
    np.testing.assert_allclose(gamma[0, :, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(gamma[1, :, 1], expected, rtol=1e-12)
    assert not gamma[0, :, 1].any()


def test_adaptive_rules_have_diagonal_coefficients_that_their_states_tell():
    with jax.enable_x64(True):
        grads = jnp.asarray(np.random.default_rng(0).normal(size=(T, 2)))
        record = lambda state, info: (state.params, state.rule.square)  # noqa: E731
        ada, (_, square) = drive(jaxsgd.AdaGrad(A), grads, record)
        np.testing.assert_allclose(square, np.cumsum(grads**2, axis=0), rtol=1e-12)
        gamma = -A / (np.sqrt(square) + 1e-7)
        np.testing.assert_allclose(ada.params, (gamma * grads).sum(0), rtol=1e-12)
        b1, b2 = 0.8, 0.9
        adam, (_, square) = drive(jaxsgd.Adam(A, b1, b2), grads, record)
        t = np.arange(1, T + 1)[:, None]
        scale = -A / (1 - b1**t) / (np.sqrt(square / (1 - b2**t)) + 1e-8)
        gamma = [sum((1 - b1) * b1 ** (j - i) * scale[j] for j in range(i, T)) for i in range(T)]
        np.testing.assert_allclose(adam.params, (np.array(gamma) * grads).sum(0), rtol=1e-12)


def test_a_constant_gradient_is_stepped_along_at_rate_over_one_minus_momentum():
    _, steps = drive(
        jaxsgd.Momentum(A, M), jnp.tile(jnp.array([3.0, 4.0]), (60, 1)), lambda s, i: i.update_norm
    )
    np.testing.assert_allclose(steps[-1], A * 5 / (1 - M), rtol=1e-5)
    assert (np.diff(steps) > -1e-6).all()


# the quadratic: rates and the end of stability


@partial(jax.jit, static_argnames="steps")
@partial(jax.vmap, in_axes=(0, 0, 0, None))
def distances(eigenvalues, rate, momentum, steps):
    """The distance from the minimum (the larger coordinate) after each step."""
    problem = quadratic(eigenvalues)
    solver = jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.Momentum(rate, momentum))
    state = solver.init(problem.params, problem.data, key=jax.random.key(0))
    record = lambda state, info: jnp.max(jnp.abs(state.params))  # noqa: E731
    return jaxsgd.run(solver, state, problem.data, steps, record)[1]


def best(low, high):
    """The best rate, and the best rate and momentum, of Polyak (1964)."""
    root_low, root_high = np.sqrt(low), np.sqrt(high)
    ratio = (root_high - root_low) / (root_high + root_low)
    return (2 / (low + high), 0.0), ((2 / (root_low + root_high)) ** 2, ratio**2)


def test_best_rates_contract_as_the_formulas_say_and_stability_ends_where_they_say():
    cases = []
    for k in (10, 100, 1000):
        low, high = 0.5, 0.5 * k
        plain, heavy = best(low, high)
        root = np.sqrt(k)
        cases.append((low, high, *plain, (k - 1) / (k + 1), 1))
        # the best momentum makes a double root: t rho^t, so the factor t is divided out
        cases.append((low, high, *heavy, (root - 1) / (root + 1), 2))
        cases += [
            (low, high, 1.98 / high, 0.0, None, 0),
            (low, high, 2.02 / high, 0.0, None, np.inf),
        ]
        edge = (2 + 2 * 0.6) / high
        cases += [
            (low, high, 0.98 * edge, 0.6, None, 0),
            (low, high, 1.02 * edge, 0.6, None, np.inf),
        ]
    with jax.enable_x64(True):
        columns = np.array([case[:4] for case in cases]).T
        path = np.asarray(distances(columns[:2].T, *columns[2:], 2000))
    for (*_, expected, kind), x in zip(cases, path, strict=True):
        if kind == 0:
            assert x[-1] < x[0]
        elif kind == np.inf:
            assert x[-1] > 1e3 * x[0]
        else:
            half = 300 if expected < 0.99 else 1000
            measured = (x[2 * half - 1] / x[half - 1] / kind) ** (1 / half)
            np.testing.assert_allclose(1 - measured, 1 - expected, rtol=0.01)


def test_gradient_descent_needs_steps_in_proportion_to_k_log_1_over_rho():
    ks, goals = np.array([20, 40, 80, 160]), 10.0 ** -np.arange(2, 8)
    with jax.enable_x64(True):
        eigenvalues = np.stack([np.ones(4), ks], axis=1)
        path = np.asarray(distances(eigenvalues, 1 / ks, np.zeros(4), 3000))
    steps = np.array([[np.argmax(x < goal) for goal in goals] for x in path])
    by_goal = np.polyfit(np.log(1 / goals), steps[-1], 1)
    np.testing.assert_allclose(by_goal[0], ks[-1], rtol=0.02)  # k steps a factor e
    by_k = np.polyfit(np.log(ks), np.log(steps[:, -1]), 1)
    np.testing.assert_allclose(by_k[0], 1, atol=0.03)


# stochastic gradients of a mean: rows are targets, the minimum is their mean


def squared(theta, y):
    return (theta - y) ** 2 / 2


TARGETS = np.random.default_rng(1).normal(size=64).astype(np.float32)
TARGETS -= TARGETS.mean()


@partial(jax.jit, static_argnames=("schedule", "steps", "every"))
@partial(jax.vmap, in_axes=(None, None, 0, None, None, None))
def gaps(schedule, rate, key, decay, steps, every):
    """The squared distance of theta and of its average from the minimum, along a run."""
    rate = schedule(rate, decay) if schedule else rate
    rule = jaxsgd.TailAverage(jaxsgd.SGD(rate), 100)
    solver = jaxsgd.Solver(squared, jaxsgd.WithReplacement(1), rule)
    data = jnp.asarray(TARGETS)
    state = solver.init(jnp.ones(()), data, key=key)
    record = lambda state, info: (state.params**2, jaxsgd.averaged(state) ** 2)  # noqa: E731
    return jaxsgd.run(solver, state, data, steps, record, every)[1]


def test_a_constant_rate_hovers_at_a_floor_decaying_rates_and_averages_go_below_it():
    keys = jax.random.split(jax.random.key(0), 200)
    floors = []
    for rate in (0.05, 0.1, 0.2):
        here, average = (np.asarray(x) for x in gaps(None, rate, keys, 0.0, 2000, 10))
        floors.append(here[:, 100:].mean())
        # rate / (2 - rate) of the variance of one row
        np.testing.assert_allclose(floors[-1], rate / (2 - rate) * TARGETS.var(), rtol=0.05)
        assert average[:, -1].mean() < 0.2 * floors[-1]
    assert floors[0] < 0.6 * floors[1] < 0.36 * floors[2]
    decaying, _ = gaps(jaxsgd.InverseTimeDecay, 1.0, keys, 1.0, 2000, 10)
    t = np.arange(10, 2001, 10)[10:]
    gap = np.asarray(decaying).mean(axis=0)[10:]
    assert gap[-1] < 0.1 * floors[0]
    slope = np.polyfit(np.log(t), np.log(gap), 1)[0]  # O(1 / rho) steps to a gap of rho
    np.testing.assert_allclose(slope, -1, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("b", [1, 4, 16, 64])
def test_the_variance_of_a_batchs_gradient_falls_as_the_formulas_say(b):
    n, keys = len(TARGETS), jax.random.split(jax.random.key(1), 20_000)

    @jax.jit
    @jax.vmap
    def means(key):
        def mean(sampler):
            index, weight = sampler.batch(key, 0)
            return weight @ jnp.asarray(TARGETS)[index]

        return mean(jaxsgd.Shuffled(b, size=n)), mean(jaxsgd.WithReplacement(b, size=n))

    without, with_ = (np.var(np.asarray(x, np.float64)) / TARGETS.var() for x in means(keys))
    np.testing.assert_allclose(with_, 1 / b, rtol=0.05)
    np.testing.assert_allclose(without, (1 - (b - 1) / (n - 1)) / b, rtol=0.05, atol=1e-12)


# critical points


def surface(theta, row):
    """A saddle at 0, minima at (0, 1) and (0, -1)."""
    x, y = theta
    return x**2 / 2 + y**4 / 4 - y**2 / 2 + 0 * row


def test_the_gradient_is_orthogonal_to_level_curves():
    value = partial(surface, row=0.0)
    for point in (jnp.array([0.3, 0.4]), jnp.array([-1.0, 0.2])):
        gx, gy = jax.grad(value)(point)
        along = jnp.array([-gy, gx])
        _, change = jax.jvp(value, (point,), (along,))
        np.testing.assert_allclose(change, 0, atol=1e-6)
        _, steepest = jax.jvp(value, (point,), (jnp.array([gx, gy]),))
        np.testing.assert_allclose(steepest, gx**2 + gy**2, rtol=1e-5)


def test_descent_rests_at_a_saddle_and_noise_leaves_it():
    def noisy(theta, row):  # noise of mean 0 over the rows
        return surface(theta, row) + 0.01 * row * theta[1]

    rows = jnp.array([-1.0, 1.0])

    @partial(jax.jit, static_argnames="sampler")
    @jax.vmap
    def end(key, sampler=None):
        sampler = sampler or jaxsgd.FullBatch()
        solver = jaxsgd.Solver(noisy, sampler, jaxsgd.SGD(0.1))
        state = solver.init(jnp.array([1.0, 0.0]), rows, key=key)
        return jaxsgd.run(solver, state, rows, 300)[0].params

    keys = jax.random.split(jax.random.key(0), 8)
    np.testing.assert_allclose(end(keys), 0, atol=1e-6)
    left = end(keys, sampler=jaxsgd.WithReplacement(1))
    np.testing.assert_allclose(abs(left[:, 1]), 1, atol=0.05)


def test_partial_derivatives_are_no_gradient():
    """x^2 y / (x^2 + y^2) has both at 0, and directional derivatives that no gradient gives."""

    def f(x, y):
        return x**2 * y / (x**2 + y**2)

    h = 1e-3
    assert (f(h, 0.0) / h, f(0.0, h) / h) == (0, 0)
    diagonal = f(h, h) / h
    np.testing.assert_allclose(diagonal, 0.5)  # a gradient (0, 0) would say 0


def test_exact_line_search_on_a_quadratic_zigzags_as_kantorovich_says():
    """From the worst start the gap falls by ((k - 1) / (k + 1))^2 a step, exactly."""
    k = 10.0
    problem = quadratic([1.0, k])
    solver = jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.LineSearch())
    with jax.enable_x64(True):
        start, data = jnp.array([k, 1.0]), jnp.asarray(problem.data, float)
        state = solver.init(start, data, key=jax.random.key(0))
        record = lambda state, info: (state.params, info.loss, info.learning_rate)  # noqa: E731
        _, (path, loss, rates) = jaxsgd.run(solver, state, data, 20, record)
    np.testing.assert_allclose(loss[1:] / loss[:-1], ((k - 1) / (k + 1)) ** 2, rtol=1e-9)
    np.testing.assert_allclose(rates, 2 / (1 + k), rtol=1e-9)
    grads = np.asarray(path) * [1.0, k]
    np.testing.assert_allclose(
        (grads[1:] * grads[:-1]).sum(1) / (grads[:-1] ** 2).sum(1), 0, atol=1e-9
    )
