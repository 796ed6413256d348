"""Many runs at once: each equals the run alone, and shares what does not depend on its axes."""

import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.core.part import as_callable
from jaxsgd.core.trees import as_arguments, words_of
from jaxsgd.sweeps import memory, vmapped
from jaxsgd.sweeps.axes import as_axes, value_at
from tests import table
from tests.test_laws import no_compilation

STEPS = 9


def train(data, params, learning_rate=0.05, momentum=0.5, key=None, **numbers):
    """Everything that can be an axis, one of each."""
    rate = jaxsgd.InverseTimeDecay(learning_rate, numbers.get("decay", 0.0))
    sampler = jaxsgd.Shuffled(table.BATCH)
    if "batch_size" in numbers:
        sampler = jaxsgd.DynamicBatch(sampler, numbers["batch_size"])
    solver = jaxsgd.Solver(
        table.loss, sampler, jaxsgd.Momentum(rate, momentum),
        jaxsgd.L2(numbers.get("penalty", 0.01)), numbers.get("sample_weight"),
    )  # fmt: skip
    key = jax.random.key(7) if key is None else key
    state = solver.init(numbers.get("start", params), data, key=key)
    state, trace = jaxsgd.run(solver, state, data, STEPS)
    return {"params": state.params, "loss": trace.loss}


def close(a, b):
    chex.assert_trees_all_close(a, b, rtol=2e-5, atol=1e-6)


@pytest.fixture(scope="module")
def problem():
    params, data = table.problem()
    return data, params


FOLDS = (np.arange(table.N) % 4 != np.arange(4)[:, None]).astype(np.float32)


def test_every_run_equals_the_run_alone(problem):
    keys = jax.random.split(jax.random.key(0), 2)
    starts = {"bias": np.arange(3.0, dtype=np.float32), "weight": np.eye(3, dtype=np.float32)}
    over = [
        {"learning_rate": [0.01, 0.05, 0.1], "penalty": [0.0, 0.1, 1], "start": starts},
        {"key": keys},
        {"momentum": (0, 0.9), "decay": np.array([0.1, 0.0])},
    ]
    result = jaxsgd.sweep(train, *problem, over=over)
    assert result.shape == (3, 2, 2)
    chex.assert_shape(result.value["loss"], (3, 2, 2, STEPS))
    chex.assert_shape(result.value["params"]["weight"], (3, 2, 2, table.D))
    alone = jax.jit(train)
    for i, j, k in [(0, 0, 0), (2, 1, 1), (1, 0, 1)]:
        point = {
            name: value_at(jax.tree.map(jnp.asarray, values), place)
            for axis, place in zip(as_axes(over), (i, j, k), strict=True)
            for name, values in axis.items()
        }
        close(jax.tree.map(lambda x: x[i, j, k], result.value), alone(*problem, **point))  # noqa: B023
    rates = {**over[0], "learning_rate": [0.02, 0.03, 0.04]}
    others = jax.random.split(jax.random.key(5), 2)
    with no_compilation():  # other values
        again = jaxsgd.sweep(train, *problem, over=[rates, {"key": others}, over[2]])
    assert not np.allclose(again.value["loss"], result.value["loss"])


def test_folds_and_batch_sizes_are_axes(problem):
    """Sample weights are the folds of a cross-validation, each the run on its rows alone."""
    over = {"sample_weight": FOLDS, "batch_size": [3, 8]}
    result = jaxsgd.sweep(train, *problem, over=over)
    for fold in (0, 3):
        for place, batch_size in enumerate(over["batch_size"]):
            solver = jaxsgd.Solver(
                table.loss, jaxsgd.Shuffled(batch_size), jaxsgd.Momentum(0.05, 0.5),
                jaxsgd.L2(0.01), FOLDS[fold],
            )  # fmt: skip
            state = solver.init(problem[1], problem[0], key=jax.random.key(7))
            state, trace = jaxsgd.run(solver, state, problem[0], STEPS)
            swept = jax.tree.map(lambda x: x[fold, place], result.value)  # noqa: B023
            close(swept, {"params": state.params, "loss": trace.loss})


