"""Small runs on a CPU are one kernel, do what they did, and leave alone what XLA cannot."""

import types
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxsgd
from jaxsgd.loops import cpu_fusion, run
from tests import table

pytestmark = pytest.mark.skipif(
    not cpu_fusion.TRIED[0] <= jax.__version_info__ < cpu_fusion.TRIED[1]
    or jax.default_backend() != "cpu",
    reason="runs are marked on a CPU, by versions of JAX that were tried",
)


@pytest.fixture(autouse=True)
def is_on(monkeypatch):
    monkeypatch.setenv("JAXSGD_CPU_FUSION", "1")


@pytest.fixture
def marks(monkeypatch):
    """A list that grows with each call that is traced as a kernel, or as a function of its own."""
    seen = []
    mark = cpu_fusion.set_xla_metadata
    names = {len(cpu_fusion.KERNEL): "kernel", len(cpu_fusion.FUNCTION): "function"}
    spy = lambda x, **marks: seen.append(names[len(marks)]) or mark(x, **marks)  # noqa: E731
    monkeypatch.setattr(cpu_fusion, "set_xla_metadata", spy)
    return seen


WHOLE = ["function", "kernel"]  # the step and the program around it


def untraced(fn):
    return lambda *args: fn(*args)


def started(loss=table.loss, sampler=None, rule=None, data=None):
    """A solver whose loss is of its own, so that no other test has traced its runs before."""
    params, rows = table.problem()
    data = rows if data is None else data
    if isinstance(loss, types.FunctionType):
        loss = untraced(loss)
    solver = jaxsgd.Solver(loss, sampler or jaxsgd.Shuffled(8), rule or jaxsgd.SGD(0.1))
    return solver, solver.init(params, data, key=jax.random.key(0)), data


@pytest.mark.parametrize(
    "parts",
    [
        {"rule": jaxsgd.Adam(jaxsgd.CosineDecay(0.01, 0.0, 40))},
        {"sampler": jaxsgd.WithReplacement(8), "rule": jaxsgd.LineSearch()},
        {"loss": jaxsgd.RowLoss(untraced(table.noisy), keyed=True), "sampler": jaxsgd.FullBatch()},
    ],
)
def test_a_run_is_one_kernel_and_ends_where_it_would_otherwise(marks, parts):
    solver, state, data = started(**parts)
    ours = jaxsgd.run(solver, state, data, 40)
    assert marks == WHOLE
    within = jax.jit(partial(jaxsgd.run, steps=40))(solver, state, data)
    assert marks == WHOLE  # in another program it cannot be known how large it becomes
    chex.assert_trees_all_close(ours[0].params, within[0].params, rtol=1e-5)
    chex.assert_trees_all_close(ours[1], within[1], rtol=1e-4)
    jaxsgd.run(solver, state, data, 40)
    assert marks == WHOLE


def test_until_and_fit_are_kernels_too(marks):
    solver, state, data = started()
    jaxsgd.run_until(solver, state, data, jaxsgd.Converged(1e-6), max_steps=40, check_every=8)
    assert marks == WHOLE
    jaxsgd.fit(untraced(table.loss), state.params, data, key=jax.random.key(0), batch_size=8,
               epochs=2, learning_rate=0.1, progress=False)  # fmt: skip
    assert marks == [*WHOLE, "function", *WHOLE]  # the shapes of its records are traced before


def test_transformed_runs_are_not_marked(marks):
    solver, state, data = started()
    jax.vmap(lambda s: jaxsgd.run(solver, s, data, 3))(jax.tree.map(lambda x: x[None], state))
    jax.grad(lambda p: jnp.sum(jaxsgd.run(solver, state._replace(params=p), data, 3)[1].loss))(
        state.params
    )
    with jax.disable_jit():
        jaxsgd.run(solver, state, data, 3)
    assert marks == []


