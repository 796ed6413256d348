"""evaluate and Objective: exact means over all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests import table


@pytest.mark.parametrize("batch_size", [1, 4, 20, 1024])
def test_evaluate_is_the_exact_mean_over_all_rows(batch_size):
    params, data = table.problem()
    residual = table.residual(params, data)
    metrics = {
        "loss": table.loss,
        "batched": jaxsgd.RowsLoss(lambda params, rows: table.residual(params, rows) ** 2 / 2),
        "big": lambda params, row: jnp.abs(table.residual(params, row)) > 1,
        "vector": lambda params, row: row[0],
    }
    means = jaxsgd.evaluate(metrics, params, data, batch_size=batch_size)
    np.testing.assert_allclose(means["loss"], np.mean(residual**2) / 2, rtol=1e-6)
    np.testing.assert_allclose(means["batched"], means["loss"], rtol=1e-6)
    assert float(means["big"]) == pytest.approx(float((abs(residual) > 1).mean()), rel=1e-6)
    np.testing.assert_allclose(means["vector"], data[0].mean(0), rtol=1e-5, atol=1e-6)
    single = jaxsgd.evaluate(
        lambda params, row, model_state: row[1] * model_state,
        params,
        data,
        model_state=jnp.float32(2),
    )
    np.testing.assert_allclose(single, 2 * data[1].mean(), rtol=1e-5)


def test_evaluate_keeps_an_infinite_row_infinite():
    value = jaxsgd.evaluate(
        lambda p, y: y, jnp.zeros(()), jnp.array([1.0, 2.0, jnp.inf]), batch_size=2
    )
    assert value == jnp.inf


def test_evaluate_counts_on_where_a_plain_float32_sum_would_stop():
    y = jnp.zeros(2**24 + 1000, jnp.int8)
    mean = jaxsgd.evaluate(lambda p, y: 0.1, jnp.zeros(()), y, batch_size=128)
    assert float(mean) == pytest.approx(0.1, rel=1e-6)


def test_an_objective_is_the_mean_and_the_penalty_of_a_state():
    params, data = table.problem()
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
    state = solver.init(params, data, key=jax.random.key(0))
    objective = jaxsgd.Objective(table.loss, data, jaxsgd.L2(0.1), batch_size=7)
    mean = np.mean(np.asarray(table.residual(params, data)) ** 2) / 2
    np.testing.assert_allclose(objective(state), mean + 0.05 * 3 * 0.1**2, rtol=1e-6)
    doubled = jaxsgd.Objective(
        table.loss, data, at=lambda s: jax.tree.map(lambda x: 0 * x, s.params)
    )
    np.testing.assert_allclose(doubled(state), np.mean(np.asarray(data[1]) ** 2) / 2, rtol=1e-6)
    assert len(jax.tree.leaves(objective)) == 3  # rows and strength are leaves


def test_refusals():
    params, data = table.problem()
    with pytest.raises(TypeError, match="BatchLoss"):
        jaxsgd.evaluate(jaxsgd.BatchLoss(table.weighted), params, data)
    with pytest.raises(TypeError, match="metric 'a' is keyed"):
        jaxsgd.evaluate({"a": jaxsgd.RowLoss(table.noisy, keyed=True)}, params, data)
    with pytest.raises(ValueError, match="differ in their number of rows"):
        jaxsgd.Objective(table.loss, (data[0], data[1][:3]))