def test_a_tolerance_is_an_axis(problem):
    def until(data, params, atol):
        solver = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
        state = solver.init(params, data, key=jax.random.key(0))
        stop = jaxsgd.Converged(atol)
        _, _, ending = jaxsgd.run_until(solver, state, data, stop, max_steps=200, check_every=5)
        return ending.step

    steps = jaxsgd.sweep(until, *problem, over={"atol": [1e-1, 1e-3, 1e-5]}).value.tolist()
    assert steps == sorted(steps)
    assert steps[0] < steps[1] < steps[2]


def begin(data, params, learning_rate, key):
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(table.BATCH), jaxsgd.SGD(learning_rate))
    return solver, solver.init(params, data, key=key)


def go_on(started, data, learning_rate, key):
    solver, state = started
    state, trace = jaxsgd.run(solver, state, data, 4)
    return (solver, state), trace.loss


OVER = {"learning_rate": [0.01, 0.05, 0.1], "key": jax.random.split(jax.random.key(1), 2)}


def test_runs_continue_and_share_what_depends_on_no_axis(problem, tmp_path):
    started = jaxsgd.sweep(begin, *problem, over=OVER)
    solver, state = started.runs
    assert solver.rule.learning_rate.shape == (3, 1)
    assert state.sampler.key.shape == (1, 2)
    assert state.sampler.step.shape == state.step.shape == (1, 1)
    assert state.params["bias"].shape == (1, 1)  # all start alike
    middle = jaxsgd.sweep(go_on, started, problem[0], over=OVER)
    again = middle[0]
    jaxsgd.save(tmp_path / "sweep", again)
    again = jaxsgd.restore(tmp_path / "sweep", again)
    end = jaxsgd.sweep(go_on, again, problem[0], over=OVER)
    assert end.runs[0][1].params["weight"].shape == (3, 2, table.D)
    assert end.runs[0][1].sampler.key.shape == (1, 2)
    assert end.runs[0][1].sampler.step.shape == (1, 1)
    chex.assert_shape(end.value[0][1].sampler.step, (3, 2))

    whole = jaxsgd.sweep(go_on, started, problem[0], over=OVER, chunk=2)
    close(whole.value[1], middle.value[1])

    # rows are gathered for each key, never for each rate
    call = as_callable(go_on), (again.runs, problem[0])
    is_compact = [True] * len(jax.tree.leaves(again.runs)) + [False] * 2
    plan = vmapped.Plan(tuple(is_compact), order=(1, 0))
    text = str(vmapped.run_all.trace(call, as_arguments(end.over), plan=plan).jaxpr)
    gathered = [line for line in text.splitlines() if " gather[" in line]
    assert any(f"f32[2,{table.BATCH},{table.D}]" in line for line in gathered)
    assert not any(
        f"3,2,{table.BATCH}" in line or f"2,3,{table.BATCH}" in line for line in gathered
    )

    with pytest.raises(
        ValueError,
        match="a Sweep over 3 of learning_rate x 2 of key, expected one over 3 of learning_rate",
    ):
        jaxsgd.sweep(go_on, started, problem[0], over={"learning_rate": [1, 2, 3]})


