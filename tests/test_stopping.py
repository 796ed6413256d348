"""Stops: each alone on given checks, then in runs, in lanes and in fit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import (
    AnyOf,
    Check,
    Converged,
    Diverged,
    EarlyStopping,
    Reason,
    SmallGradient,
    SmallStep,
)
from jaxsgd.core.trees import as_arguments
from jaxsgd.stopping.base import SENTENCES
from tests import table
from tests.test_laws import no_compilation

INF, NAN = float("inf"), float("nan")


def reasons(stop, monitors, norms=None):
    """The reason told at each check."""
    norms = [(1.0, 1.0)] * len(monitors) if norms is None else norms
    checks = [
        Check(i + 1, f, g, u) for i, (f, (g, u)) in enumerate(zip(monitors, norms, strict=True))
    ]
    checks = jax.tree.map(lambda *x: jnp.asarray(x), *checks)

    def look(state, check):
        reason, state = stop.update(check, state)
        assert reason.dtype == jnp.int32
        return state, reason

    return jax.lax.scan(look, stop.init(), checks)[1].tolist()


CONVERGED, PATIENCE, DIVERGED = map(int, (Reason.CONVERGED, Reason.NO_IMPROVEMENT, Reason.DIVERGED))
ON_MONITORS = [
    # never at the first check, whatever the monitor, then as soon as the change is atol
    (Converged(1.0), [0.0, 5.0, 4.0, 4.0], [0, 0, CONVERGED, CONVERGED]),
    (Converged(0.0), [5.0, 5.0, 4.0], [0, CONVERGED, 0]),
    (Converged(0.5), [-10.0, -12.0, -12.4], [0, 0, CONVERGED]),  # negative objectives
    (Converged(0.0, rtol=0.1), [-10.0, -12.0, -13.0], [0, 0, CONVERGED]),
    (Converged(0.0, rtol=0.1), [1.0, 1.105, 1.0], [0, 0, CONVERGED]),  # of the last, not the new
    (Converged(0.0, rtol=0.1), [INF, 10.0, 9.5], [0, 0, CONVERGED]),
    (Converged(1.0), [NAN, NAN, NAN], [0, 0, 0]),
    # the patience-th check in a row without improvement; the first one is an improvement
    (EarlyStopping(1), [3.0, 2.0, 2.0, 1.0], [0, 0, PATIENCE, 0]),
    (EarlyStopping(2), [3.0, 4.0, 2.9, 3.0, 2.9, 2.8], [0, 0, 0, 0, PATIENCE, 0]),
    (EarlyStopping(3), [1.0] * 5, [0, 0, 0, PATIENCE, PATIENCE]),
    (EarlyStopping(1, min_delta=0.5), [-1.0, -1.6, -2.0], [0, 0, PATIENCE]),
    (EarlyStopping(2, min_delta=0.5), [3.0, 2.6, 2.4], [0, 0, 0]),  # from the best, not the last
    (EarlyStopping(2), [NAN, NAN], [0, PATIENCE]),
    (Diverged(10.0), [2.0, 20.0, 20.1], [0, 0, DIVERGED]),
    (Diverged(10.0), [-2.0, 16.0, 16.1], [0, 0, DIVERGED]),
    (Diverged(10.0), [0.0, 5.0, INF], [0, 0, DIVERGED]),
    (Diverged(), [NAN], [DIVERGED]),
    (AnyOf(), [1.0, NAN], [0, 0]),
    (AnyOf(Converged(0.5), EarlyStopping(2)), [3.0, 3.0, 4.0], [0, CONVERGED, PATIENCE]),
    (AnyOf(EarlyStopping(1), Converged(0.5)), [3.0, 3.0], [0, PATIENCE]),  # the first named
]  # fmt: skip


@pytest.mark.parametrize(("stop", "monitors", "expected"), ON_MONITORS, ids=repr)
def test_neither_too_early_nor_too_late(stop, monitors, expected):
    assert reasons(stop, monitors) == expected


def test_small_gradients_and_steps():
    norms = [(1.0, 1.0), (0.1, 1.0), (1.0, 0.1), (0.2, 0.2)]
    assert reasons(SmallGradient(0.1), [1.0] * 4, norms) == [0, int(Reason.SMALL_GRADIENT), 0, 0]
    assert reasons(SmallStep(0.1), [1.0] * 4, norms) == [0, 0, int(Reason.SMALL_STEP), 0]


# in a run


@jaxsgd.part
class At(jaxsgd.Stop):
    """A stop of one's own: at a check."""

    check: int

    def init(self):
        return jnp.zeros((), jnp.int32)

    def update(self, check, state):
        return jnp.where(state + 1 >= self.check, int(Reason.STOPPED), 0), state + 1


