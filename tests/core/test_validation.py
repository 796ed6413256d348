"""Errors: one sentence, with what was given, what was expected, and where."""

import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.core.part import as_callable
from jaxsgd.core.trees import as_arguments, part_as_arguments
from jaxsgd.data.arrays import as_rows
from jaxsgd.stopping.base import as_stop
from tests import table


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        ((np.zeros(3), np.zeros(4)), ValueError, r"data\[0\] has 3, data\[1\] has 4"),
        (np.zeros((0, 2)), ValueError, "data has 0 rows"),
        ((), ValueError, "holds no array"),
        (iter([1]), TypeError, "is an iterator"),
        ({"x": [1.0, 2.0]}, TypeError, r"data\['x'\]\[0\] is a float"),
        (jnp.float32(1), TypeError, "is a scalar"),
        (
            (np.zeros(2), np.array(["a", "b"])),
            TypeError,
            r"data\[1\] is an array of <U1, expected numbers",
        ),
        (np.array([2**40]), ValueError, "beyond 32 bits"),
    ],
)
def test_data(data, error, told):
    with pytest.raises(error, match=told):
        as_rows(data).check_values()


def test_an_error_inside_a_loss_tells_how_it_was_called():
    batched = lambda w, rows: jnp.mean((rows[0][:, 0] * w - rows[1]) ** 2)  # noqa: E731
    solver = jaxsgd.Solver(batched, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    data = jnp.ones((3, 1)), jnp.ones(3)
    state = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    with pytest.raises(IndexError) as caught:
        jaxsgd.run(solver, state, data, 1)
    assert "called as fn(params, row) with row of shape ((1,), ())" in caught.value.__notes__[0]
    assert "RowsLoss" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"w": jnp.zeros(2), "f": jax.nn.relu}, r"params\['f'\] is .*eqx.partition"),
        ([jnp.zeros(2, int)], r"params\[0\] is an array of int32, expected a float array"),
        ({"w": 0.5}, r"params\['w'\] is 0.5 \(float\)"),
    ],
)
def test_params(params, told):
    solver = jaxsgd.Solver(lambda p, row: row, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    with pytest.raises(TypeError, match=told):
        solver.init(params, jnp.zeros(3), key=jax.random.key(0))


MASKED = np.ma.masked_array([1.0, 2.0, 3.0], [False, True, False])


@pytest.mark.parametrize(
    ("call", "where"),
    [
        (lambda s: as_rows({"x": MASKED}).check_values(), r"data\['x'\]"),
        (lambda s: s.init({"w": MASKED}, jnp.zeros(3), key=jax.random.key(0)), r"params\['w'\]"),
        (
            lambda s: jaxsgd.Solver(s.gradient, s.sampler, s.rule, sample_weight=MASKED),
            "sample_weight",
        ),
        (lambda s: jaxsgd.SGD(MASKED), "SGD's learning_rate"),
    ],
)
def test_the_mask_of_an_array_is_not_dropped(call, where):
    solver = jaxsgd.Solver(lambda p, row: row, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    with pytest.raises(TypeError, match=f"{where} is a masked array"):
        call(solver)


def test_float64_that_float32_cannot_hold_or_tell_apart():
    times = np.arange(1.7e9, 1.7e9 + 300)[:, None] * np.ones(2)
    times[:, 0] = np.random.default_rng(0).normal(size=300)
    with pytest.warns(UserWarning, match=r"data\[0\]\[:, 1\] holds 300 .*float32 tells 3 apart"):
        as_rows((times, np.ones(300))).check_precision()
    with pytest.raises(
        ValueError, match=r"data\['y'\] holds 1e\+300, which is infinite in float32"
    ):
        as_rows({"y": np.array([1.0, 1e300])}).check_precision()
    as_rows(np.random.default_rng(0).normal(size=100_000)).check_precision()  # no warning
    as_rows(np.array([1.0, np.inf, np.nan])).check_precision()
    late = np.zeros((10_000, 3))
    late[9_999, 2] = -1e40  # not among the rows that are compared
    with pytest.raises(ValueError, match=r"data holds 1e\+40"):
        as_rows(late).check_precision()
    with pytest.warns(UserWarning, match="data holds 300 .* float32 tells 3 apart"):
        as_rows(times[:, 1].reshape(100, 3, 1)).check_precision()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: jaxsgd.RowLoss(lambda params, x, y: y), r"\(params, x, y\), but is called as fn\(params, row\)"),
        (lambda: jaxsgd.RowsLoss(lambda params: 0.0), r"called as fn\(params, rows\)"),
        (lambda: jaxsgd.BatchLoss(lambda params, rows: 0.0), r"called as fn\(params, rows, weight\)"),
        (lambda: jaxsgd.RowLoss(table.loss, keyed=True), r"called as fn\(params, row, key\)"),
    ],
)  # fmt: skip
def test_a_loss_of_other_arguments(make, told):
    with pytest.raises(TypeError, match=told):
        make()


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (jaxsgd.SGD(1e39), r"the solver.rule.learning_rate is 1e\+39, which is inf in float32"),
        (jaxsgd.SGD(1e-60), "which is 0 in float32"),
        (jaxsgd.Adam(0.1, b1=1 - 1e-9), r"rule.b1 is 0.999999999, which is 1 in float32"),
        (jaxsgd.EMA(jaxsgd.SGD(0.1), 1 - 1e-9), "decay is 0.999999999, which is 1 in float32"),
        (jaxsgd.SGD(jaxsgd.StepDecay(1e-50, 0.5, 3)), "which is 0 in float32"),
    ],
)
def test_numbers_that_the_dtype_of_the_parameters_cannot_hold(rule, told):
    solver = jaxsgd.Solver(lambda p, row: (p - row) ** 2, jaxsgd.FullBatch(), rule)
    with pytest.raises(ValueError, match=told):
        solver.init(jnp.zeros(()), jnp.zeros(3), key=jax.random.key(0))
    with jax.enable_x64(True):
        wide = jax.numpy.zeros((), jnp.float64)
        solver.init(wide, jnp.zeros(3), key=jax.random.key(0))