def test_results_have_length_1_on_axes_that_they_do_not_depend_on():
    """Also through loops whose carry depends on an axis in part, and on an axis of no use."""

    def fn(a, b, key, unused):
        def body(_, carry):
            x, y, key = carry
            return x + a, jax.lax.cond(y > 2, lambda y: y * b, lambda y: y + 1.0, y), key

        x, y, key = jax.lax.fori_loop(0, 3, body, (0.0, 1.0, key))
        _, total = jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] + y), (0, 0.0))
        return {"x": x, "y": y, "key": key, "total": total, "both": x + y, "none": jnp.ones(2)}

    keys = jax.random.split(jax.random.key(0), 2)
    over = {"a": [1.0, 2.0, 3.0], "unused": [1, 2], "key": keys, "b": np.arange(5.0)}
    runs = jaxsgd.sweep(fn, over=over).runs
    shapes = {name: x.shape for name, x in runs.items()}
    assert shapes == {
        "x": (3, 1, 1, 1),
        "y": (1, 1, 1, 5),
        "key": (1, 1, 2, 1),
        "total": (1, 1, 1, 5),
        "both": (3, 1, 1, 5),
        "none": (1, 1, 1, 1, 2),
    }
    cut = jaxsgd.sweep(fn, over=over, chunk=7, progress=False).runs
    jax.tree.map(np.testing.assert_array_equal, words_of(cut), words_of(runs))


def test_chunks_give_the_same_from_one_program(problem, monkeypatch, capsys):
    over = {
        "learning_rate": np.geomspace(0.001, 0.1, 7),
        "key": jax.random.split(jax.random.key(2), 3),
    }
    whole = jaxsgd.sweep(train, *problem, over=over)
    cut = jaxsgd.sweep(train, *problem, over=over, chunk=4, progress=False)
    close(whole.value, cut.value)
    with no_compilation():
        jaxsgd.sweep(train, *problem, over=over, chunk=4, progress=False)
        jaxsgd.sweep(train, problem[0], {**problem[1]}, over=over, chunk=4, progress=False)

    monkeypatch.setattr(memory, "available_bytes", lambda device: 4_000)
    bounded = jaxsgd.sweep(train, *problem, over=over)
    close(whole.value, bounded.value)
    printed = capsys.readouterr().err
    assert "21 runs at once may take" in printed
    assert "half of the device's 4e-06 GB" in printed
    assert "chunk/s" in printed


def test_the_estimate_of_memory_counts_what_lives_at_one_time():
    def program(x):
        y = jnp.outer(x, x)  # 4 MB
        z = y + 1  # y and z live: 8 MB
        return z.sum()

    x = jnp.ones(1000)
    assert memory.peak_bytes(jax.make_jaxpr(program)(x).jaxpr) == 8_000_000
    again = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c + program(x), None), 0.0, length=9)[0])
    assert memory.peak_bytes(again.trace(x).jaxpr) == pytest.approx(8_000_000, rel=1e-4)
    nested = jax.make_jaxpr(jax.jit(jax.jit(lambda x: jnp.outer(x, x))))(x)
    assert (
        memory.peak_bytes(nested.jaxpr) < 4_100_000
    )  # a call's results are those of the called function
    assert memory.available_bytes(jax.devices()[0]) > 1e8
    keys = jax.make_jaxpr(lambda key: jax.random.split(key, 10))(jax.random.key(0))
    assert 160 <= memory.peak_bytes(keys.jaxpr) < 10_000


def scored(rate, key):
    return {"loss": jnp.where(rate > 1, jnp.nan, (rate - 0.3) ** 2) + 0 * jax.random.uniform(key),
            "curve": jnp.stack([rate, 2 * rate])}  # fmt: skip


