"""The laws, stated once over the table of parts."""

import contextlib
from itertools import islice

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests import table
from tests.table import key_data


@contextlib.contextmanager
def no_compilation():
    """Counts compile events, not cache sizes: the one honest witness."""
    events = []

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not events


def everything(state, info):
    return info, state.params


# 4 to 6: runs (law 3: loops/test_same_bits.py)


@pytest.mark.parametrize("name", ["shuffled", "keyed"])
def test_a_lane_of_a_vmapped_run_follows_the_run_alone(name):
    rates = jnp.array([0.05, 0.1, 0.2])
    keys = jax.random.split(jax.random.key(1), 3)

    def train(rate, key):
        solver, _ = table.all_solvers(rate)[name]
        params, data = table.problem()
        state = solver.init(params, data, key=key)
        sampler = solver.sampler_for(data)
        record = lambda state, info: (sampler.update(state.sampler)[0].index, state.params)  # noqa: E731
        return jaxsgd.run(solver, state, data, 8, record)

    state, (index, path) = jax.jit(jax.vmap(train))(rates, keys)
    alone = jax.jit(train)
    for i in range(3):
        state_i, (index_i, path_i) = alone(rates[i], keys[i])
        chex.assert_trees_all_equal(index[i], index_i)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], path), path_i, rtol=2e-5)
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], state.params), state_i.params, rtol=2e-5
        )


RATES = [
    0.3,
    1,
    np.float32(0.2),
    np.float64(0.25),
    np.int64(1),
    jnp.float32(0.1),
    jnp.asarray(0.15),
    jnp.int32(1),
    jnp.bfloat16(0.1),
]


@pytest.mark.parametrize("name", table.RULES)
def test_another_number_key_or_data_of_the_same_shape_compiles_nothing(name):
    make = lambda rate: table.all_solvers(rate)[name][0]  # noqa: E731
    state, data = table.start(make(0.5), None)
    ready = jaxsgd.run(make(0.5), state, data, 4, everything)[1][0].loss
    others = [table.start(make(0.5), None, seed=seed)[0] for seed in range(len(RATES))]
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(1), data)
    with no_compilation():
        traces = [
            jaxsgd.run(make(rate), s, data, 4, everything)[1][0].loss
            for rate, s in zip(RATES, others, strict=True)
        ]
        jaxsgd.run(make(0.5), state, moved, 4, everything)
        jaxsgd.run(make(0.5), others[0], data, 4, everything)
    if name != "line search":  # exact on this quadratic, whatever its number
        assert not np.array_equal(traces[0], ready)
    # an int is the float of its value
    same = jaxsgd.run(make(1.0), others[1], data, 4, everything)[1][0].loss
    np.testing.assert_array_equal(traces[1], same)


def test_data_placed_by_hand_compile_a_program_once():
    solver, _ = table.all_solvers()["momentum"]
    params, data = table.problem()
    data = jax.device_put(data, jax.devices()[0])
    state = solver.init(params, data, key=jax.random.key(0))
    state, _ = jaxsgd.run(solver, state, data, 7)
    with no_compilation():
        jaxsgd.run(solver, state, data, 7)


def test_an_argument_that_changes_the_program_does_compile():
    """The witness of the law above can fail."""
    solver, _ = table.all_solvers()["sgd"]
    state, data = table.start(solver, None)
    with pytest.raises(AssertionError), no_compilation():
        jaxsgd.run(solver, state, data, 11)


def test_a_repeated_fit_compiles_nothing():
    params, data = table.problem()
    metrics = {"error": lambda params, row: jnp.abs(table.residual(params, row))}

    def fit(seed, rate, epochs):
        return jaxsgd.fit(
            table.loss, params, data, key=jax.random.key(seed), batch_size=table.BATCH, epochs=epochs,
            learning_rate=rate, validation=data, metrics=metrics, progress=False,
        )  # fmt: skip

    fit(0, 0.1, 2)
    with no_compilation():
        fit(1, 1, 3)
        fit(2, np.float32(0.01), 1)


@pytest.mark.parametrize("name", ["shuffled", "keyed", "momentum schedule", "adamw"])
def test_a_run_moves_nothing_between_host_and_device(name):
    solver, model_state = table.all_solvers()[name]
    state, data = table.start(solver, model_state)
    jaxsgd.run(solver, state, data, 4, everything)
    with jax.transfer_guard("disallow"):
        jaxsgd.run(solver, state, data, 4, everything)


def test_data_and_leaves_of_a_loss_are_arguments_not_constants():
    big = jnp.ones((table.N, 1000))
    loss = jax.tree_util.Partial(lambda frozen, w, row: jnp.sum(row * frozen * w), jnp.ones(1000))
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(4), jaxsgd.SGD(0.1))
    state = solver.init(jnp.zeros(()), big, key=jax.random.key(0))
    old = jax.config.jax_captured_constants_warn_bytes
    jax.config.update("jax_captured_constants_warn_bytes", 1000)
    try:
        jaxsgd.run(solver, state, big, 2)  # a warning is an error in this suite
        jaxsgd.evaluate(loss, jnp.zeros(()), big)
        with pytest.warns(UserWarning, match="constant"):  # the witness can fail
            jax.jit(lambda w: jnp.sum(big * w))(1.0)
    finally:
        jax.config.update("jax_captured_constants_warn_bytes", old)


