"""The worked examples of the textbooks, to the digits they print."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd


def test_two_targets_in_turn_settle_into_a_two_cycle():
    problem = jaxsgd.problems.two_targets()
    solver = jaxsgd.Solver(problem.loss, jaxsgd.Sequential(1), jaxsgd.SGD(0.1))
    state = solver.init(problem.params, problem.data, key=jax.random.key(0))
    _, path = jaxsgd.run(solver, state, problem.data, 200, lambda state, info: state.params)
    np.testing.assert_allclose(path[:4], [0.2, 0.76, 0.808, 1.2464], rtol=1e-6)
    np.testing.assert_allclose(path[-2:], [17 / 9, 19 / 9], rtol=1e-6)


def plain_line(data, index, weight, half):
    x, y = np.asarray(data[0], np.float64)[:, 0], np.asarray(data[1], np.float64)
    w = b = 0.0
    path = []
    for i, v in zip(index, weight, strict=True):
        i = i[v > 0]
        slope = 1 / len(i) * (w * x[i] + b - y[i]) * (1 if half else 2)
        w, b = w - 0.01 * np.sum(slope * x[i]), b - 0.01 * np.sum(slope)
        path.append((w, b))
    return np.array(path)


@pytest.mark.parametrize(("half", "seen"), [(False, (3.2, 1.6)), (True, (3.0, 1.9))])
def test_the_line_step_for_step_against_a_plain_loop_and_converged(half, seen):
    problem = jaxsgd.problems.line(half=half)
    solver = jaxsgd.Solver(problem.loss, jaxsgd.Shuffled(64), jaxsgd.SGD(0.01))
    state = solver.init(problem.params, problem.data, key=jax.random.key(0))
    sampler = solver.sampler_for(problem.data)
    assert sampler.steps_per_epoch == 16
    steps = 20 * 16
    record = lambda state, info: jnp.append(state.params["weight"], state.params["bias"])  # noqa: E731
    _, path = jaxsgd.run(solver, state, problem.data, steps, record)
    index, weight = jax.vmap(sampler.batch, (None, 0))(state.sampler.key, jnp.arange(steps))
    assert (np.asarray(weight[15]) > 0).sum() == 40  # the last batch of an epoch
    np.testing.assert_allclose(
        path,
        plain_line(problem.data, np.asarray(index), np.asarray(weight), half),
        rtol=2e-5,
        atol=1e-6,
    )
    np.testing.assert_allclose(path[-1], seen, atol=0.1)  # not converged, and the book says so

    # converged: momentum over the whole data, to the least-squares solution
    exact = jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.Momentum(0.1, 0.9))
    state = exact.init(problem.params, problem.data, key=jax.random.key(0))
    state, _ = jaxsgd.run(exact, state, problem.data, 600, record_every=600)
    for name, value in problem.solution.items():
        np.testing.assert_allclose(state.params[name], value, rtol=1e-5)
    np.testing.assert_allclose(float(problem.solution["weight"][0]), 3.46, atol=0.005)
    np.testing.assert_allclose(float(problem.solution["bias"]), 1.29, atol=0.005)


def test_the_quadratics_best_rate_contracts_and_a_larger_one_than_the_limit_diverges():
    problem = jaxsgd.problems.quadratic([1.0, 10.0])
    solver = lambda rate: jaxsgd.Solver(problem.loss, jaxsgd.FullBatch(), jaxsgd.SGD(rate))  # noqa: E731
    state = solver(0.1).init(problem.params, problem.data, key=jax.random.key(0))
    best, _ = jaxsgd.run(solver(2 / 11), state, problem.data, 20)
    np.testing.assert_allclose(abs(best.params), (9 / 11) ** 20, rtol=1e-4)
    wild, _ = jaxsgd.run(solver(2.1 / 10), state, problem.data, 20)
    assert abs(wild.params[1]) > 5


def test_a_frozen_array_dropout_and_batch_normalisation_train():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(96, 4)), jnp.float32)
    data = x, jnp.tanh(x @ jnp.array([1.0, -2.0, 0.5, 0.0]))
    head = jnp.asarray(rng.normal(size=(4, 16)), jnp.float32)

    frozen = jax.tree_util.Partial(
        lambda head, w, row: (jax.nn.relu(row[0] @ head) @ w - row[1]) ** 2, head
    )

    def dropout(w, row, key):
        kept = jax.random.bernoulli(key, 0.8, (16,)) / 0.8
        return ((jax.nn.relu(row[0] @ head) * kept) @ w - row[1]) ** 2

    def normalised(w, rows, weight, model_state):
        hidden = rows[0] @ head
        mean = weight @ hidden
        variance = weight @ (hidden - mean) ** 2
        output = jax.nn.relu((hidden - mean) / jnp.sqrt(variance + 1e-3)) @ w
        running = jax.tree.map(
            lambda old, new: 0.9 * old + 0.1 * new, model_state, (mean, variance)
        )
        return weight @ (output - rows[1]) ** 2, running

    start = jnp.zeros(16)
    model_state = jnp.zeros(16), jnp.ones(16)
    losses = [
        (frozen, None),
        (jaxsgd.RowLoss(dropout, keyed=True), None),
        (jaxsgd.BatchLoss(normalised, has_model_state=True), model_state),
    ]
    for loss, model_state in losses:
        solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(20), jaxsgd.SGD(0.01))
        state = solver.init(start, data, key=jax.random.key(0), model_state=model_state)
        state, trace = jaxsgd.run(solver, state, data, 200)
        assert trace.loss[-5:].mean() < 0.5 * trace.loss[0], loss
        if model_state is not None:  # the running statistics near the data's own
            np.testing.assert_allclose(state.model_state[0], x.mean(0) @ head, atol=0.5)
            assert not np.allclose(state.model_state[1], 1)


def test_digits_are_all_there():
    x, y = jaxsgd.problems.digits()
    assert (x.dtype, y.dtype, x.max()) == (np.float32, np.int32, 16)
    assert np.bincount(y).min() > 170
