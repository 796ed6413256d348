"""Law 3: a run is the same bit for bit, however it is cut, recorded, chunked, stopped or streamed.

The step has to be compiled separately (`jaxsgd/loops/cpu_fusion.py`): fused with other operations,
XLA rounds it differently.
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

pytestmark = pytest.mark.skipif(
    cpu_fusion.why_off() is not None, reason="the law holds where a step is compiled separately"
)
STEPS = 8
NEVER = jaxsgd.EarlyStopping(patience=STEPS)


def everything(state, info):
    return info, state.params


def joined(traces):
    return jax.tree.map(lambda *x: jnp.concatenate(x), *traces)


def chunked(solver, state, data, record=None):
    turns = list(islice(jaxsgd.chunks(solver, state, data, STEPS // 2, record), 2))
    return turns[-1][0], joined(trace for _, trace in turns)


def assert_same_bits(solver, state, data, cut=STEPS // 2):
    whole, trace = jaxsgd.run(solver, state, data, STEPS)
    same = lambda other: chex.assert_trees_all_equal(key_data(whole), key_data(other))  # noqa: E731

    half, first = jaxsgd.run(solver, state, data, cut, everything)
    again, second = jaxsgd.run(solver, half, data, STEPS - cut, everything)
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
    cut = 1 if name == "shuffled" else STEPS // 2
    assert_same_bits(solver, *table.start(solver, model_state), cut)


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
    marks = []
    mark = cpu_fusion.set_xla_metadata
    spy = lambda x, **how: marks.append(how) or mark(x, **how)  # noqa: E731
    monkeypatch.setattr(cpu_fusion, "set_xla_metadata", spy)
    loss = lambda params, row: table.loss(params, row)  # noqa: E731  # of its own: not compiled yet
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), jaxsgd.Adam(0.05))
    state, data = table.start(solver, None)
    whole, trace = jaxsgd.run(solver, state, data, STEPS)

    assert marks == [cpu_fusion.FUNCTION, cpu_fusion.KERNEL]  # the step in the run

    small = cpu_fusion._is_small
    no_run = lambda jaxpr, in_loop=False: in_loop and small(jaxpr, in_loop)  # noqa: E731
    monkeypatch.setattr(cpu_fusion, "_is_small", no_run)
    half, first = jaxsgd.run(solver, state, data, STEPS // 2, everything)
    again, second = jaxsgd.run(solver, half, data, STEPS // 2, everything)
    chex.assert_trees_all_equal(key_data(whole), key_data(again))
    np.testing.assert_array_equal(trace.loss, joined([first[0], second[0]]).loss)
    assert marks[2:] == [cpu_fusion.FUNCTION, cpu_fusion.KERNEL]  # to count it; as a kernel


def test_a_run_that_stops_is_the_run_of_as_many_steps():
    solver, model_state = table.all_solvers()["adam schedule"]
    state, data = table.start(solver, model_state)
    until, _, ending = jaxsgd.run_until(
        solver, state, data, jaxsgd.SmallStep(1e9), max_steps=STEPS, check_every=2
    )
    assert int(ending.step) == 2
    whole, _ = jaxsgd.run(solver, state, data, 2)
    chex.assert_trees_all_equal(key_data(until), key_data(whole))


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