# 7: keys


def test_legacy_keys_are_wrapped_and_draw_the_same():
    solver, _ = table.all_solvers()["keyed"]
    params, data = table.problem()
    legacy = solver.init(params, data, key=jax.random.PRNGKey(0))
    typed = solver.init(params, data, key=jax.random.key(0))
    chex.assert_trees_all_equal(key_data(legacy), key_data(typed))
    with pytest.raises(TypeError, match="key is 0 of type int"):
        solver.init(params, data, key=0)


def test_parts_fold_different_constants():
    solver, _ = table.all_solvers()["keyed"]
    state, _ = table.start(solver, None)
    words = [
        jax.random.key_data(k).tolist()
        for k in (state.sampler.key, state.gradient.key, jax.random.key(0))
    ]
    assert len({tuple(w) for w in words}) == 3


# 8: dtypes


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["stateful", "keyed", *table.RULES])
def test_parameters_keep_their_dtype_and_the_rest_accumulates(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        solver, model_state = table.all_solvers()[name]
        state, data = table.start(solver, model_state, dtype=dtype)
        run = lambda s, d: jaxsgd.run(solver, s, d, 3, lambda state, info: info)  # noqa: E731
        after, info = jax.eval_shape(run, state, data)
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype(dtype)}
        assert {x.dtype for x in (info.loss, info.penalty, info.grad_norm, info.update_norm)} == {
            jnp.dtype(wide)
        }
        for leaf in jax.tree.leaves(after.rule):
            assert leaf.dtype in (wide, jnp.int32)
        assert all(hasattr(x, "weak_type") for x in jax.tree.leaves(after))
        assert not any(x.weak_type for x in jax.tree.leaves(after))


def test_float32_parameters_in_x64_mode():
    with jax.enable_x64(True):
        for name in ("momentum schedule", "own factory"):
            solver, model_state = table.all_solvers()[name]
            state, data = table.start(solver, model_state, dtype=jnp.float32)
            after, trace = jaxsgd.run(solver, state, data, 3)
            assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype(jnp.float32)}
            assert trace.loss.dtype == jnp.float32


def test_a_decay_beside_bfloat16_parameters_is_not_one():
    rule = jaxsgd.Momentum(0.0, 0.999)
    state = rule.init(jnp.ones((), jnp.bfloat16))
    state = state._replace(velocity=jnp.float32(1.0))
    updates, _ = jax.jit(rule.update)(jnp.zeros((), jnp.bfloat16), state)
    assert updates.dtype == jnp.float32
    assert float(updates) == pytest.approx(0.999, abs=1e-6)


def test_own_parts_promote_no_ranks():
    for name in ("shuffled", "momentum schedule"):
        solver, model_state = table.all_solvers()[name]
        state, data = table.start(solver, model_state)
        with jax.numpy_rank_promotion("raise"):
            jaxsgd.run(solver, state, data, 2)


# 9: donation


@pytest.mark.parametrize("name", table.NAMES)
def test_no_two_leaves_of_a_state_share_a_buffer_and_none_is_the_callers(name):
    solver, model_state = table.all_solvers()[name]
    params, data = table.problem()
    params["bias"] = params["bias"] + 0
    key = jax.random.key(0)
    model_state = None if model_state is None else jnp.float32(model_state)
    state = solver.init(params, data, key=key, model_state=model_state)
    pointers = lambda tree: [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)]  # noqa: E731
    own, callers = pointers(state), pointers((params, data, key, model_state))
    assert len(set(own)) == len(own)
    assert not set(own) & set(callers)
    jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(state)
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, data, key, model_state)))


def test_fit_and_chunks_donate_states_of_their_own():
    from jaxsgd.loops.chunks import _Record, advances

    solver, _ = table.all_solvers()["momentum"]
    state, data = table.start(solver, None)
    next(advances(solver, state, data, [3], _Record(None), most=3))
    assert state.params["weight"].is_deleted()
    assert not data[0].is_deleted()
    first, _ = table.start(solver, None)
    states = [first, *(state for state, _ in islice(jaxsgd.chunks(solver, first, data, 3), 3))]
    assert not any(x.is_deleted() for x in jax.tree.leaves(states))


def test_after_fit_the_callers_arrays_are_alive_and_run_donates_nothing():
    params, data = table.problem()
    key = jax.random.key(0)
    jaxsgd.fit(
        table.loss, params, data, key=key, batch_size=8, epochs=2, learning_rate=0.1, progress=False
    )
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, data, key)))
    solver, _ = table.all_solvers()["momentum"]
    state, data = table.start(solver, None)
    jaxsgd.run(solver, state, data, 2)
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))
