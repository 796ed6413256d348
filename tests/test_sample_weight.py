"""Sample weights: class weights, sample weights, folds."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests import table

WEIGHT = np.arange(table.N) % 4  # some rows are left out
RATE = jaxsgd.InverseTimeDecay(0.3, 0.1)


def train(weight, sampler, data=None, steps=10, loss=table.loss):
    params, rows = table.problem()
    data = rows if data is None else data
    solver = jaxsgd.Solver(loss, sampler, jaxsgd.SGD(RATE), sample_weight=weight)
    state = solver.init(params, data, key=jax.random.key(0))
    return jaxsgd.run(solver, state, data, steps)[0].params


def test_a_weight_counts_its_row_so_many_times():
    repeated = jax.tree.map(lambda x: jnp.repeat(x, WEIGHT, axis=0), table.problem()[1])
    whole = train(None, jaxsgd.FullBatch(), repeated)
    for scale in (1, 7.5):  # the mean is weighted: their scale plays no part
        weighted = train(WEIGHT * scale, jaxsgd.FullBatch())
        chex.assert_trees_all_close(weighted, whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["row", "batch"])
def test_over_an_epoch_the_gradients_mean_is_that_of_the_weighted_mean(name):
    gradient, _ = table.GRADIENTS[name]
    solver = jaxsgd.Solver(
        gradient, jaxsgd.Shuffled(5), jaxsgd.SGD(1.0), sample_weight=jnp.asarray(WEIGHT)
    )
    state, data = table.start(solver, None)

    @jax.jit
    def gradient_at(step):
        batch = solver.sampler_for(data).batch(state.sampler.key, step)
        moved, _ = solver.step_at(state, data, batch)
        return state.params["weight"] - moved.params["weight"]

    mean = lambda p: jnp.average(  # noqa: E731
        jax.vmap(table.loss, (None, 0))(p, data), weights=jnp.asarray(WEIGHT, float)
    )
    over_epoch = sum(gradient_at(step) for step in range(4)) / 4
    np.testing.assert_allclose(over_epoch, jax.grad(mean)(state.params)["weight"], rtol=1e-5)


def test_evaluate_is_the_weighted_mean_whatever_rows_of_weight_0_hold():
    params, (x, y) = table.problem()
    values = jax.vmap(table.loss, (None, 0))(params, (x, y))
    expected = np.average(values, weights=WEIGHT)
    spoiled = x, jnp.where(jnp.asarray(WEIGHT) == 0, jnp.nan, y)
    for data in (spoiled, jaxsgd.HostRows(jax.tree.map(np.asarray, spoiled), chunk_bytes=100)):
        mean = jaxsgd.evaluate(table.loss, params, data, sample_weight=WEIGHT, batch_size=3)
        np.testing.assert_allclose(mean, expected, rtol=1e-6)
    objective = jaxsgd.Objective(table.loss, (x, y), sample_weight=jnp.asarray(WEIGHT))
    solver = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    state, _ = table.start(solver, None)
    np.testing.assert_allclose(objective(state), expected, rtol=1e-6)


def test_folds_are_lanes_and_a_lane_is_the_run_without_the_others_rows():
    data = table.problem()[1]
    folds = np.arange(table.N) % 4
    masks = jnp.stack([jnp.asarray(folds != k) for k in range(4)])
    lanes = jax.jit(jax.vmap(lambda mask: train(mask, jaxsgd.FullBatch())))(masks)
    for k in range(4):
        rest = jax.tree.map(lambda x, k=k: x[folds != k], data)
        alone = train(None, jaxsgd.FullBatch(), rest)
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, k=k: x[k], lanes), alone, rtol=2e-5, atol=1e-6
        )


def test_fit_weighs_its_history_and_its_validation():
    params, data = table.problem()
    inside, outside = np.arange(table.N) < 15, np.arange(table.N) >= 15
    part = lambda mask: jax.tree.map(lambda x: x[mask], data)  # noqa: E731
    fit = lambda data, **options: jaxsgd.fit(  # noqa: E731
        table.loss, params, data, key=jax.random.key(0), epochs=4, progress=False,
        sampler=jaxsgd.FullBatch(), learning_rate=0.1, **options,
    )  # fmt: skip
    one = fit(data, sample_weight=inside, validation=data, validation_sample_weight=outside)
    other = fit(part(inside), validation=part(outside))
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(one.history[name], other.history[name], rtol=1e-5)
    told = fit(data, sample_weight=inside, metrics={"mse": table.loss}).history["mse"][-1]
    mean = jaxsgd.evaluate(table.loss, one.params, part(inside))
    np.testing.assert_allclose(told, mean, rtol=1e-5)


def test_the_slope_along_the_weights_themselves_is_zero():
    """Their scale plays no part: where the mean is 1 already, too."""
    final = lambda v: jnp.sum(train(v, jaxsgd.FullBatch(), steps=3)["weight"] ** 2)  # noqa: E731
    slope = jax.jit(jax.grad(final))
    for v in (jnp.ones(table.N), jnp.arange(1.0, table.N + 1)):
        grads = slope(v)
        assert float(jnp.abs(grads).max()) > 1e-3
        np.testing.assert_allclose(v @ grads, 0, atol=1e-5)
    one, step = jnp.ones(table.N), 0.01 * jnp.eye(table.N)[0]
    difference = (final(one + step) - final(one - step)) / 0.02
    np.testing.assert_allclose(slope(one)[0], difference, rtol=1e-2)


def test_weights_are_kept_by_a_solver_made_of_anothers_parts():
    rng = np.random.default_rng(0)
    solver = jaxsgd.Solver(
        table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1), sample_weight=rng.random(table.N)
    )
    again = dataclasses.replace(solver, rule=jaxsgd.SGD(0.2))
    np.testing.assert_array_equal(again.sample_weight, solver.sample_weight)
    np.testing.assert_allclose(np.mean(solver.sample_weight), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (np.arange(5.0), r"sample_weight is of shape \(5,\), expected \(20,\): one entry a row"),
        (np.zeros(20), "sample_weight is 0 for all rows"),
        (-np.ones(20), "least entry is -1.0, expected at least 0"),
        (np.full(20, np.nan), "expected at least 0 and finite"),
        (3.0, "expected an array with one entry a row"),
    ],
)
def test_refusals(weight, told):
    params, data = table.problem()
    for act in (
        lambda: train(weight, jaxsgd.FullBatch()),
        lambda: jaxsgd.evaluate(table.loss, params, data, sample_weight=weight),
        lambda: jaxsgd.Objective(table.loss, data, sample_weight=weight),
    ):
        with pytest.raises((ValueError, TypeError), match=told):
            act()
    solver = jaxsgd.Solver(
        table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1), sample_weight=np.ones(table.N)
    )
    with pytest.raises(ValueError, match="multiply it into weight"):
        solver.step_on(table.start(solver, None)[0], data)
