"""Convolutions within a loop are the same numbers in another order of dimensions."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsgd
from jaxsgd.core.jaxprs import inner_jaxprs
from jaxsgd.loops import cpu_convolutions, run

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="convolutions are reordered on a CPU"
)


def convolution(order, shape, kernel, **options):
    """A loss of one convolution, its parameters and its rows, of channels as in `order`."""
    options = {"window_strides": (1,) * (len(shape) - 1), "padding": "SAME"} | options

    def loss(params, rows):
        given = (rows, params) if order[0][0] == "N" else (params, rows)
        y = lax.conv_general_dilated(*given, dimension_numbers=order, **options)
        return jnp.mean(jnp.tanh(y), axis=range(1, y.ndim)) + 0.1 * jnp.mean(y**2)

    rng = np.random.default_rng(0)
    rows, params = rng.normal(size=(12, *shape)), 0.3 * rng.normal(size=kernel)
    return loss, params.astype(np.float32), rows.astype(np.float32)


CASES = {
    "2-D": convolution(("NHWC", "HWIO", "NHWC"), (6, 5, 3), (3, 2, 3, 4)),
    "channels first": convolution(("NCHW", "OIHW", "NCHW"), (3, 6, 5), (4, 3, 3, 2)),
    "1-D": convolution(("NWC", "WIO", "NWC"), (7, 3), (3, 3, 4)),
    "3-D": convolution(("NDHWC", "DHWIO", "NDHWC"), (3, 4, 3, 2), (2, 2, 3, 2, 2)),
    "grouped": convolution(
        ("NHWC", "HWIO", "NHWC"), (6, 5, 4), (3, 2, 2, 6), feature_group_count=2
    ),
    "strided, dilated": convolution(
        ("NHWC", "HWIO", "NHWC"), (6, 5, 3), (3, 2, 3, 4), window_strides=(2, 1), rhs_dilation=(1, 2)
    ),
    "transposed": convolution(
        ("NHWC", "HWIO", "NHWC"), (4, 5, 3), (3, 2, 3, 4), padding=((2, 2), (1, 1)),
        lhs_dilation=(2, 2),
    ),
}  # fmt: skip


def started(case, gradient=None):
    loss, *arrays = CASES[case]
    params, rows = map(jnp.asarray, arrays)
    loss = jaxsgd.RowsLoss(loss)
    solver = jaxsgd.Solver(
        gradient(loss) if gradient else loss, jaxsgd.Shuffled(4), jaxsgd.Momentum(0.05, 0.9)
    )
    return solver, solver.init(params, rows, key=jax.random.key(0)), rows


def orders(jaxpr):
    """The orders of dimensions of all convolutions of a program."""
    for equation in jaxpr.eqns:
        if equation.primitive is lax.conv_general_dilated_p:
            yield equation.params["dimension_numbers"]
        for inner in inner_jaxprs(equation.params):
            yield from orders(inner)


@pytest.mark.parametrize("case", CASES)
def test_runs_are_the_same(case):
    solver, state, data = started(case)
    ours, trace = jaxsgd.run(solver, state, data, 5)
    theirs, plain = jax.jit(partial(jaxsgd.run, steps=5))(solver, state, data)
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=2e-5, atol=1e-6)
    chex.assert_trees_all_close(trace.loss, plain.loss, rtol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_all_convolutions_of_a_run_are_in_the_fast_order(case, monkeypatch):
    """A canary: also where JAX changes what it makes of a derivative."""
    program = partial(run.scan_steps, record=lambda *_: (), windows=2)
    args = started(case)
    before, after = (
        {*orders(jax.make_jaxpr(fn)(*args).jaxpr)}
        for fn in (program, cpu_convolutions.reordered(program))
    )
    rank = args[2].ndim
    assert after == {cpu_convolutions._fast_order(rank)} != before
    monkeypatch.setenv("JAXSGD_CPU_CONVOLUTIONS", "0")
    assert before == {*orders(jax.make_jaxpr(cpu_convolutions.reordered(program))(*args).jaxpr)}


def test_convolutions_within_loops_branches_and_checkpoints():
    loss, *arrays = CASES["2-D"]
    params, rows = map(jnp.asarray, arrays)
    zero = lambda params, rows: 0 * loss(params, rows)  # noqa: E731
    branch = lambda params, rows: lax.cond(params[0, 0, 0, 0] > 9, zero, loss, params, rows)  # noqa: E731
    again = jax.checkpoint(branch)
    gradient = jaxsgd.Accumulated(jaxsgd.RowsLoss(again), 2)
    solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(4), jaxsgd.SGD(0.05))
    state = solver.init(params, rows, key=jax.random.key(0))
    program = partial(run.scan_steps, record=lambda *_: (), windows=2)
    reordered = jax.make_jaxpr(cpu_convolutions.reordered(program))(solver, state, rows)
    assert {*orders(reordered.jaxpr)} == {cpu_convolutions._fast_order(4)}
    ours, _ = jaxsgd.run(solver, state, rows, 5)
    theirs, _ = jax.jit(partial(jaxsgd.run, steps=5))(solver, state, rows)
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=2e-5, atol=1e-6)


def test_all_loops_and_sweeps(monkeypatch):
    rewritten = []
    rewrite = cpu_convolutions._rewritten
    spy = lambda jaxpr: rewritten.append(jaxpr) or rewrite(jaxpr)  # noqa: E731
    monkeypatch.setattr(cpu_convolutions, "_rewritten", spy)

    def is_rewritten():
        found = bool(rewritten)
        rewritten.clear()
        return found

    solver, state, data = started("grouped")
    own = CASES["grouped"][0]
    solver = jaxsgd.Solver(
        jaxsgd.RowsLoss(lambda *args: own(*args)), solver.sampler, solver.rule
    )  # not compiled before
    whole, _ = jaxsgd.run(solver, state, data, 6)
    assert is_rewritten()
    stop = jaxsgd.SmallStep(0.0)
    jaxsgd.run_until(solver, state, data, stop, max_steps=6, check_every=3)
    assert is_rewritten()

    def final(solver, state, data, rate):
        rule = jaxsgd.Momentum(rate, 0.9)
        return jaxsgd.run(jaxsgd.Solver(solver.gradient, solver.sampler, rule), state, data, 6)[0]

    swept = jaxsgd.sweep(final, solver, state, data, over={"rate": [0.01, 0.05]}).value
    assert is_rewritten()
    chex.assert_trees_all_close(swept.params[1], whole.params, rtol=2e-5, atol=1e-6)
    turns = jaxsgd.chunks(solver, state, data, steps=3)
    next(turns)
    assert is_rewritten()
    chex.assert_trees_all_equal(next(turns)[0].params, whole.params)
    monkeypatch.setenv("JAXSGD_CPU_CONVOLUTIONS", "0")
    jaxsgd.run(solver, state, data, 6)
    assert not is_rewritten()