def test_results_are_ranked_and_diverged_runs_never_win():
    over = {"rate": [0.1, 0.25, 0.5, 2.0], "key": jax.random.split(jax.random.key(0), 3)}
    result = jaxsgd.sweep(scored, over=over)
    best = result.best("loss", mean_over="key")
    assert best.point == {"rate": 0.25}  # as it was given, not as float32 has it
    assert best.place == (1,)
    assert best.score == pytest.approx(0.0025, rel=1e-4)
    ranked = result.ranked("loss", mean_over="key")
    assert [entry.point["rate"] for entry in ranked][0::3] == [0.25, 2.0]
    assert ranked[-1].diverged == 3
    assert ranked[-1].score == np.inf
    assert result.best("curve").point["rate"] == 0.1
    assert result.best(lambda value: -value["curve"]).point["rate"] == 2.0
    np.testing.assert_array_equal(result.scores("curve")[:, 0], np.float32([0.2, 0.5, 1.0, 4.0]))
    assert len(result.ranked("loss")) == 12

    frame = result.to_frame()
    assert list(frame.columns) == ["rate", "key", "loss", "diverged"]
    assert frame.rate.tolist() == [r for r in over["rate"] for _ in range(3)]
    assert frame.key.tolist() == [0, 1, 2] * 4
    assert frame.diverged.tolist() == [False] * 9 + [True] * 3

    clash = jaxsgd.sweep(lambda a: {"diverged": a, "b": 1 / (a - 1)}, over={"a": [1.0, 2.0]})
    frame = clash.to_frame()
    assert frame["result.diverged"].tolist() == [1.0, 2.0]
    assert frame["diverged"].tolist() == [True, False]
    own = jaxsgd.sweep(lambda a: {"a": 2 * a, "b": a}, over={"a": [1, 2]}).to_frame()
    assert own.to_dict("list") == {
        "a": [1, 2],
        "result.a": [2, 4],
        "b": [1, 2],
        "diverged": [False] * 2,
    }
    folds = jaxsgd.sweep(
        lambda a, b, c: a + b * c, over={"b": [0.0, 3.0], "a": [2.0, 1.0], "c": [1.0, 3.0]}
    )
    assert folds.best(mean_over=("c", "b")) == (
        {"a": 1.0},
        4.0,
        pytest.approx(4.2426, rel=1e-4),
        0,
        (1,),
    )
    assert repr(folds) == "Sweep(2 of b x 2 of a x 2 of c; value: float32[])"
    seeds = jaxsgd.sweep(lambda a, b: jnp.array(a * b), over={"a": [1.0, 2.0], "b": [1.0, 3.0]})
    entry = seeds.ranked(mean_over="b")[0]
    assert (entry.point, entry.score, round(entry.spread, 4)) == ({"a": 1.0}, 2.0, 1.4142)

    bad = {"rate": [2.0, 3.0], "key": jax.random.split(jax.random.key(1), 3)}
    for call, message in [
        (lambda: result.best(), "by is None, expected the name of one of the results: curve, loss"),
        (lambda: result.best("error"), "by is 'error', expected the name"),
        (lambda: result.best("loss", mean_over="seed"), "mean_over is 'seed', expected names"),
        (lambda: result.scores(lambda value: value["loss"][0]), r"of shape \(3,\) and float32, expected real numbers of shape \(4, 3\)"),
        (lambda: jaxsgd.sweep(scored, over=bad).best("loss"),
         "in every setting of the sweep a run diverged"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_wrong_axes_are_refused_in_a_sentence(problem):
    def fitted(data, params, learning_rate):
        return jaxsgd.fit(table.loss, params, data, key=jax.random.key(0), epochs=1,
                          learning_rate=learning_rate, progress=False).params  # fmt: skip

    for over, error, message in [
        ({}, ValueError, "over holds no axis"),
        ([0.1, 0.2], TypeError, "over holds 0.1, expected a dict of values by name"),
        ([{"a": [1]}, {"a": [2]}], ValueError, "expected each argument of fn once"),
        ({"a": 0.1}, TypeError, r"over\['a'\] holds 0.1, expected a list of numbers, or arrays"),
        ({"a": ["x"]}, TypeError, r"over\['a'\] holds 'x'"),
        ({"a": []}, ValueError, "same number of values, at least one; a has 0"),
        ([{"a": [1, 2], "b": [1, 2, 3]}], ValueError, "a has 2, b has 3"),
        ({"a": [2**40]}, ValueError, r"over\['a'\] holds integers beyond 32 bits"),
    ]:
        with pytest.raises(error, match=message):
            jaxsgd.sweep(lambda **point: 0.0, over=over)
        with pytest.raises(error, match=message):
            jaxsgd.halving(lambda **point: 0.0, None, over=over, steps=9)
    swept = jaxsgd.sweep(begin, *problem, over=OVER)
    rows = jaxsgd.HostRows(jax.device_get(problem[0]))
    for args, error, message in [
        (("x",), TypeError, "argument 0 of sweep holds 'x', expected arrays"),
        ((rows,), TypeError, "rows that stay on the host cannot be read by a compiled run"),
        (((swept, 1.0),), TypeError, "argument 0 holds a Sweep among other things"),
    ]:
        with pytest.raises(error, match=message):
            jaxsgd.sweep(lambda *args, **point: 0.0, *args, over=OVER)
    with pytest.raises(TypeError, match=r"run returned a dict, expected \(state, score\)"):
        jaxsgd.halving(lambda a: a, lambda a_, a, steps: {"a": a}, over={"a": [1.0, 2.0]}, steps=9)
    with pytest.raises(TypeError, match=r"fit was called inside .* use jaxsgd.run there"):
        jaxsgd.sweep(fitted, *problem, over={"learning_rate": [0.1, 0.2]})
    with pytest.raises(TypeError, match=r"chunks was called inside"):
        jaxsgd.sweep(
            lambda pair, learning_rate, key: next(jaxsgd.chunks(*pair, problem[0], 4))[1].loss,
            jaxsgd.sweep(begin, *problem, over=OVER), over=OVER,
        )  # fmt: skip
    with pytest.raises(TypeError, match="returned no array"):
        jaxsgd.sweep(lambda a: None, over={"a": [1, 2]})
    with pytest.raises(ValueError, match="chunk is 0, expected 1"):
        jaxsgd.sweep(lambda a: a, over={"a": [1, 2]}, chunk=0)


def test_a_sweep_is_a_function_like_others():
    """Inside jit, vmap and grad, in other dtypes, with axes of length 1 and keys of both kinds."""
    double = lambda x, a, b: {"x": x * a, "b": b}  # noqa: E731
    axes = {"a": np.array([1.0, 2.0]), "b": jnp.array([3])}
    swept = lambda x: jaxsgd.sweep(double, x, over=axes, progress=False).value["x"]  # noqa: E731
    assert jax.jit(swept)(3.0).tolist() == [[3.0], [6.0]]
    assert jax.vmap(swept)(jnp.arange(2.0)).shape == (2, 2, 1)
    assert float(jax.grad(lambda x: swept(x).sum())(3.0)) == 3.0
    assert swept(jnp.bfloat16(3)).dtype == jnp.float32  # a rate is float32 beside bfloat16 params
    with jax.enable_x64(True):
        axes = {"a": [1.0, 2.0], "b": jnp.array([3])}  # JAX keeps the array above as of 32 bits
        assert swept(jnp.float64(3)).dtype == jnp.float64
        big = jaxsgd.sweep(lambda a: a * 1e200, over={"a": [1.0, 2.0]})
        assert not big.to_frame().diverged.any()
        assert big.best().point == {"a": 1.0}
    typed, legacy = (
        jaxsgd.sweep(lambda key: jax.random.fold_in(key, 1), over={"key": keys}).value
        for keys in (jax.random.split(jax.random.key(0), 3), jax.random.split(jax.random.PRNGKey(0), 3))
    )  # fmt: skip
    np.testing.assert_array_equal(jax.random.key_data(typed), legacy)


@pytest.mark.parametrize("mesh", [None, "runs"])
def test_chunks_are_one_program_on_a_mesh_too(mesh):
    mesh = mesh and jax.make_mesh((2,), ("runs",), devices=jax.devices()[:2])

    def cube(a, b):
        return a**3 * b

    over = {"a": np.arange(10.0), "b": np.arange(3.0)}
    result = jaxsgd.sweep(cube, over=over, chunk=7, mesh=mesh, progress=False)
    np.testing.assert_allclose(result.value, np.arange(10.0)[:, None] ** 3 * np.arange(3.0))
    assert [weakref.ref(cube) in key for key in vmapped.run_block.programs].count(True) == 1


# halving


def start_at_random(data, params, learning_rate, key):
    params = params | {"bias": jax.random.normal(jax.random.fold_in(key, 1))}
    solver = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(learning_rate))
    return solver, solver.init(params, data, key=jax.random.key(0))


def advance(started, data, params, steps, learning_rate, key):
    solver, state = started
    state, trace = jaxsgd.run(solver, state, data, steps)
    return (solver, state), trace.loss[-1]


def test_halving_finds_the_full_sweeps_winner_for_a_quarter_of_the_steps(problem):
    (x, _), params = problem
    x = x * jnp.array([1.0, 0.3, 0.1])  # slow, and without noise: the rate that is best stays so
    problem = (x, x @ jnp.arange(1.0, table.D + 1)), params
    rates = np.geomspace(1e-4, 3.0, 32)
    keys = jax.random.split(jax.random.key(3), 2)
    over, steps = {"learning_rate": rates, "key": keys}, 62

    def full(data, params, learning_rate, key):
        started = start_at_random(data, params, learning_rate, key)
        return advance(started, data, params, steps, learning_rate, key)[1]

    winner = jaxsgd.sweep(full, *problem, over=over).best(mean_over="key")
    halved = jaxsgd.halving(
        start_at_random, advance, *problem, over=over, steps=steps, mean_over="key"
    )
    assert halved.best.point == winner.point
    assert halved.best.score == pytest.approx(winner.score, rel=1e-4)
    assert halved.best.place == winner.place
    assert halved.work <= 32 * steps / 4
    assert [rung.steps for rung in halved.rungs] == [2, 6, 14, 30, 62]
    assert [len(rung.settings) for rung in halved.rungs] == [32, 16, 8, 4, 2]
    _, state = halved.state
    assert state.step.tolist() == [steps] * 2
    for better, rung in zip(halved.rungs[1:], halved.rungs, strict=False):
        assert set(better.settings) == set(
            rung.settings[np.argsort(rung.scores, kind="stable")][: len(better.settings)]
        )
    with no_compilation():
        again = jaxsgd.halving(
            start_at_random, advance, *problem, over=over, steps=steps, mean_over="key"
        )
    chex.assert_trees_all_equal(again.state[1].params, state.params)

    for options, message in [
        (
            {"over": {"learning_rate": [0.1], "key": keys}},
            "over holds 1 settings, expected at least 2",
        ),
        ({"over": over, "steps": 4}, "steps is 4, expected 5"),
        (
            {"over": over, "mean_over": "seed"},
            "mean_over is 'seed', expected names that the sweep is over",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxsgd.halving(
                start_at_random, advance, *problem, **{"steps": steps, "mean_over": "key"} | options
            )


def test_halving_over_settings_that_diverge():
    run = lambda theta, steps, a, b: (theta, jnp.where(a * b > 2, jnp.nan, -a * b))  # noqa: E731
    init = lambda a, b: jnp.zeros(())  # noqa: E731
    over = {"a": [0.5, 1.0, 5.0], "b": [1.0, 2.0, 4.0]}
    halved = jaxsgd.halving(init, run, over=over, steps=9, factor=3)
    assert halved.best.point == {"a": 0.5, "b": 4.0}  # the first of two that are as good
    assert [len(rung.settings) for rung in halved.rungs] == [9, 3]
    with pytest.raises(ValueError, match="in every setting that was left a run diverged"):
        jaxsgd.halving(init, run, over={"a": [5.0, 6.0], "b": [1.0, 2.0]}, steps=9)