@pytest.mark.parametrize("is_large", [False, True])
def test_a_run_on_concrete_arguments_within_another_program(is_large):
    """None of its arguments is traced, and still it is no program of its own."""
    solver, state, data = started(sorted_loss if is_large else table.loss, rule=optax.sgd(0.1))
    program = jax.jit(lambda scale: scale * jaxsgd.run(solver, state, data, 5)[1].loss)
    np.testing.assert_allclose(program(1.0), jaxsgd.run(solver, state, data, 5)[1].loss, rtol=1e-5)
    assert "inlineable" not in program.lower(1.0).as_text()


def test_an_error_of_a_callback_is_raised_at_once():
    called = []

    def fail(step):
        called.append(int(step))
        if step == 3:
            raise ValueError("the third step")

    record = lambda state, info: jax.debug.callback(fail, state.step, ordered=True)  # noqa: E731
    fn = lambda: (jax.block_until_ready(jaxsgd.run(*started(), 5, record)), jax.effects_barrier())  # noqa: E731
    with pytest.raises(jax.errors.JaxRuntimeError, match="the third step"):
        fn()
    assert called == [1, 2, 3]


def test_aux_that_is_large_and_not_recorded_is_not_computed():
    loss = lambda params, row: (table.loss(params, row), jnp.sin(jnp.arange(2000) * row[1]))  # noqa: E731
    solver, state, data = started(jaxsgd.RowLoss(loss, has_aux=True))
    program = jax.jit(partial(run.scan_steps, windows=3, form="function"), static_argnums=3)
    kept, plain = (
        program.lower(solver, state, data, record).compile().as_text()
        for record in (lambda *seen: seen[1].aux, lambda *seen: ())
    )
    assert " sine(" in kept
    assert " sine(" not in plain


def test_long_programs_are_not_marked(marks, monkeypatch):
    monkeypatch.setattr(cpu_fusion, "LONGEST", 100)
    jaxsgd.run(*started(), 3)
    assert marks == ["function"]


def test_a_full_batch_of_numpy_arrays_is_handed_to_the_loss_as_jax_arrays():
    loss = jaxsgd.RowsLoss(lambda params, rows: jnp.square(rows[1].at[:].get() - params["bias"]))
    solver, state, data = started(loss, jaxsgd.FullBatch())
    after, _ = solver.step(state, jax.tree.map(np.asarray, data))
    chex.assert_trees_all_close(after.params, solver.step(state, data)[0].params)


def sorted_loss(params, row):
    return table.loss(params, row) + 0 * jnp.sort(params["weight"])[0]


def scattered(params, row):
    logits = jnp.outer(params["weight"], row[0])[0]
    label = (row[1] > 0).astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def told(params, row):
    jax.debug.callback(lambda x: None, row[1])
    return table.loss(params, row)


def factored(params, row):
    return table.loss(params, row) + 0 * jnp.linalg.cholesky(jnp.eye(2))[0, 0] * params["bias"]


@pytest.mark.parametrize("loss", [sorted_loss, scattered, told, factored])
def test_what_a_kernel_cannot_do_is_compiled_as_ever(marks, loss):
    solver, state, data = started(loss)
    _, trace = jaxsgd.run(solver, state, data, 3)
    assert np.isfinite(trace.loss).all()
    assert marks == ["function"]


def test_a_step_is_a_kernel_whatever_is_recorded(marks):
    record = lambda state, info: jnp.sort(state.params["weight"])  # noqa: E731
    solver, state, data = started()
    recorded, _ = jaxsgd.run(solver, state, data, 12, record)
    assert marks == ["function", "kernel"]  # to see how large it is, and then to be compiled
    chex.assert_trees_all_equal(recorded.params, jaxsgd.run(solver, state, data, 12)[0].params)


