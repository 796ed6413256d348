"""fit: the host loop around one compiled epoch."""

import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests import table


def fit(params=None, loss=table.loss, data=None, **options):
    start, rows = table.problem()
    options = {"epochs": 3, "batch_size": 8, "progress": False} | options
    if "rule" not in options:
        options.setdefault("learning_rate", 0.1)
    return jaxsgd.fit(
        loss, params or start, rows if data is None else data, key=jax.random.key(0), **options
    )


def test_fit_is_run_with_a_history():
    data = table.problem()[1]
    logged = []
    metrics = {"error": lambda params, row: jnp.abs(table.residual(params, row))}
    result = fit(validation=data, metrics=metrics, log=logged.append)
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
    state = solver.init(table.problem()[0], data, key=jax.random.key(0))
    state, trace = jaxsgd.run(solver, state, data, 9)
    np.testing.assert_allclose(result.params["weight"], state.params["weight"], rtol=1e-6)
    history = result.history
    assert sorted(history) == [
        "epoch",
        "loss",
        "seconds",
        "step",
        "validation_error",
        "validation_loss",
    ]
    by_rows = trace.loss.reshape(3, 3) @ jnp.array([8, 8, 4]) / 20  # the short last batch too
    np.testing.assert_allclose(history["loss"], by_rows, rtol=1e-6)
    np.testing.assert_allclose(
        history["validation_loss"][-1], jaxsgd.evaluate(table.loss, state.params, data), rtol=1e-5
    )
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["step"].tolist() == [3, 6, 9]
    assert result.reason == jaxsgd.Reason.EPOCHS
    assert all(isinstance(v, float) for record in logged for v in record.values())
    assert [record["loss"] for record in logged] == history["loss"].tolist()
    further, _ = jaxsgd.run(solver, result.state, data, 3)
    assert int(further.step) == 12


def test_metrics_without_validation_are_the_training_rows():
    result = fit(metrics={"error": lambda params, row: jnp.abs(table.residual(params, row))})
    assert "error" in result.history


def test_no_epochs_give_the_start():
    result = fit(epochs=0)
    np.testing.assert_array_equal(result.params["weight"], table.problem()[0]["weight"])
    assert {name: len(values) for name, values in result.history.items()} == dict.fromkeys(
        ("epoch", "step", "loss", "seconds"), 0
    )


def test_a_run_that_diverges_ends_with_the_last_finite_epoch():
    result = fit(learning_rate=1e6, epochs=50)
    assert result.reason == jaxsgd.Reason.DIVERGED
    assert len(result.history["epoch"]) < 50
    assert not np.isfinite(result.history["loss"][-1])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))