def test_a_stop_of_numbers_too_large():
    with pytest.raises(ValueError, match=r"stop.atol is 1e\+39, which is inf in float32"):
        as_stop(jaxsgd.Converged(1e39))


def test_steps_beyond_32_bits_are_refused_before_they_wrap():
    solver = jaxsgd.Solver(lambda p, row: (p - row) ** 2, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    data = jnp.zeros(3)
    state = solver.init(jnp.zeros(()), data, key=jax.random.key(0))
    state = state._replace(step=jnp.int32(2**31 - 2))
    with pytest.raises(ValueError, match=r"steps: expected at most 1 steps, got 2"):
        jaxsgd.run(solver, state, data, 2)
    assert int(jaxsgd.run(solver, state, data, 1)[0].step) == 2**31 - 1
    with pytest.raises(ValueError, match=r"max_steps: expected at most 1 steps, got 2"):
        jaxsgd.run_until(solver, state, data, jaxsgd.Converged(0.1), max_steps=2, check_every=1)


def test_sizes():
    params, data = table.problem()
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(64), jaxsgd.SGD(0.1))
    with pytest.raises(ValueError, match="batch_size of data with 20 rows is 64, expected 1 to 20"):
        solver.init(params, data, key=jax.random.key(0))


def test_parts_are_pytrees_that_compare_by_identity_and_bypass_init():
    rule = jaxsgd.Momentum(jnp.array([0.1, 0.2]), 0.9)
    assert rule == rule
    assert rule != jaxsgd.Momentum(jnp.array([0.1, 0.2]), 0.9)
    negative = jax.tree.map(lambda x: -x, rule)  # as the cotangents of a solver may be
    assert float(negative.momentum) == -0.9
    assert jax.tree.map(lambda _: None, rule).momentum is None
    with pytest.raises(AttributeError):
        rule.momentum = 0.5
    assert jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(rule)[1][0]) == ".momentum"


def test_the_arguments_of_a_solver_are_kept_with_it_and_no_longer_than_they_hold():
    make = lambda rate: jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(rate))  # noqa: E731
    params, data = table.problem()
    solver = make(0.1)
    state = solver.init(params, data, key=jax.random.key(0))
    once = part_as_arguments(solver)
    assert part_as_arguments(solver) is once
    with jax.enable_x64(True):
        assert part_as_arguments(solver).rule.learning_rate.dtype == "float64"
    assert part_as_arguments(solver).rule.learning_rate.dtype == "float32"

    traced = make(0.2)  # first met within a trace, whose arrays it must not keep
    jitted = jax.jit(lambda state: jaxsgd.run(traced, state, data, 2)[0].params)
    within = jitted(state)
    outside = jaxsgd.run(traced, state, data, 2)[0].params
    chex.assert_trees_all_close(within, outside, rtol=1e-6)

    rate = np.array(0.1, np.float32)
    changed = make(rate)
    slow = jaxsgd.run(changed, state, data, 2)[0].params
    rate[...] = 0.3
    fast = jaxsgd.run(changed, state, data, 2)[0].params
    assert not np.array_equal(slow["weight"], fast["weight"])

    gone = weakref.ref(solver)
    del solver, once
    gc.collect()
    assert gone() is None


def test_as_arguments_are_strong_and_name_what_is_no_array():
    arguments = as_arguments((jaxsgd.SGD(1), jnp.asarray(0.5), 3, np.float64(2), True))
    assert [str(x.dtype) for x in jax.tree.leaves(arguments)] == [
        "float32",
        "float32",
        "int32",
        "float32",
        "bool",
    ]
    assert not any(x.weak_type for x in jax.tree.leaves(arguments))
    with pytest.raises(TypeError, match=r"\['a'\] is 'text' of type str"):
        as_arguments({"a": "text"})
    with pytest.raises(TypeError, match="record is 3 of type int, expected a function"):
        as_callable(3, "record")