PARAMS, DATA = table.problem()
SOLVER = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.Momentum(0.05, 0.5), jaxsgd.L2(0.01))


def until(stop, solver=SOLVER, max_steps=60, check_every=5, monitor=None, seed=0):
    state = solver.init(PARAMS, DATA, key=jax.random.key(seed))
    return jaxsgd.run_until(
        solver, state, DATA, stop, max_steps=max_steps, check_every=check_every, monitor=monitor
    )


def test_a_run_until_is_the_run_of_as_many_steps():
    start = SOLVER.init(PARAMS, DATA, key=jax.random.key(0))
    whole, info = jaxsgd.run(SOLVER, start, DATA, 60, lambda state, info: info)
    objective = np.reshape(info.loss + info.penalty, (12, 5)).mean(axis=1)
    for stopped, reason in [(1, Reason.STOPPED), (7, Reason.STOPPED), (12, Reason.STOPPED),
                            (13, Reason.MAX_STEPS)]:  # fmt: skip
        state, trace, ending = until(At(stopped))
        n = min(stopped, 12)
        assert Reason(int(ending.reason)) == reason
        assert (int(ending.step), int(ending.checks)) == (5 * n, n)
        assert int(state.step) == 5 * n
        np.testing.assert_allclose(trace.monitor[:n], objective[:n], rtol=1e-5)
        np.testing.assert_allclose(trace.grad_norm[:n], info.grad_norm[4::5][:n], rtol=1e-4)
        np.testing.assert_allclose(trace.update_norm[:n], info.update_norm[4::5][:n], rtol=1e-4)
        assert trace.step.tolist() == [5 * (i + 1) if i < n else -1 for i in range(12)]
        assert np.isinf(trace.monitor[n:]).all()
    chex.assert_trees_all_close(state.params, whole.params, rtol=1e-5)
    again, _ = jaxsgd.run(SOLVER, until(At(7))[0], DATA, 25)
    chex.assert_trees_all_close(again.params, whole.params, rtol=1e-5)


def test_other_tolerances_and_keys_compile_nothing_and_move_nothing():
    until(Converged(1e-3))
    state = SOLVER.init(PARAMS, DATA, key=jax.random.key(1))
    with no_compilation():
        _, _, first = until(Converged(1e-1), seed=1)
        _, _, second = until(Converged(1))
    assert int(first.checks) > int(second.checks) > 1
    args = as_arguments((SOLVER, state, DATA, Converged(1e-3)))
    with jax.transfer_guard("disallow"):
        jaxsgd.run_until(*args, max_steps=60, check_every=5)