def test_xla_compiles_one_kernel(monkeypatch, tmp_path):
    """A canary: XLA ignores a mark that it does not know. It writes a file for each kernel."""

    def loop(x, form="inlined"):
        step = cpu_fusion.compiled_as(form, lambda x: (jnp.sin(x)[::-1] + jnp.cumsum(x), x))
        return lax.fori_loop(0, 5, lambda i, x: step(x)[0], x)

    def kernels(compiled, name):
        compiled(jnp.ones(500))
        return len(list((tmp_path / name).glob("*_kernel_module.ir-no-opt.ll")))

    dump = {"xla_dump_to": str(tmp_path / "inlined")}
    assert kernels(jax.jit(loop, compiler_options=dump), "inlined") > 1
    monkeypatch.setitem(cpu_fusion.OPTIONS, "xla_dump_to", str(tmp_path / "marked"))
    assert kernels(cpu_fusion.jit()(loop), "marked") == 1


def test_large_operations_are_not_marked(marks):
    wide = jnp.ones(2 * cpu_fusion.MOST)
    loss = jaxsgd.BatchLoss(lambda params, rows, weight: jnp.sum(params**2) * weight[0])
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
    _, data = table.problem()
    jaxsgd.run(solver, solver.init(wide, data, key=jax.random.key(0)), data, 3)
    assert marks == ["function"]
    marks.clear()
    large = jnp.ones((2 * cpu_fusion.MOST, table.D)), jnp.ones(2 * cpu_fusion.MOST)
    solver, state, data = started(sampler=jaxsgd.FullBatch(), data=large)
    jaxsgd.run(solver, state, data, 3)
    assert marks == ["function"]
    marks.clear()
    solver, state, data = started(data=large)  # many rows, but few in a batch
    jaxsgd.run(solver, state, data, 3)
    assert marks == WHOLE


def test_each_shape_and_switch_is_compiled_in_its_own_way(marks, monkeypatch):
    solver, state, data = started(sampler=jaxsgd.FullBatch())
    jaxsgd.run(solver, state, data, 3)
    assert marks == WHOLE
    large = jnp.ones((2 * cpu_fusion.MOST, table.D)), jnp.ones(2 * cpu_fusion.MOST)
    jaxsgd.run(solver, state, large, 3)
    assert marks == [*WHOLE, "function"]
    monkeypatch.setenv("JAXSGD_CPU_FUSION", "0")
    jaxsgd.run(solver, state, data, 4)
    assert marks == [*WHOLE, "function"]


def test_a_version_that_was_not_tried_gets_no_mark(marks, monkeypatch):
    monkeypatch.setattr(cpu_fusion, "TRIED", ((0, 1), (0, 2)))
    jaxsgd.run(*started(), 3)
    assert marks == []


def test_the_environment_turns_it_off(marks, monkeypatch):
    monkeypatch.setenv("JAXSGD_CPU_FUSION", "0")
    jaxsgd.run(*started(), 3)
    assert marks == []


def test_what_xla_refuses_runs_without_the_mark_and_is_not_tried_again(marks, monkeypatch):
    monkeypatch.setattr(cpu_fusion, "_is_small", lambda jaxpr, in_loop=False: True)
    refusals, is_refusal = [], cpu_fusion._is_refusal
    spy = lambda error: refusals.append(error) or is_refusal(error)  # noqa: E731
    monkeypatch.setattr(cpu_fusion, "_is_refusal", spy)
    solver, state, data = started(sorted_loss)
    _, trace = jaxsgd.run(solver, state, data, 5)
    _, plain = jax.jit(partial(jaxsgd.run, steps=5))(solver, state, data)
    chex.assert_trees_all_close(trace, plain, rtol=1e-5)
    assert marks == [*WHOLE, "kernel"]
    assert len(refusals) == 2  # of the run, and of its step
    jaxsgd.run(solver, state, data, 5)
    assert marks == [*WHOLE, "kernel"]
    assert len(refusals) == 2


