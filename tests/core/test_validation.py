"""Errors: one sentence, with what was given, what was expected, and where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.core.part import as_callable
from jaxsgd.core.trees import as_arguments
from jaxsgd.data.arrays import as_rows
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