def test_ctrl_c_ends_after_the_epoch_and_keeps_it():
    before = signal.getsignal(signal.SIGINT)

    def interrupt(record):
        if record["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    result = fit(epochs=1000, log=interrupt)
    assert result.reason == jaxsgd.Reason.INTERRUPTED
    assert len(result.history["epoch"]) in (2, 3)
    np.testing.assert_allclose(
        result.params["weight"],
        fit(epochs=len(result.history["epoch"])).params["weight"],
        rtol=1e-6,
    )
    assert signal.getsignal(signal.SIGINT) is before


def test_progress_shows_loss_and_speed(capsys):
    fit(progress=True)
    told = capsys.readouterr().err
    assert "loss=" in told
    assert "rows/s=" in told
    assert "3/3" in told


def test_progress_without_tqdm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.warns(UserWarning, match=r"jaxsgd\[progress\]"):
        fit(progress=True, epochs=1)


def test_every_kind_of_loss_rule_and_sampler_fits():
    data = table.problem()[1]
    stateful = jaxsgd.RowsLoss(table.counted, has_model_state=True)
    result = fit(loss=stateful, model_state=jnp.float32(0), epochs=2, validation=data,
                 metrics={"loss": lambda params, row, model_state: table.loss(params, row) + 0 * model_state})  # fmt: skip
    assert result.state.model_state != 0
    assert "validation_loss" in result.history
    aux = jaxsgd.RowLoss(table.with_aux, has_aux=True)
    assert "validation_loss" in fit(loss=aux, validation=data, epochs=1).history
    assert (
        fit(
            rule=table.RULES["adamw"](0.1),
            sampler=jaxsgd.FullBatch(),
            batch_size=None,
            penalty=jaxsgd.L2(0.1),
        ).history["step"][-1]
        == 3
    )


def test_refusals():
    with pytest.raises(
        ValueError, match=r"neither learning_rate nor rule; .*jaxsgd.LineSearch\(\)"
    ):
        fit(learning_rate=None)
    with pytest.raises(ValueError, match="both learning_rate and rule"):
        fit(learning_rate=0.1, rule=jaxsgd.SGD(0.1))
    with pytest.raises(ValueError, match=r"give metrics="):
        fit(loss=jaxsgd.RowLoss(table.noisy, keyed=True), validation=table.problem()[1])
    with pytest.raises(TypeError, match="expected a dict"):
        fit(metrics=table.loss)
    with pytest.raises(ValueError, match="metrics names 'loss'"):
        fit(metrics={"loss": table.loss})
    x, y = table.problem()[1]
    with pytest.raises(ValueError, match=r"validation\[0\] has 5, validation\[1\] has 4"):
        fit(validation=(x[:5], y[:4]))
    with pytest.raises(ValueError, match="a row of validation has shape"):
        fit(validation=x)
    with pytest.raises(ValueError, match="batch_size=8 and a sampler"):
        fit(sampler=jaxsgd.FullBatch())
    with pytest.raises(ValueError, match=r"metric 'x' is of shape \(3,\), expected a number"):
        fit(metrics={"x": lambda params, row: row[0]})
    with pytest.raises(ValueError, match="epochs is -1"):
        fit(epochs=-1)
    with pytest.raises(ValueError, match=r"steps each: expected at most 2147483647 steps, got"):
        fit(epochs=2**31 - 1)
    with pytest.raises(ValueError, match="batch_size=64 and a sampler"):
        fit(sampler=jaxsgd.FullBatch(), batch_size=64)


def test_a_solver_says_which_rows_a_run_takes():
    y = jnp.arange(7.0)
    loss = jaxsgd.RowLoss(lambda w, y: ((w - y) ** 2, y), has_aux=True)
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(1), jaxsgd.SGD(0.1))
    state = solver.init(jnp.zeros(()), y, key=jax.random.key(3))
    state, _ = jaxsgd.run(solver, state, y, 5)
    said = solver.batches(state, y, 10)
    _, taken = jaxsgd.run(solver, state, y, 10, record=lambda state, info: info.aux)
    np.testing.assert_array_equal(y[said.index[:, 0]], taken)
    assert said.weight.shape == (10, 1)


def test_a_result_a_state_and_a_solver_are_printed_in_a_few_lines():
    params, data = table.problem(n=40)
    result = jaxsgd.fit(
        table.loss, params, data, key=jax.random.key(0), epochs=3, learning_rate=0.05,
        batch_size=40, validation=data, progress=False,
    )  # fmt: skip
    told = repr(result)
    assert told.startswith("Result: ended in epoch 3, after 3 steps: all epochs were run\n  params")
    assert "float32[3]" in told
    assert re.search(r"validation_loss: last \S+, least \S+ in epoch 3, most \S+ in epoch 1", told)
    told = repr(result.state)
    assert told.startswith("State\n  params ")
    assert "step      int32[] 3" in told
    assert "key<fry>[]" in told
    repr(jax.eval_shape(lambda: result.state))
    jax.jit(lambda state: repr(state) and state.step)(result.state)
    told = repr(
        jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), jaxsgd.SGD(0.1), sample_weight=np.ones(40))
    )
    assert re.search(r"sampler +Shuffled\(batch_size=4.*\n +rule +SGD\(learning_rate=0.1", told)
    assert "sample_weight  float32[40]" in told


def test_the_least_rate_of_poisson_batches_is_taken():
    params, data = table.problem()
    sampler = jaxsgd.Poisson(1e-9, capacity=2)
    result = jaxsgd.fit(
        table.loss, params, data, key=jax.random.key(0), epochs=0, sampler=sampler,
        learning_rate=0.1, progress=False,
    )  # fmt: skip
    assert result.reason == jaxsgd.Reason.EPOCHS
