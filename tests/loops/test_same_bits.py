"""Law 3: a run is the same bit for bit, however it is cut, recorded, chunked, stopped or streamed.

On one CPU, for each program is compiled by itself: XLA rounds differently where it fuses a step with
other operations (`jaxsgd/loops/cpu_fusion.py`).
"""

from itertools import islice

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd.loops import cpu_fusion
from tests import table
from tests.table import key_data

STEPS = 8
NEVER = jaxsgd.EarlyStopping(patience=STEPS)


def everything(state, info):
    return info, state.params


def joined(traces):
    return jax.tree.map(lambda *x: jnp.concatenate(x), *traces)


def chunked(solver, state, data, record=None):
    turns = list(islice(jaxsgd.chunks(solver, state, data, STEPS // 2, record), 2))
    return turns[-1][0], joined(trace for _, trace in turns)


def assert_same_bits(solver, state, data):
    whole, trace = jaxsgd.run(solver, state, data, STEPS)
    same = lambda other: chex.assert_trees_all_equal(key_data(whole), key_data(other))  # noqa: E731

    half, first = jaxsgd.run(solver, state, data, STEPS // 2, everything)
    again, second = jaxsgd.run(solver, half, data, STEPS // 2, everything)
    same(again)
    np.testing.assert_array_equal(trace.loss, joined([first[0], second[0]]).loss)

    turns, losses = chunked(solver, state, data)
    same(turns)
    np.testing.assert_array_equal(trace.loss, losses.loss)

    until, _, ending = jaxsgd.run_until(
        solver, state, data, NEVER, max_steps=STEPS, check_every=STEPS // 2
    )
    assert int(ending.step) == STEPS
    same(until)


@pytest.mark.parametrize("name", table.NAMES)
def test_every_part(name):
    solver, model_state = table.all_solvers()[name]
    assert_same_bits(solver, *table.start(solver, model_state))


# combinations in which single bits were seen to differ
SEEN = {
    "a sum of few rows": lambda: (table.loss, jaxsgd.WithReplacement(5), jaxsgd.SGD(0.1)),
    "a table": lambda: (jaxsgd.SAGA(table.loss), jaxsgd.FullBatch(), jaxsgd.SGD(0.05)),
    "adam": lambda: (table.loss, jaxsgd.Shuffled(8), jaxsgd.Adam(0.05)),
}


@pytest.mark.parametrize("name", SEEN)
def test_combinations(name):
    solver = jaxsgd.Solver(*SEEN[name]())
    state, data = table.start(solver, None)
    assert_same_bits(solver, state, data)
    whole, trace = jaxsgd.run(solver, state, data, STEPS)
    for record in (lambda state, info: info.update_norm, lambda state, info: info.grad_norm):
        recorded, _ = jaxsgd.run(solver, state, data, STEPS, record)
        chex.assert_trees_all_equal(recorded.params, whole.params)
    windows, last = jaxsgd.run(solver, state, data, STEPS, record_every=4)
    chex.assert_trees_all_equal(windows.params, whole.params)
    np.testing.assert_array_equal(last.loss, trace.loss[3::4])
    streamed, losses = chunked(solver, state, jaxsgd.HostRows(jax.tree.map(np.asarray, data)))
    chex.assert_trees_all_equal(streamed.params, whole.params)
    np.testing.assert_array_equal(losses.loss, trace.loss)


def softmax(params, row):
    logits = row[0] @ params["weight"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, row[1])


@pytest.mark.parametrize("rule", [optax.adamw(1e-2), optax.lamb(1e-2)])
def test_a_step_that_is_no_kernel(rule):
    features = jax.random.normal(jax.random.key(0), (100, 300))
    data = features, jnp.arange(100, dtype=jnp.int32) % 10
    params = {"weight": jnp.zeros((300, 10)), "bias": jnp.zeros(10)}
    solver = jaxsgd.Solver(softmax, jaxsgd.Shuffled(16), rule, jaxsgd.L2(1e-3))
    assert_same_bits(solver, solver.init(params, data, key=jax.random.key(0)), data)


def test_a_program_that_is_too_long_for_one_kernel(monkeypatch):
    """Its step is a kernel all the same."""
    loss = lambda params, row: table.loss(params, row)  # noqa: E731  # of its own: not compiled yet
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), jaxsgd.Adam(0.05))
    state, data = table.start(solver, None)
    whole, trace = jaxsgd.run(solver, state, data, STEPS)

    small = cpu_fusion._is_small
    is_loop = lambda jaxpr: any(e.primitive.name == "scan" for e in jaxpr.eqns)  # noqa: E731
    monkeypatch.setattr(cpu_fusion, "_is_small", lambda jaxpr: small(jaxpr) and not is_loop(jaxpr))
    half, first = jaxsgd.run(solver, state, data, STEPS // 2, everything)
    again, second = jaxsgd.run(solver, half, data, STEPS // 2, everything)
    chex.assert_trees_all_equal(key_data(whole), key_data(again))
    np.testing.assert_array_equal(trace.loss, joined([first[0], second[0]]).loss)


def test_fit(tmp_path):
    """Its epochs are cut where a checkpoint is due."""
    params, data = table.problem()
    rule = jaxsgd.Adam(0.05)
    options = {"key": jax.random.key(0), "batch_size": 8, "epochs": 4, "progress": False}
    whole = jaxsgd.fit(table.loss, params, data, rule=rule, **options)
    cut = jaxsgd.fit(
        table.loss, params, data, rule=rule, checkpoint=tmp_path, checkpoint_every=2, **options
    )
    chex.assert_trees_all_equal(key_data(whole.state), key_data(cut.state))
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), rule)
    state = solver.init(params, data, key=jax.random.key(0))
    run, _ = jaxsgd.run(solver, state, data, int(whole.state.step))
    chex.assert_trees_all_equal(run.params, whole.state.params)
