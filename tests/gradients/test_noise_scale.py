"""The noise scale: exact over the rows, and without bias from two halves of each batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests import table

MEAN, SCALES = np.array([1.0, -2.0, 0.5]), np.array([2.0, 0.5, 1.0])


def loss(theta, y):
    """Gradients theta - y, of the covariance of the rows."""
    return jnp.sum((theta - y) ** 2) / 2


def normal_rows(n):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(n, 3)) * SCALES + MEAN
    theta = np.array([0.5, 0.5, 0.5])
    variance, signal = y.var(0).sum(), np.sum((theta - y.mean(0)) ** 2)
    return jnp.asarray(theta, float), jnp.asarray(y, float), variance, signal


def test_noise_scale_is_that_of_numpy_whatever_the_loss():
    for n in (5, 10_000):  # more than a part of the full gradient
        theta, y, variance, signal = normal_rows(n)
        found = jaxsgd.diagnostics.noise_scale(loss, theta, y)
        np.testing.assert_allclose(found, (variance, signal, variance / signal), rtol=1e-4)
    params, data = table.problem()
    grads = jax.vmap(jax.grad(table.loss), (None, 0))(params, data)
    rows = np.concatenate([np.asarray(g, np.float64).reshape(20, -1) for g in grads.values()], 1)
    variance, signal = rows.var(0).sum(), np.sum(rows.mean(0) ** 2)
    with_aux = jaxsgd.RowLoss(table.with_aux, has_aux=True)
    found = jaxsgd.diagnostics.noise_scale(with_aux, params, data)
    np.testing.assert_allclose(found, (variance, signal, variance / signal), rtol=1e-4)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = jaxsgd.diagnostics.noise_scale(table.loss, narrow, data)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(found, (variance, signal, variance / signal), rtol=0.05)


def test_noise_scale_of_a_keyed_loss_counts_its_draws():
    """A row's gradient is theta - y + z: z adds a variance of 1 for each of the 3 entries."""
    theta, y, variance, signal = normal_rows(10_000)

    def keyed(theta, y, key):
        return loss(theta, y) + theta @ jax.random.normal(key, (3,))

    form = jaxsgd.RowLoss(keyed, keyed=True)
    found = jaxsgd.diagnostics.noise_scale(form, theta, y, key=jax.random.key(0))
    np.testing.assert_allclose(found.variance, variance + 3, rtol=0.05)
    np.testing.assert_allclose(found.signal, signal, rtol=0.05)
    with pytest.raises(TypeError, match="given no key"):
        jaxsgd.diagnostics.noise_scale(form, theta, y)