def test_what_is_watched_may_be_the_exact_objective_or_held_out_rows():
    held_out = table.problem(n=33)[1]
    for monitor in (
        jaxsgd.Objective(table.loss, DATA, jaxsgd.L2(0.01)),
        jaxsgd.Objective(table.loss, held_out, batch_size=10),
    ):
        state, trace, ending = until(Converged(1e-3), monitor=monitor, max_steps=300)
        n = int(ending.checks)
        assert Reason(int(ending.reason)) == Reason.CONVERGED
        exact = np.mean(jax.vmap(table.loss, (None, 0))(state.params, monitor.data))
        exact += 0.0 if monitor.penalty is None else float(monitor.penalty(state.params))
        np.testing.assert_allclose(trace.monitor[n - 1], exact, rtol=1e-5)
        assert abs(trace.monitor[n - 1] - trace.monitor[n - 2]) <= 1e-3
        assert (abs(np.diff(trace.monitor[: n - 1])) > 1e-3).all()
    average = jaxsgd.Objective(table.loss, DATA, at=jaxsgd.averaged)
    state, _ = table.start(
        jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), table.RULES["average"](0.1)), None
    )
    np.testing.assert_allclose(average(state), jaxsgd.evaluate(table.loss, PARAMS, DATA), rtol=1e-6)


def explode(params, row):
    """Finite until |theta| passes a bound that the rate decides; then the gradient is not."""
    return jnp.sqrt(1e6 - params["weight"][0] ** 2) + 0 * table.loss(params, row)


def line(theta, y):
    return theta["x"] * y + 0 * theta["y"]


def root(theta, y):  # finite where its slope is not
    return theta["x"] ** 2 * y + jnp.sqrt(jnp.abs(theta["y"]))


def hole(theta, y):  # not finite where its slope is
    return theta["x"] ** 2 * y + jax.lax.stop_gradient(jnp.where(theta["x"] < 0.7, jnp.nan, 0.0))


@pytest.mark.parametrize(
    ("loss", "rule", "steps"),
    [(line, jaxsgd.SGD(3e38), 1), (root, jaxsgd.Adam(0.1), 0), (hole, jaxsgd.SGD(0.1), 2)],
    ids=["parameters", "gradient", "loss"],
)
def test_loss_gradient_and_parameters_are_each_looked_at(loss, rule, steps):
    """Of `line` only the second step's parameters overflow."""
    start = {"x": jnp.float32(1.0), "y": jnp.float32(0.0)}
    solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), rule)
    y = jnp.ones(2)
    state = solver.init(start, y, key=jax.random.key(0))
    state, _, ending = jaxsgd.run_until(solver, state, y, Converged(), max_steps=6, check_every=3)
    assert (int(ending.reason), int(ending.step)) == (DIVERGED, steps)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    # it wins over a stop's own reason
    state = solver.init(start, y, key=jax.random.key(0))
    _, _, ending = jaxsgd.run_until(solver, state, y, At(1), max_steps=6, check_every=3)
    assert int(ending.reason) == DIVERGED


@pytest.mark.parametrize("every", [1, 5])
def test_a_run_that_diverges_stands_at_the_last_finite_state_and_says_the_step(every):
    solver = jaxsgd.Solver(explode, jaxsgd.Shuffled(8), jaxsgd.SGD(300.0))
    start = solver.init(PARAMS, DATA, key=jax.random.key(0))
    _, info = jaxsgd.run(solver, start, DATA, 60, lambda state, info: (state, info.finite))
    path, finite = info
    bad = int(np.argmin(finite))
    assert 3 < bad < 55
    state, _, ending = until(At(1000), solver, check_every=every)
    assert Reason(int(ending.reason)) == Reason.DIVERGED
    assert int(ending.step) == int(state.step) == bad
    assert int(ending.checks) == bad // every + 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
    np.testing.assert_allclose(state.params["weight"], path.params["weight"][bad - 1], rtol=1e-5)
    # it stands where the same step would be taken again
    assert int(state.sampler.step) == bad
    if every > 1:
        return
    result = jaxsgd.fit(explode, PARAMS, DATA, key=jax.random.key(0), batch_size=8, epochs=50,
                        learning_rate=300.0, progress=False)  # fmt: skip
    assert result.reason == Reason.DIVERGED
    assert int(result.state.step) == bad == result.history["step"][-1]
    assert f"after {bad} steps: diverged" in result.message
    np.testing.assert_allclose(result.params["weight"], state.params["weight"], rtol=1e-5)


