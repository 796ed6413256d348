"""The searched rate: exact on quadratics, near the argmin elsewhere; what a search is given."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from tests import table


def full(loss, rule, params, data, steps):
    solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), rule, jaxsgd.L2(0.01))
    state = solver.init(params, data, key=jax.random.key(0))
    record = lambda state, info: (state.params, info)  # noqa: E731
    return (solver, *jaxsgd.run(solver, state, data, steps, record))


def test_value_fn_is_the_batchs_loss_and_penalty_as_a_function_of_params():
    @jaxsgd.part
    class Probe(jaxsgd.Rule):
        def init(self, params):
            return jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params, jnp.zeros(()), params))

        def update(self, grads, state, params=None, *, value, grad, value_fn, **_):
            return grads, (value, grads, *jax.value_and_grad(value_fn)(params))

    for name, (gradient, model_state) in table.GRADIENTS.items():
        solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(8), Probe(), jaxsgd.L2(0.1))
        state, data = table.start(solver, model_state)
        value, grads, again, slope = jax.jit(solver.step)(state, data)[0].rule
        np.testing.assert_allclose(value, again, rtol=1e-6, err_msg=name)
        if name not in ("clipped", "svrg", "saga", "saga linear"):  # theirs is the plain value
            chex.assert_trees_all_close(grads, slope, rtol=1e-5)


def test_least_squares_takes_the_argmin_along_the_gradient():
    params, data = table.problem()
    _, state, (path, info) = full(table.loss, jaxsgd.LineSearch(), params, data, 12)
    x = np.column_stack([data[0], np.ones(table.N)]).astype(float)
    hessian = x.T @ x / table.N + 0.01 * np.eye(4)
    theta = np.array([0.1, 0.1, 0.1, 0.0])
    for t in range(12):
        slope = hessian @ theta - x.T @ np.asarray(data[1], float) / table.N
        rate = slope @ slope / (slope @ hessian @ slope)
        np.testing.assert_allclose(info.learning_rate[t], rate, rtol=2e-3)
        theta = theta - rate * slope
        np.testing.assert_allclose(path["weight"][t], theta[:3], rtol=1e-3)
    np.testing.assert_allclose(state.rule.learning_rate, info.learning_rate[-1])


def valley(theta, row):
    """Rosenbrock's: no quadratic, and curved against the gradient in places."""
    x, y = theta
    return (1 - x) ** 2 + 5 * (y - x**2) ** 2 + 0 * row


def test_elsewhere_the_loss_falls_and_the_slope_along_the_line_is_nearly_gone():
    start, data = jnp.array([-1.5, 2.0]), jnp.zeros(1)
    solver, _, (path, _) = full(valley, jaxsgd.LineSearch(0.05), start, data, 10)
    objective = lambda theta: valley(theta, 0.0) + solver.penalty(theta)  # noqa: E731
    before = start
    for after in path[:8]:
        g = jax.grad(objective)(before)
        if np.linalg.norm(g) < 1e-3:
            break
        assert objective(after) < objective(before)
        assert abs(g @ jax.grad(objective)(after)) <= 0.06 * (g @ g)
        before = after


def saturated(theta, y):
    return jnp.logaddexp(0.0, -y * theta)


@pytest.mark.parametrize("at", [30.0, 43.0, 80.0])
def test_where_there_is_hardly_any_curvature_the_objective_does_not_rise(at):
    """The quadratic along the line has its minimum far off there."""
    y = jnp.array([1.0] * 7 + [-1.0] * 3)
    solver = jaxsgd.Solver(saturated, jaxsgd.FullBatch(), jaxsgd.LineSearch())
    state = solver.init(jnp.float32(at), y, key=jax.random.key(0))
    state, loss = jaxsgd.run(solver, state, y, 12, loss_of)
    assert (np.diff(loss) <= 1e-5 * np.abs(loss[:-1])).all()
    np.testing.assert_allclose(state.params, np.log(7 / 3), rtol=1e-3)


def loss_of(state, info):
    return info.loss


def test_at_a_minimum_it_stays_and_says_what_it_needs():
    rule = jaxsgd.LineSearch()
    zero = jnp.zeros(2)
    half = lambda theta: theta @ theta / 2  # noqa: E731
    updates, state = rule.update(zero, rule.init(zero), zero, value=half(zero), value_fn=half)
    assert updates.tolist() == [0, 0]
    assert np.isfinite(state.learning_rate)
    with pytest.raises(ValueError, match="needs params, value= and value_fn="):
        rule.update(zero, rule.init(zero), zero)
    with pytest.raises(ValueError, match="slope is 2, expected 0 to 1"):
        jaxsgd.LineSearch(2)


SEARCHES = {
    "backtracking": optax.scale_by_backtracking_linesearch(15),
    "zoom": optax.scale_by_zoom_linesearch(15),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_optaxs_searches_train_with_the_minibatch_held_fixed(name):
    """Each step lowers the loss of its own batch; the rate it found is told."""
    params, data = table.problem()
    solver = jaxsgd.Solver(
        table.loss, jaxsgd.Shuffled(8), optax.chain(optax.sgd(1.0), SEARCHES[name])
    )
    state = solver.init(params, data, key=jax.random.key(0))
    sampler = solver.sampler_for(data)
    record = lambda state, info: (state.params, info, sampler.batch(state.sampler.key, info.step))  # noqa: E731
    _, (path, info, batches) = jaxsgd.run(solver, state, data, 12, record)
    rows = jax.tree.map(lambda x: x[batches.index], data)
    losses = jax.vmap(jax.vmap(table.loss, (None, 0)))(path, rows)
    after = jnp.sum(batches.weight * losses, axis=1)
    assert (after < info.loss).all()
    assert (info.learning_rate > 0).all()
    assert len(np.unique(info.learning_rate)) > 1
