"""What is particular to the rules: Optax on both sides, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd.rules.from_optax import Transformation
from tests import table
from tests.test_laws import no_compilation


def train(rule, steps=30, loss=table.loss):
    params, data = table.problem()
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), rule)
    state = solver.init(params, data, key=jax.random.key(0))
    return jaxsgd.run(solver, state, data, steps)[0]


def test_from_optax_and_a_ready_made_transformation_are_optax():
    params = train(jaxsgd.FromOptax(optax.adamw, learning_rate=0.1)).params
    ready = train(optax.adamw(0.1)).params
    np.testing.assert_allclose(params["weight"], ready["weight"], rtol=1e-5)
    solver = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), optax.adamw(0.1))
    assert isinstance(solver.rule, Transformation)
    assert jax.tree.leaves(solver) == []


def test_adamw_through_from_optax_follows_a_plain_optax_loop():
    params, data = table.problem()
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), table.RULES["adamw"](0.1))
    state = solver.init(params, data, key=jax.random.key(0))
    final, _ = jaxsgd.run(solver, state, data, 50)
    sampler, rule = solver.sampler_for(data), optax.adamw(0.1, weight_decay=0.01)

    @jax.jit
    def step(params, memory, t):
        index, weight = sampler.batch(state.sampler.key, t)
        rows = jax.tree.map(lambda x: x[index], data)
        grads = jax.grad(lambda p: weight @ jax.vmap(table.loss, (None, 0))(p, rows))(params)
        updates, memory = rule.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory

    memory = rule.init(params)
    for t in range(50):
        params, memory = step(params, memory, t)
    np.testing.assert_allclose(final.params["weight"], params["weight"], rtol=1e-4)
    np.testing.assert_allclose(final.params["bias"], params["bias"], rtol=1e-4)


def test_a_multi_steps_wrapper_and_arrays_of_ints_are_taken_as_they_are():
    wrapped = train(optax.MultiSteps(optax.sgd(0.1), 2), 6).params
    assert np.isfinite(wrapped["weight"]).all()

    def factory(learning_rate, table_):
        assert jnp.asarray(table_).dtype == jnp.int32
        return optax.sgd(learning_rate)

    rule = jaxsgd.FromOptax(factory, learning_rate=1, table_=jnp.array([3, 4]))
    assert np.isfinite(train(rule, 2).params["bias"])
    partial = jaxsgd.FromOptax(optax.nadam, learning_rate=0.1)  # Optax's own is a partial
    assert np.isfinite(train(partial, 2).params["bias"])
    swapped = jaxsgd.FromOptax(factory, table_=jnp.array([3, 4]), learning_rate=1)
    assert jax.tree.structure(swapped) == jax.tree.structure(rule)
    yes, one = (jaxsgd.FromOptax(optax.sgd, learning_rate=0.1, nesterov=v) for v in (True, 1))
    assert jax.tree.structure(yes) != jax.tree.structure(one)


def test_a_rule_with_a_key_of_its_own_trains():
    noisy = train(optax.noisy_sgd(0.1, key=jax.random.key(3)), 6).params
    assert np.isfinite(noisy["weight"]).all()
    rule = jaxsgd.FromOptax(optax.noisy_sgd, learning_rate=0.1, key=jax.random.key(4))
    assert np.isfinite(train(rule, 6).params["weight"]).all()


CATALOGUE = {
    "adamw": lambda a: jaxsgd.FromOptax(optax.adamw, learning_rate=a, weight_decay=1e-3),
    "lion": lambda a: jaxsgd.FromOptax(optax.lion, learning_rate=a),
    "adafactor": lambda a: jaxsgd.FromOptax(optax.adafactor, learning_rate=a),
    "lamb": lambda a: jaxsgd.FromOptax(optax.lamb, learning_rate=a),
    "schedule_free_sgd": lambda a: jaxsgd.FromOptax(
        optax.contrib.schedule_free_sgd, learning_rate=a
    ),
    "polyak_sgd": lambda a: jaxsgd.FromOptax(optax.polyak_sgd, max_learning_rate=a),
    "lbfgs": lambda a: jaxsgd.FromOptax(optax.lbfgs, learning_rate=a),
    "injected": lambda a: jaxsgd.FromOptax(injected, learning_rate=a),
    "own factory": lambda a: jaxsgd.FromOptax(
        scheduled, learning_rate=a, schedule=jaxsgd.LinearDecay(1.0, 0.5, 20), max_norm=1.0
    ),
}


def rate_of(state, info):
    return info.learning_rate


def injected(learning_rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


def scheduled(learning_rate, schedule, max_norm):
    """Global-norm clipping, adamw, and a schedule whose constants are leaves."""
    rate = lambda step: learning_rate * schedule(step)  # noqa: E731
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adamw(rate))


@pytest.mark.parametrize("name", CATALOGUE)
def test_optaxs_rules_train_through_the_solver_and_other_numbers_compile_nothing(name):
    """From a start that is not zero: adafactor and lamb scale with the parameters."""
    _, data = table.problem()
    params = {"bias": jnp.float32(0.5), "weight": jnp.array([2.0, 1.0, 1.0])}
    sampler = jaxsgd.FullBatch() if name == "lbfgs" else jaxsgd.Shuffled(8)

    def loss_after(rate):
        solver = jaxsgd.Solver(table.loss, sampler, CATALOGUE[name](rate))
        state = solver.init(params, data, key=jax.random.key(0))
        state, info = jaxsgd.run(solver, state, data, 60, rate_of)
        return float(jaxsgd.evaluate(table.loss, state.params, data)), info

    before = float(jaxsgd.evaluate(table.loss, params, data))
    rates = {"lbfgs": 1.0, "polyak_sgd": 1.0, "schedule_free_sgd": 0.5}
    rate = rates.get(name, 0.05)
    after, told = loss_after(rate)
    assert after < 0.5 * before
    with no_compilation():
        other, _ = loss_after(rate / 10)
    assert other != after
    if name == "lbfgs":
        assert (told > 0).all()  # the search's own
    elif name in ("polyak_sgd", "own factory"):
        assert told is None  # Optax keeps it to itself; one's own may scale it
    else:
        np.testing.assert_allclose(told[0], rate, rtol=1e-6)


def test_which_hyperparameters_are_leaves():
    rule = jaxsgd.FromOptax(
        optax.adamw, learning_rate=1, b1=0.8, nesterov=True, eps=jnp.float32(1e-8)
    )
    assert set(rule.numbers) == {"learning_rate", "b1", "eps"}
    assert rule.options == {"nesterov": True}
    schedule = jaxsgd.FromOptax(optax.sgd, learning_rate=jaxsgd.InverseTimeDecay(0.1, 0.2))
    assert jax.tree.leaves(schedule) == [0.1, 0.2]
    plain = jaxsgd.FromOptax(optax.sgd, learning_rate=optax.cosine_decay_schedule(0.1, 10))
    assert jax.tree.leaves(plain) == []
    assert "adamw" in repr(rule)
    again = jax.tree.unflatten(jax.tree.structure(rule), jax.tree.leaves(rule))
    assert again.options == rule.options
    with pytest.raises(AttributeError, match="frozen"):
        rule.factory = optax.sgd


def test_a_factory_that_looks_at_a_number_is_told_of_static():
    def picky(learning_rate, peak):
        return optax.sgd(learning_rate if peak == 0 else peak)

    with pytest.raises(TypeError, match=r"name that number in static="):
        train(jaxsgd.FromOptax(picky, learning_rate=0.1, peak=0.2), 2)
    fine = train(jaxsgd.FromOptax(picky, static=("peak",), learning_rate=0.1, peak=0.2), 2)
    assert np.isfinite(fine.params["bias"])


def test_refusals():
    with pytest.raises(ValueError, match="SGD's learning_rate is -0.1, expected at least 0"):
        jaxsgd.SGD(-0.1)
    with pytest.raises(ValueError, match="SGD's learning_rate is nan"):
        jaxsgd.SGD(float("nan"))
    with pytest.raises(ValueError, match="momentum is 1.5, expected 0 to 1"):
        jaxsgd.Momentum(0.1, 1.5)
    with pytest.raises(TypeError, match="learning_rate is '0.1'"):
        jaxsgd.SGD("0.1")
    with pytest.raises(TypeError, match="learning_rate is True"):
        jaxsgd.SGD(True)
    with pytest.raises(ValueError, match="sgd's learning_rate is -1"):
        jaxsgd.FromOptax(optax.sgd, learning_rate=-1)
    with pytest.raises(TypeError, match="sgd takes no 'rate'; it takes learning_rate"):
        jaxsgd.FromOptax(optax.sgd, learning_rate=0.1, rate=0.1)
    with pytest.raises(TypeError, match="sgd needs 'learning_rate'"):
        jaxsgd.FromOptax(optax.sgd)
    with pytest.raises(
        TypeError, match="given a GradientTransformationExtraArgs, expected a factory"
    ):
        jaxsgd.FromOptax(optax.sgd(0.1))
    with pytest.raises(ValueError, match="learning_rate is inf"):
        jaxsgd.SGD(float("inf"))
    with pytest.raises(TypeError, match=r"learning_rate is a functools.partial"):
        jaxsgd.FromOptax(optax.sgd, learning_rate=functools.partial(lambda a, t: a, 0.1))
    with pytest.raises(TypeError, match="static names 'b1'"):
        jaxsgd.FromOptax(optax.sgd, static=("b1",), learning_rate=0.1)
    with pytest.raises(TypeError, match="mask is a dict"):
        jaxsgd.FromOptax(optax.adamw, learning_rate=0.1, mask={"weight": True})


def test_numbers_wait_for_a_vmap_and_in_axes_trees_can_be_built():
    rates = jnp.array([0.05, 0.1])
    params, data = table.problem()
    make = lambda rate: jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(rate))  # noqa: E731
    stacked, axes = make(rates), make(0)
    state = make(0.1).init(params, data, key=jax.random.key(0))
    axes = jax.tree.unflatten(jax.tree.structure(stacked), jax.tree.leaves(axes))
    final, _ = jax.vmap(lambda s: jaxsgd.run(s, state, data, 5), in_axes=(axes,))(stacked)
    alone, _ = jaxsgd.run(make(0.1), state, data, 5)
    np.testing.assert_allclose(final.params["weight"][1], alone.params["weight"], rtol=1e-5)