def test_lanes_stop_on_their_own_and_a_stopped_lane_is_frozen():
    rates = jnp.array([0.01, 0.05, 0.2, 1e4])

    def train(rate):
        solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(rate))
        return until(Converged(1e-2), solver)

    states, traces, endings = jax.jit(jax.vmap(train))(rates)
    assert len(set(endings.step.tolist())) > 2
    assert int(endings.reason[-1]) == Reason.DIVERGED
    alone = jax.jit(train)
    for i, rate in enumerate(rates):
        state, trace, ending = alone(rate)
        assert ending == tuple(x[i] for x in endings)
        np.testing.assert_allclose(states.params["weight"][i], state.params["weight"], rtol=2e-5)
        n = int(ending.checks)
        np.testing.assert_allclose(traces.monitor[i][:n], trace.monitor[:n], rtol=2e-5)
        assert (traces.step[i][n:] == -1).all()


def test_dtypes():
    for dtype in (jnp.bfloat16, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            state, data = table.start(SOLVER, None, dtype=dtype)
            stop = AnyOf(Converged(), EarlyStopping(3), Diverged(), SmallStep())
            until = lambda s, d: jaxsgd.run_until(SOLVER, s, d, stop, max_steps=6, check_every=3)  # noqa: B023, E731
            state, trace, _ = jax.eval_shape(until, state, data)
            assert state.params["weight"].dtype == dtype
            assert trace.monitor.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)


# in fit


def fit(stop, **options):
    options = {"epochs": 40, "batch_size": 8, "progress": False, "learning_rate": 0.05} | options
    return jaxsgd.fit(table.loss, PARAMS, DATA, key=jax.random.key(0), stop=stop, **options)


def test_fit_stops_by_the_same_rules_and_keeps_the_best_parameters_of_validation():
    x, y = table.problem(n=40)[1]
    held_out = x[20:], y[20:] / 2  # another truth: passed on the way, then left
    result = fit(EarlyStopping(3), validation=held_out, restore_best=True)
    losses = result.history["validation_loss"]
    assert result.reason == Reason.NO_IMPROVEMENT
    assert len(losses) == np.argmin(losses) + 4 < 40
    np.testing.assert_allclose(
        jaxsgd.evaluate(table.loss, result.params, held_out), min(losses), rtol=1e-5
    )
    np.testing.assert_allclose(
        jaxsgd.evaluate(table.loss, result.state.params, held_out), losses[-1], rtol=1e-5
    )
    assert "did not improve" in result.message
    with no_compilation():
        later = fit(EarlyStopping(5, 1e-6), validation=held_out, restore_best=True)
    assert len(later.history["epoch"]) == len(losses) + 2
    whole = fit(None, validation=held_out)
    assert whole.reason == Reason.EPOCHS
    chex.assert_trees_all_equal(whole.params, whole.state.params)
    without = fit(EarlyStopping(3), validation=held_out)  # what is returned is said, not implied
    chex.assert_trees_all_equal(without.state.params, result.state.params)
    chex.assert_trees_all_equal(without.params, without.state.params)
    best = fit(None, validation=held_out, restore_best=True)
    chex.assert_trees_all_equal(best.params, result.params)


def test_fit_maximises_a_score():
    score = {"score": lambda params, row: -jnp.abs(table.residual(params, row))}
    result = fit(
        EarlyStopping(3),
        validation=DATA,
        metrics=score,
        monitor="validation_score",
        mode="max",
        restore_best=True,
    )
    assert result.reason != Reason.NO_IMPROVEMENT or len(result.history["epoch"]) > 10
    best = max(result.history["validation_score"])
    held = jaxsgd.evaluate(score["score"], result.params, DATA)
    np.testing.assert_allclose(held, best, rtol=1e-5)
    by_train = fit(Converged(1e-3), validation=DATA, monitor="loss")
    chex.assert_trees_all_equal(by_train.params, by_train.state.params)
    yes = fit(AnyOf(Yes()))
    assert yes.reason == Reason.STOPPED


