"""Averages of the parameters beside a run."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from tests import table

RATE = 0.2


def path(rule, steps=9, dtype=jnp.float32):
    """The parameters and their average after each step."""
    params, data = table.problem(dtype)
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), rule)
    state = solver.init(params, data, key=jax.random.key(0))
    record = lambda state, info: (state.params["weight"], jaxsgd.averaged(state)["weight"])  # noqa: E731
    state, (path, average) = jaxsgd.run(solver, state, data, steps, record)
    return np.asarray(params["weight"]), np.asarray(path), np.asarray(average), state


@pytest.mark.parametrize("start", [0, 4, 100])
def test_the_tail_average_is_the_mean_of_the_parameters_from_a_step_on(start):
    _, iterates, average, _ = path(jaxsgd.TailAverage(jaxsgd.SGD(RATE), start))
    expected = [
        iterates[min(start, t) : t + 1].mean(0) if t >= start else iterates[t] for t in range(9)
    ]
    np.testing.assert_allclose(average, expected, rtol=1e-5)


def test_the_moving_average_is_its_recursion_without_the_bias_of_its_start():
    _, iterates, average, _ = path(jaxsgd.EMA(jaxsgd.SGD(RATE), 0.9))
    mean = np.zeros(3)
    for t, (x, told) in enumerate(zip(iterates, average, strict=True)):
        mean = 0.9 * mean + 0.1 * x
        np.testing.assert_allclose(told, mean / (1 - 0.9 ** (t + 1)), rtol=1e-5)


def test_float32_parameters_in_x64_mode_and_the_outermost_average():
    with jax.enable_x64(True):
        inner = jaxsgd.TailAverage(jaxsgd.SGD(RATE), 2)
        _, iterates, average, state = path(jaxsgd.EMA(inner, 0.5), steps=4)
        assert average.dtype == np.float32
        assert {x.dtype for x in jax.tree.leaves(state.rule.average)} == {np.dtype(np.float32)}
    weights = 0.5 ** np.arange(4)[::-1]
    np.testing.assert_allclose(average[-1], weights @ iterates / weights.sum(), rtol=1e-5)


def test_an_initial_average_has_a_buffer_of_its_own():
    params = jnp.ones(3)
    for rule in (jaxsgd.EMA(jaxsgd.SGD(RATE)), jaxsgd.TailAverage(jaxsgd.SGD(RATE))):
        average = rule.init(params).average
        assert average.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()


def test_the_run_itself_is_unchanged_whatever_the_rule_inside():
    for inner in (jaxsgd.Adam(RATE), optax.sgd(RATE, momentum=0.9)):
        wrapped = path(jaxsgd.EMA(inner))[1]
        params, data = table.problem()
        solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), inner)
        state = solver.init(params, data, key=jax.random.key(0))
        state, plain = jaxsgd.run(
            solver, state, data, 9, lambda state, info: state.params["weight"]
        )
        np.testing.assert_array_equal(wrapped, plain)


def test_an_average_is_kept_wider_than_narrow_parameters():
    _, iterates, average, state = path(jaxsgd.TailAverage(jaxsgd.SGD(RATE)), dtype=jnp.bfloat16)
    assert average.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_dtypes(jaxsgd.averaged(state), state.params)
    wide = state.rule.average["weight"]
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, iterates.astype(np.float32).mean(0), rtol=1e-5)


def test_refusals():
    state, _ = table.start(jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1)), None)
    with pytest.raises(ValueError, match="holds no averaged parameters"):
        jaxsgd.averaged(state)
    with pytest.raises(TypeError, match="EMA.s rule: expected a jaxsgd.Rule, .* got 0.1"):
        jaxsgd.EMA(0.1)
    with pytest.raises(ValueError, match="TailAverage's start is 0.5, expected a whole number"):
        jaxsgd.TailAverage(jaxsgd.SGD(0.1), 0.5)
    with pytest.raises(TypeError, match="averaged was given a dict, expected a State"):
        jaxsgd.averaged({})
    with pytest.raises(
        ValueError, match="EMA's decay is 1.5, expected at least 0 and finite and below 1"
    ):
        jaxsgd.EMA(jaxsgd.SGD(0.1), 1.5)
    rule = jaxsgd.TailAverage(jaxsgd.SGD(0.1))
    with pytest.raises(ValueError, match="TailAverage.update was given no params"):
        rule.update(jnp.ones(2), rule.init(jnp.ones(2)))