def test_arguments_that_nothing_reads():
    """XLA would end the process."""
    solver, state, data = started()
    chex.assert_trees_all_equal(jaxsgd.run(solver, state, data, 0)[0].params, state.params)
    solver, state, data = started(lambda params, row: jnp.sum(params["weight"] ** 2))
    assert jaxsgd.run(solver, state, data, 2)[1].loss[1] < 0.03


@cpu_fusion.jit()
def operations(x, index, form="inlined"):
    """Every kind that is allowed, by the functions that make it."""

    def step(x, index, key):
        smooth = [jnp.abs, jnp.exp, jnp.log, jnp.tanh, lax.rsqrt, lax.cbrt, jnp.sin, jnp.cos,
                  jnp.tan, jnp.arcsin, jnp.arccos, jnp.arctan, jnp.sinh, jnp.cosh, jnp.arcsinh,
                  jnp.arctanh, jnp.log1p, jnp.expm1, jnp.exp2, lax.logistic, lax.erf, lax.erfc,
                  lax.erf_inv, lax.lgamma, lax.digamma, jnp.round, jnp.floor, jnp.ceil, jnp.sign,
                  jax.nn.relu, jax.nn.gelu, jax.nn.softplus, jnp.square]  # fmt: skip
        bits = lax.bitcast_convert_type(x, jnp.uint32)
        told = {
            "smooth": jnp.stack([fn(x) for fn in smooth]),
            "binary": jnp.arctan2(x, 2.0) + x**1.5 + x**3 + lax.rem(x, 0.3) + jnp.clip(x, 0.2, 0.3),
            "bits": (bits << 3) ^ (bits >> 2) | (bits & 7) + lax.clz(bits) + bits // 3,
            "count": lax.population_count(bits) - lax.shift_right_arithmetic(bits, bits % 7),
            "logic": (x == 1) | (x != 2) & ~(x < 0.5) ^ (x <= 1) | jnp.isfinite(x),
            "reduced": [f(x, 0) for f in (jnp.sum, jnp.max, jnp.min, jnp.prod, jnp.argmax)],
            "any": [jnp.any(x > 0.5), jnp.all(x > 0.5), jnp.argmin(x)],
            "along": [f(x, 1) for f in (jnp.cumsum, lax.cummax, lax.cummin, lax.cumlogsumexp)],
            "moved": jnp.concatenate([jnp.pad(x.T, 1).ravel(), x[::-1, 1:3].ravel()]),
            "picked": x[index] + jnp.take_along_axis(x, index[:, None], 1),
            "in place": lax.dynamic_update_slice(x, x[:1] * 2, (index[0], 0)),
            "halves": jnp.split(x, 2)[1].astype(jnp.bfloat16).astype(jnp.float32),
            "products": [x @ x[0], x[:, 0] @ x, x @ x.T, jnp.outer(x[0], x[1])],
            "branch": lax.cond(x[0, 0] > 0.3, jnp.sin, jnp.cos, x),
            "loop": lax.while_loop(lambda v: jnp.sum(v) < 50, lambda v: v * 1.5 + 1, x),
            "slope": jax.grad(lambda x: jnp.sum(jax.nn.log_softmax(jax.nn.silu(x))))(x),
            "random": jax.random.normal(jax.random.fold_in(key, 1), (3,)),
            "drawn": jax.random.randint(jax.random.split(key)[0], (3,), 0, 10),
        }
        return x * 0.99, told

    step = cpu_fusion.compiled_as(form, step)
    return lax.scan(lambda x, key: step(x, index, key), x, jax.random.split(jax.random.key(0), 3))


def test_every_operation_that_is_allowed_is_done_as_ever(marks):
    x, index = jnp.linspace(0.1, 0.9, 24).reshape(6, 4), jnp.array([3, 1, 2, 0, 3, 1])
    ours = operations(x, index)
    assert marks == WHOLE
    chex.assert_trees_all_close(ours, jax.jit(operations)(x, index), rtol=2e-5, atol=1e-6)
