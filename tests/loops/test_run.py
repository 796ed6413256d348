"""run: what it keeps, what it costs, and what it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.core.part import as_callable
from jaxsgd.core.trees import as_arguments
from jaxsgd.loops import run
from tests import table


def simple(sampler=None):
    solver = jaxsgd.Solver(
        table.loss, sampler or jaxsgd.Shuffled(8), jaxsgd.SGD(0.1), jaxsgd.L2(0.1)
    )
    return solver, *table.start(solver, None)


def test_record_keeps_the_step_that_ends_each_window():
    solver, state, data = simple()
    _, every_step = jaxsgd.run(solver, state, data, 12, lambda state, info: (info, state.params))
    after, windows = jaxsgd.run(
        solver, state, data, 12, lambda state, info: (info, state.params), record_every=4
    )
    picked = jax.tree.map(lambda x: x[3::4], every_step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), windows, picked)
    assert windows[0].step.tolist() == [3, 7, 11]
    _, plain = jaxsgd.run(solver, after, data, 4, record_every=2)
    assert plain.step.tolist() == [13, 15]
    assert plain.grad_norm is None
    _, none = jaxsgd.run(solver, state, data, 0)
    assert none.loss.shape == (0,)


def test_info_tells_what_a_step_did():
    solver, state, data = simple(jaxsgd.FullBatch())
    after, info = jax.jit(solver.step)(state, data)
    params = state.params
    mean_loss = lambda p: jnp.mean(jax.vmap(table.loss, (None, 0))(p, data))  # noqa: E731
    grads = jax.grad(lambda p: mean_loss(p) + solver.penalty(p))(params)
    norm = lambda tree: jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))  # noqa: E731
    np.testing.assert_allclose(info.loss, mean_loss(params), rtol=1e-6)
    np.testing.assert_allclose(info.penalty, 0.05 * 3 * 0.1**2, rtol=1e-6)
    np.testing.assert_allclose(info.grad_norm, norm(grads), rtol=1e-6)
    moved = jax.tree.map(jnp.subtract, after.params, params)
    np.testing.assert_allclose(info.update_norm, norm(moved), rtol=1e-5)
    assert (int(info.step), int(after.step)) == (0, 1)


def test_what_nobody_records_costs_nothing():
    solver, state, data = simple()

    def text(record):
        args = as_arguments((solver, state, data, record))
        traced = run._run.trace(*args, windows=5, every=1)
        return traced.lower().compile().as_text()

    keep = as_callable(lambda state, info: (info.grad_norm, info.finite), "record")
    kept, plain = text(keep), text(None)
    for operation in ("sqrt", "is-finite"):
        assert operation in kept  # the witness can fail
        assert operation not in plain


def test_the_learning_rate_can_be_differentiated_through_a_run():
    _, _, data = simple()

    def final(rate):
        solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.Momentum(rate, 0.5))
        state, _ = jaxsgd.run(
            solver, solver.init(table.problem()[0], data, key=jax.random.key(0)), data, 6
        )
        return jnp.mean(jax.vmap(table.loss, (None, 0))(state.params, data))

    slope = jax.jit(jax.grad(final))(0.05)
    difference = (final(0.051) - final(0.049)) / 0.002
    np.testing.assert_allclose(slope, difference, rtol=1e-2)
    assert slope < 0


def test_a_step_takes_a_batch_of_ones_own_or_rows_from_elsewhere():
    solver, state, data = simple()
    batch, _ = solver.sampler_for(data).update(state.sampler)
    drawn, _ = solver.step(state, data)
    rows = jax.tree.map(lambda x: x[batch.index], data)
    for own in (
        solver.step_at(state, data, batch)[0],
        solver.step_on(state, rows, batch.weight)[0],
        solver.step_on(state, rows)[0],  # this batch is full
    ):
        chex.assert_trees_all_equal(own.params, drawn.params)
        assert int(own.sampler.step) == 0
    with pytest.raises(ValueError, match=r"weight is of shape \(4,\), expected \(8,\)"):
        solver.step_on(state, rows, jnp.ones(4))
    with pytest.raises(ValueError, match=r"rows\[0\] has 8, rows\[1\] has 4"):
        solver.step_on(state, (rows[0], rows[1][:4]))


def test_a_model_state_is_neither_cut_nor_reshaped():
    _, _, data = simple()

    def run(model_state, new):
        loss = jaxsgd.RowsLoss(
            lambda p, rows, c: (table.residual(p, rows) ** 2, new(c)), has_model_state=True
        )
        solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
        state = solver.init(
            table.problem()[0], data, key=jax.random.key(0), model_state=model_state
        )
        return jaxsgd.run(solver, state, data, 2)[0].model_state

    assert int(run(jnp.int32(0), lambda c: c + 1)) == 2
    with pytest.raises(TypeError, match="a model state of float32, but was given int32"):
        run(jnp.int32(0), lambda c: c + 0.5)
    with pytest.raises(ValueError, match="model state of shapes"):
        run(jnp.float32(0), lambda c: jnp.stack([c, c]))


def test_shapes_are_not_broadcast():
    _, state, data = simple()
    for rule in (jaxsgd.SGD(jnp.array([0.1])), jaxsgd.Momentum(0.1, jnp.array([0.1, 0.2, 0.3]))):
        fixed = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), rule)
        with pytest.raises(ValueError, match="expected one number; map over several with jax.vmap"):
            jaxsgd.run(fixed, state._replace(rule=rule.init(state.params)), data, 1)

    @jaxsgd.part
    class Short(jaxsgd.Rule):
        def init(self, params):
            return ()

        def update(self, grads, state, params=None, **_):
            return jax.tree.map(lambda g: jnp.zeros(1), grads), state

    short = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), Short())
    with pytest.raises(
        ValueError, match=r"updates of shape \(1,\) for params.*, a parameter of shape"
    ):
        short.step(state._replace(rule=()), data)


def test_refusals():
    solver, state, data = simple()
    params = state.params
    with pytest.raises(
        ValueError, match="steps is 10, expected a multiple of record_every, which is 4"
    ):
        jaxsgd.run(solver, state, data, 10, record_every=4)
    with pytest.raises(TypeError, match="state is of type dict, expected the State"):
        jaxsgd.run(solver, params, data, 10)
    other = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.Momentum(0.1))
    with pytest.raises(
        ValueError, match="its rule state is SGDState without count, but a Momentum"
    ):
        jaxsgd.run(other, state, data, 10)
    with pytest.raises(TypeError, match="steps is 1.5"):
        jaxsgd.run(solver, state, data, 1.5)
    with pytest.raises(TypeError, match="sampler: expected a jaxsgd.Sampler, .* got 8"):
        jaxsgd.Solver(table.loss, 8, jaxsgd.SGD(0.1))
    with pytest.raises(TypeError, match="rule: expected a jaxsgd.Rule, .* got 0.1"):
        jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), 0.1)
    penalty = lambda params: params["weight"]  # noqa: E731
    bad = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1), penalty)
    with pytest.raises(TypeError, match="penalty"):
        bad.step(state, data)


def test_a_users_own_jit_and_vmap_of_a_step_over_plain_arrays():
    solver, state, data = simple()
    after, info = jax.jit(solver.step)(state, data)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), (state, data))
    both, infos = jax.jit(jax.vmap(solver.step, in_axes=(0, 0)))(*stacked)
    np.testing.assert_allclose(both.params["weight"][1], after.params["weight"], rtol=1e-6)
    np.testing.assert_allclose(infos.loss[0], info.loss, rtol=1e-6)
    assert not any(isinstance(x, jaxsgd.Rows) for x in jax.tree.leaves((after, info)))
