"""Accumulation: the gradient of a batch in parts is that of the whole, in less memory."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from tests import table


def averaged(params, row, model_state):
    new = {"mean": 0.9 * model_state["mean"] + 0.1 * row[0], "y": 0.5 * model_state["y"] + row[1]}
    return table.loss(params, row), {"error": table.residual(params, row)}, new


CARRY = {"mean": jnp.ones(table.D), "y": jnp.zeros(())}
# name: (loss, model_state)
LOSSES = {
    "plain": (table.loss, None),
    "aux": (jaxsgd.RowLoss(table.with_aux, has_aux=True), None),
    "rows": (jaxsgd.RowsLoss(lambda params, rows: table.residual(params, rows) ** 2), None),
    "stateful, aux": (jaxsgd.RowLoss(averaged, has_aux=True, has_model_state=True), CARRY),
}


@jax.jit
def told(gradient, params, data, batch, state):
    """The estimate, the state after it, and the loss of the same batch at other params."""
    estimate, after = gradient.update(params, data, batch, state)
    other = jax.tree.map(lambda x: x + 0.5, params)
    return estimate, after, gradient.value(other, data, batch, state)


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_of_any_number_give_the_plain_estimate_carry_and_value(name):
    loss, model_state = LOSSES[name]
    params, data = table.problem()
    params["weight"] = params["weight"] + jnp.arange(3.0)
    rng = np.random.default_rng(1)
    index = jnp.asarray(rng.integers(0, table.N, 40), jnp.int32)  # rows twice and more
    weight = jnp.asarray(rng.uniform(0.5, 1.5, 40) * (rng.uniform(size=40) < 0.8) / 32, float)
    batch = jaxsgd.Batch(index, weight)
    plain = jaxsgd.MinibatchGradient(loss)
    state = plain.init(params, data, jax.random.key(0), model_state)
    expected = told(plain, params, data, batch, state)
    for chunks in (1, 2, 3, 7, 50) if name in ("aux", "stateful, aux") else (3, 7):
        # 40 = 6 x 7 - 2: the last part has padding
        found = told(jaxsgd.Accumulated(loss, chunks), params, data, batch, state)
        chex.assert_trees_all_close(found, expected, rtol=2e-6, atol=1e-7)
    if name != "plain":
        return
    twice = jaxsgd.Accumulated(jaxsgd.Accumulated(loss, 2), 3)
    found = told(twice, params, data, batch, state)
    chex.assert_trees_all_close(found, expected, rtol=2e-6, atol=1e-7)


def trained(loss, data, params, model_state=None, sampler=None, steps=6):
    solver = jaxsgd.Solver(
        loss,
        jaxsgd.Shuffled(16) if sampler is None else sampler,
        jaxsgd.Momentum(0.05, 0.5),
        jaxsgd.L2(0.01),
    )
    state = solver.init(params, data, key=jax.random.key(0), model_state=model_state)
    if isinstance(data, jaxsgd.HostRows):
        state, trace = next(jaxsgd.chunks(solver, state, data, steps))
    else:
        state, trace = jaxsgd.run(solver, state, data, steps)
    return state.params, state.model_state, trace.loss


@pytest.mark.parametrize("name", ["plain", "stateful, aux"])
def test_a_run_is_the_plain_one_wherever_the_rows_are(name):
    loss, model_state = LOSSES[name]
    params, data = table.problem(n=48)
    expected = trained(loss, data, params, model_state)  # batches of 16, 16, 16
    host = jaxsgd.HostRows(jax.tree.map(np.asarray, data), chunk_bytes=1)
    for rows in (data, host):
        found = trained(jaxsgd.Accumulated(loss, 3), rows, params, model_state)
        chex.assert_trees_all_close(found, expected, rtol=1e-5)
    sharded = trained(loss, data, params, model_state, jaxsgd.Sharded(16))
    rows = jaxsgd.MeshRows(data, jax.make_mesh((8,), ("data",), devices=jax.devices()))
    found = trained(jaxsgd.Accumulated(loss, 2), rows, params, model_state)
    chex.assert_trees_all_close(jax.device_get(found), jax.device_get(sharded), rtol=2e-5)


def test_parts_need_less_memory():
    """The activations of 8,192 rows in 256 hidden units are 8 MB; an eighth of them is 1 MB."""
    model = jaxsgd.models.MLP((16, 256, 4))
    params = model.init(jax.random.key(0))
    data = jax.ShapeDtypeStruct((8192, 16), jnp.float32), jax.ShapeDtypeStruct((8192,), jnp.int32)
    fn = optax.softmax_cross_entropy_with_integer_labels
    loss = lambda params, row: fn(model(params, row[0]), row[1])  # noqa: E731

    def bytes_of(chunks):
        gradient = jaxsgd.Accumulated(loss, chunks)
        solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(8192), jaxsgd.SGD(0.1))
        state = jax.eval_shape(partial(solver.init, key=jax.random.key(0)), params, data)
        compiled = jax.jit(solver.step).lower(state, data).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, parts = bytes_of(1), bytes_of(8)
    assert whole > 8 * 2**20
    assert parts < whole / 4


def drawn(params, row, key):
    """A loss whose slope in `noise` at a row's own slot is the number that the row has drawn."""
    return jnp.dot(params, row * jax.random.normal(key))


def test_a_keyed_loss_draws_other_numbers_in_each_part_and_each_step():
    rows, params = jnp.eye(12), jnp.zeros(12)
    batch = jaxsgd.Batch(jnp.arange(12, dtype=jnp.int32), jnp.ones(12))
    seen = []
    for chunks in (1, 3):
        gradient = jaxsgd.Accumulated(jaxsgd.RowLoss(drawn, keyed=True), chunks)
        state = gradient.init(params, rows, jax.random.key(0))
        update, value = jax.jit(gradient.update), jax.jit(gradient.value)
        own = []
        for _ in range(3):
            estimate, after = update(params, rows, batch, state)
            again, _ = update(params, rows, batch, state)
            chex.assert_trees_all_equal(estimate, again)
            chex.assert_trees_all_equal(
                jax.random.key_data(after.key), jax.random.key_data(state.key)
            )
            assert int(after.step) == int(state.step) + 1
            ahead = value(jnp.ones(12), rows, batch, state)  # under the very same numbers
            np.testing.assert_allclose(ahead, estimate.grads.sum(), rtol=1e-5)
            own.append(np.asarray(estimate.grads))
            state = after
        assert len(np.unique(own)) == 36
        seen.append(own)
    assert len(np.unique(seen)) > 36


def test_what_is_no_sum_over_rows_is_refused():
    told = "Accumulated's gradient is .*expected one that is a sum over rows"
    for loss in (
        jaxsgd.BatchLoss(table.weighted),
        jaxsgd.MinibatchGradient(jaxsgd.BatchLoss(table.weighted)),
        jaxsgd.RowsLoss(table.counted, has_model_state=True),
        jaxsgd.PerExampleClipped(table.loss, 1.0, noise=1.0, row_scale=0.1),
        jaxsgd.SAGA(table.loss),
        jaxsgd.SVRG(table.loss, 3),
    ):
        with pytest.raises(TypeError, match=told):
            jaxsgd.Accumulated(loss, 2)
    with pytest.raises(ValueError, match="Accumulated's chunks is 0"):
        jaxsgd.Accumulated(table.loss, 0)
    with pytest.raises(TypeError, match="Accumulated's chunks is 2.0"):
        jaxsgd.Accumulated(table.loss, 2.0)
    clipped = jaxsgd.PerExampleClipped(table.loss, 1.0)
    assert jaxsgd.Accumulated(clipped, 2).is_linear