@jaxsgd.part
class Yes(jaxsgd.Stop):
    """A stop that answers with a bool."""

    def init(self):
        return ()

    def update(self, check, state):
        return check.step > 3, state


@jaxsgd.part
class Third(jaxsgd.Stop):
    """A stop whose memory is a Python number, which is weak."""

    def init(self):
        return 0

    def update(self, check, state):
        return state >= 2, jnp.where(state > 0, 2, 1)


def test_a_stop_of_weak_numbers_compiles_once():
    fit(Third(), epochs=1)
    with no_compilation():
        result = fit(Third(), epochs=4)
    assert len(result.history["epoch"]) == 3


def test_fit_watches_what_is_asked_for():
    by_loss = fit(Converged(1e-3))
    changes = abs(np.diff(by_loss.history["loss"]))
    assert by_loss.reason == Reason.CONVERGED
    assert changes[-1] <= 1e-3 < changes[:-1].min()
    metrics = {"error": lambda params, row: jnp.abs(table.residual(params, row))}
    by_error = fit(Converged(1e-2), metrics=metrics, monitor="error", mode="min")
    changes = abs(np.diff(by_error.history["error"]))
    assert changes[-1] <= 1e-2 < changes[:-1].min()
    by_step = fit(SmallStep(1e-2))
    assert by_step.reason == Reason.SMALL_STEP


def test_fit_gives_the_average_of_a_rule_that_keeps_one():
    result = fit(
        None, epochs=3, rule=table.RULES["average"](0.1), learning_rate=None, validation=DATA
    )
    chex.assert_trees_all_equal(result.params, jaxsgd.averaged(result.state))
    assert not np.array_equal(result.params["weight"], result.state.params["weight"])
    np.testing.assert_allclose(
        result.history["validation_loss"][-1],
        jaxsgd.evaluate(table.loss, result.params, DATA),
        rtol=1e-5,
    )


def test_refusals():
    with pytest.raises(
        ValueError, match="max_steps is 12, expected a multiple of check_every, which is 5"
    ):
        until(At(1), max_steps=12)
    with pytest.raises(TypeError, match="got the class Converged; did you forget to call it"):
        until(Converged)
    with pytest.raises(TypeError, match=r"or AnyOf\(a, b\) of two"):
        until([Converged(), EarlyStopping(2)])
    with pytest.raises(TypeError, match="Mine is not a part; did you forget @jaxsgd.part"):
        until(type("Mine", (jaxsgd.Stop,), {"init": None, "update": None})())
    with pytest.raises(TypeError, match=r"returned an array of shape \(3,\), expected a scalar"):
        until(At(1), monitor=lambda state: state.params["weight"])
    with pytest.raises(ValueError, match="Converged's atol is -1"):
        Converged(-1)
    with pytest.raises(ValueError, match="patience is 0, expected at least 1"):
        EarlyStopping(0)
    with pytest.raises(ValueError, match="factor is 0.5, expected at least 1"):
        Diverged(0.5)
    with pytest.raises(ValueError, match="monitor is 'accuracy', expected one of loss"):
        fit(Converged(), monitor="accuracy")
    with pytest.raises(TypeError, match="monitor is of type Objective, expected a name"):
        fit(Converged(), monitor=jaxsgd.Objective(table.loss, DATA))
    with pytest.raises(ValueError, match="without a stop"):
        fit(None, monitor="loss")
    with pytest.raises(ValueError, match="monitor='loss', mode='max'"):
        fit(Converged(), monitor="-loss")
    with pytest.raises(ValueError, match="mode is 'most', expected 'min' or 'max'"):
        fit(Converged(), mode="most")
    with pytest.raises(ValueError, match="restore_best=True needs an entry that is evaluated"):
        fit(None, restore_best=True)
    assert f"{Reason.CONVERGED}" == str(Reason.CONVERGED)
    assert Reason(42) == Reason.STOPPED
    assert {str(reason) for reason in Reason} == set(SENTENCES.values())