SAMPLED = {
    "even": jaxsgd.WithReplacement(8),
    "odd": jaxsgd.WithReplacement(5),
    "two": jaxsgd.WithReplacement(2),
    "short last batch": jaxsgd.Shuffled(4),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_averages_over_steps_are_the_known_values(name):
    n = 6 if name == "short last batch" else 50
    _, y, variance, _ = normal_rows(n)
    theta = jnp.asarray(np.asarray(y).mean(0, np.float64) + np.array([1.5, 0.5, 0.0]), float)
    signal = 2.5
    if name == "short last batch":
        variance *= 6 / 5  # n / (n - 1): drawn without replacement
        signal -= variance / n
    gradient = jaxsgd.NoiseScaleGradient(loss, decay=0.0)
    solver = jaxsgd.Solver(gradient, SAMPLED[name], jaxsgd.SGD(0.0))
    state = solver.init(theta, y, key=jax.random.key(1))
    steps = 200_000 if name in ("two", "short last batch") else 80_000
    _, told = jaxsgd.run(solver, state, y, steps, recorded)
    told = jax.tree.map(np.asarray, told)
    for drawn, expected in ((told.variance, variance), (told.signal, signal)):
        drawn = np.asarray(drawn, np.float64)
        error = drawn.std() / np.sqrt(steps)
        assert 5 * error < 0.05 * expected  # so that 5 sigma are within 5 %
        assert abs(drawn.mean() - expected) < 5 * error
        if name == "short last batch":  # each of the two kinds of batches by itself
            for kind in (drawn[::2], drawn[1::2]):
                error = kind.std() / np.sqrt(len(kind))
                assert abs(kind.mean() - expected) < 5 * error
    # running means of the same draws, and the ratio of both
    solver = jaxsgd.Solver(
        jaxsgd.NoiseScaleGradient(loss, decay=0.999), SAMPLED[name], jaxsgd.SGD(0.0)
    )
    _, running = jaxsgd.run(solver, solver.init(theta, y, key=jax.random.key(1)), y, 1000, recorded)
    means = np.zeros(2)
    for i in range(1000):
        means = 0.999 * means + 0.001 * np.array([told.variance[i], told.signal[i]])
    means /= 1 - 0.999**1000
    np.testing.assert_allclose([running.variance[-1], running.signal[-1]], means, rtol=1e-3)
    np.testing.assert_allclose(running.scale[-1], means[0] / means[1], rtol=1e-3)


def recorded(state, info):
    return info.noise


@jax.jit
def told(gradient, params, data, batch, state):
    estimate, after = gradient.update(params, data, batch, state)
    other = jax.tree.map(lambda x: x + 0.5, params)
    return estimate, after, gradient.value(other, data, batch, state)


def averaged(params, row, model_state):
    new = 0.9 * model_state + 0.1 * row[0]
    return table.loss(params, row), {"error": table.residual(params, row)}, new


def test_the_gradient_is_the_plain_one_and_so_are_aux_carry_and_value():
    params, data = table.problem()
    form = jaxsgd.RowLoss(averaged, has_aux=True, has_model_state=True)
    plain, gradient = jaxsgd.MinibatchGradient(form), jaxsgd.NoiseScaleGradient(form)
    model_state = jnp.ones(table.D)
    start = plain.init(params, data, jax.random.key(0), model_state)
    state = gradient.init(params, data, jax.random.key(0), model_state)
    for size, step in ((8, 0), (8, 2), (7, 0), (7, 2)):  # at step 2 with padding: 4 and 6 rows
        batch = jaxsgd.Shuffled(size, size=table.N).batch(jax.random.key(1), step)
        expected, after, value = told(plain, params, data, batch, start)
        found, own, other = told(gradient, params, data, batch, state)
        assert found.noise is not None
        found = found._replace(noise=None)
        chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_close((own.model_state, other), (after.model_state, value), rtol=1e-6)
    # around another gradient
    inner = jaxsgd.NoiseScaleGradient(jaxsgd.Accumulated(form, 3))
    again = told(inner, params, data, batch, state)
    whole = told(gradient, params, data, batch, state)
    chex.assert_trees_all_close(again, whole, rtol=1e-5)


def test_a_batch_with_an_empty_half_leaves_the_running_means_alone():
    theta, y, _, _ = normal_rows(6)
    gradient = jaxsgd.NoiseScaleGradient(loss)
    state = gradient.init(theta, y, jax.random.key(0))
    full = jaxsgd.Batch(jnp.arange(4), jnp.full(4, 0.25))
    first, state, _ = told(gradient, theta, y, full, state)
    ratio = first.noise.variance / first.noise.signal
    np.testing.assert_allclose(first.noise.scale, ratio, rtol=1e-6)
    single = jaxsgd.Batch(jnp.zeros(4, jnp.int32), jnp.array([1.0, 0, 0, 0]))
    second, after, _ = told(gradient, theta, y, single, state)
    chex.assert_trees_all_equal(after[1:], state[1:])
    assert np.isfinite(second.noise.scale)
    plain = jaxsgd.MinibatchGradient(loss)
    expected = plain.update(theta, y, single, jaxsgd.GradientState())[0].grads
    np.testing.assert_allclose(second.grads, expected, rtol=1e-6)


def test_keyed_halves_draw_other_numbers():
    rows, params = jnp.eye(8), jnp.zeros(8)
    drawn = lambda params, row, key: params @ row * jax.random.normal(key)  # noqa: E731
    gradient = jaxsgd.NoiseScaleGradient(jaxsgd.RowLoss(drawn, keyed=True))
    state = gradient.init(params, rows, jax.random.key(0))
    batch = jaxsgd.Batch(jnp.arange(8, dtype=jnp.int32), jnp.ones(8))
    seen = []
    for _ in range(2):
        estimate, after, value = told(gradient, params, rows, batch, state)
        np.testing.assert_allclose(value, estimate.grads.sum() / 2, rtol=1e-5)
        assert int(after.gradient.step) == int(state.gradient.step) + 1
        seen.append(estimate.grads)
        state = after
    assert len(np.unique(seen)) == 16


def test_refused():
    theta, y, _, _ = normal_rows(6)
    solver = jaxsgd.Solver(jaxsgd.NoiseScaleGradient(loss), jaxsgd.Shuffled(1), jaxsgd.SGD(0.1))
    state = solver.init(theta, y, key=jax.random.key(0))
    with pytest.raises(ValueError, match="NoiseScaleGradient is given batches of 1 row"):
        jaxsgd.run(solver, state, y, 1)
    for form in (
        jaxsgd.BatchLoss(table.weighted),
        jaxsgd.RowsLoss(table.counted, has_model_state=True),
        jaxsgd.SAGA(loss),
    ):
        with pytest.raises(TypeError, match="NoiseScaleGradient's gradient is .*a sum over rows"):
            jaxsgd.NoiseScaleGradient(form)
    for decay in (1.0, -0.1, jnp.nan):
        with pytest.raises(ValueError, match="NoiseScaleGradient's decay"):
            jaxsgd.NoiseScaleGradient(loss, decay=decay)
    for form in (
        jaxsgd.BatchLoss(table.weighted),
        jaxsgd.RowsLoss(table.residual),
        jaxsgd.RowLoss(averaged, has_aux=True, has_model_state=True),
    ):
        with pytest.raises(TypeError, match="noise_scale's loss is"):
            jaxsgd.diagnostics.noise_scale(form, theta, y)


def test_the_variance_of_rows_far_from_zero_is_not_rounding():
    y = 1000 + 0.1 * np.random.default_rng(0).normal(size=1000)
    found = jaxsgd.diagnostics.noise_scale(
        lambda theta, y: (theta - y) ** 2 / 2, jnp.zeros(()), jnp.asarray(y)
    )
    np.testing.assert_allclose(found.variance, np.var(y.astype(np.float32)), rtol=1e-2)


def test_halves_of_weighted_rows_are_unbiased():
    y = jnp.concatenate([jnp.full(40, 6.0), jnp.linspace(-1, 1, 360)])
    probabilities = 0.2 + jnp.abs(y)
    gradient = jaxsgd.NoiseScaleGradient(lambda theta, y: (theta - y) ** 2 / 2, decay=0.0)
    solver = jaxsgd.Solver(gradient, jaxsgd.ImportanceSampled(probabilities, 8), jaxsgd.SGD(0.0))
    state = solver.init(jnp.zeros(()), y, key=jax.random.key(0))
    _, noise = jaxsgd.run(solver, state, y, 100_000, recorded)
    weighted = np.asarray(y / probabilities * jnp.mean(probabilities), np.float64)
    chance = np.asarray(probabilities / probabilities.sum(), np.float64)
    mean = float(y.mean())
    assert np.mean(noise.signal) == pytest.approx(mean**2, rel=0.03)
    assert np.mean(noise.variance) == pytest.approx(chance @ weighted**2 - mean**2, rel=0.03)
