"""Derivatives through a run: hypergradients."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxsgd
from tests import table


def held_out(numbers, train, held, remat=False):
    rule = jaxsgd.Momentum(numbers["learning_rate"], numbers["momentum"])
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(5), rule, jaxsgd.L2(numbers["penalty"]))
    params = jax.tree.map(lambda x: x.astype(train[0].dtype), table.problem()[0])
    state = solver.init(params, train, key=jax.random.key(0))
    state, _ = jaxsgd.run(solver, state, train, 1000, remat=remat)
    return jaxsgd.evaluate(table.loss, state.params, held)


def test_hypergradients_agree_with_finite_differences_in_bounded_memory():
    with jax.enable_x64(True):
        rows = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), table.problem(jnp.float64, 40)[1]
        )
        train, held = (
            jax.tree.map(lambda x, part=part: x[part], rows) for part in (slice(20), slice(20, 40))
        )
        numbers = {"learning_rate": 0.002, "momentum": 0.5, "penalty": 0.1}
        numbers = jax.tree.map(jnp.float64, numbers)
        value = jax.jit(held_out)
        ways = {
            "reverse": jax.jit(jax.grad(held_out)),
            "remat": jax.jit(jax.grad(partial(held_out, remat=True))),
            "forward": jax.jit(jax.jacfwd(held_out)),
        }
        ways = {name: way.lower(numbers, train, held).compile() for name, way in ways.items()}
        slopes = {name: way(numbers, train, held) for name, way in ways.items()}
        for name, number in numbers.items():
            h = 1e-5 * number
            ends = [value(numbers | {name: number + sign * h}, train, held) for sign in (1, -1)]
            expected = float((ends[0] - ends[1]) / (2 * h))
            assert abs(expected) > 1e-3
            for way in ways:
                assert float(slopes[way][name]) == pytest.approx(expected, rel=1e-6), way
        held_bytes = {name: way.memory_analysis().temp_size_in_bytes for name, way in ways.items()}
    assert held_bytes["remat"] < held_bytes["reverse"] / 10
    assert held_bytes["forward"] < held_bytes["reverse"] / 50


def test_remat_gives_the_same_run():
    solver, _ = table.all_solvers()["momentum"]
    state, data = table.start(solver, None)
    plain = jaxsgd.run(solver, state, data, 14, record_every=2)
    chex.assert_trees_all_close(
        table.key_data(jaxsgd.run(solver, state, data, 14, record_every=2, remat=True)),
        table.key_data(plain), rtol=1e-6,
    )  # fmt: skip
