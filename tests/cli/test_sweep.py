"""The command's sweep: ranges of numbers, every setting trained at once, what is told and drawn."""

import re
from argparse import ArgumentTypeError

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

import jaxsgd
from jaxsgd.cli import sweep as search
from jaxsgd.cli.main import main, prepared
from jaxsgd.cli.parser import make_parser


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(60, 3)), columns=list("abc"))
    frame.assign(y=frame["a"] - 2 * frame["b"]).to_csv("t.csv", index=False)
    return tmp_path


def test_values_are_one_number_a_list_or_a_geometric_series():
    assert search.values("0.1") == [0.1]
    assert search.values("0,0.9") == [0, 0.9]
    series = search.values("1e-3:1:4")
    np.testing.assert_allclose(series, [1e-3, 1e-2, 0.1, 1])
    assert (series[0], series[-1]) == (1e-3, 1)


@pytest.mark.parametrize("text", ["", "a", "0.1,", "1:2", "1:2:3:4", "1:2:2.5", "1:2:3,4"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ArgumentTypeError, match=f"is '{text}', expected a number, several as"):
        search.values(text)


@pytest.mark.parametrize(
    "text", ["0:1:3", "-1:1:3", "1:1:3", "2:1:3", "1:2:1", "1:inf:3", "nan:1:3"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(
        ArgumentTypeError, match=f"is '{text}', expected 0 < LOW < HIGH and a COUNT"
    ):
        search.values(text)


def test_every_setting_is_trained_told_written_and_drawn(here, capsys):
    command = "sweep t.csv --target y --learning-rate 0.01,0.1,1e20 --momentum 0,0.5 --seeds 2"
    assert main([*command.split(), "--epochs", "3", "--batch-size", "16", "--seed", "5"]) == 0
    told = capsys.readouterr().out
    assert "sweep         learning_rate x momentum x key: 3 x 2 x 2 runs" in told
    assert "diverged      4 of 12 runs, in 2 of 6 settings" in told
    assert "best          held out squared error loss (standardised target), mean and" in told
    frame = pandas.read_csv("jaxsgd-t-sweep/sweep.csv")
    assert [*frame] == ["learning_rate", "momentum", "key", "held_out_loss", "diverged"]
    assert (frame["diverged"] == (frame["learning_rate"] > 1)).all()
    means = frame[~frame["diverged"]].groupby(["learning_rate", "momentum"])["held_out_loss"]
    means = means.mean().sort_values()
    lines = [line.split() for line in told.splitlines() if re.match(" +[0-9]", line)]
    assert [(float(r), float(m)) for r, m, *_ in lines] == [*means.index]
    np.testing.assert_allclose([float(line[2]) for line in lines], means, rtol=1e-3)
    assert (here / "jaxsgd-t-sweep/sweep.png").stat().st_size > 10_000

    # a run of the sweep is the run of its setting and seed
    commands = dict.fromkeys(["fit", "sweep", "predict"], int)
    args = make_parser(commands).parse_args([*command.split(), "--seed", "5"])
    task, rows, _ = prepared(args)
    rule, penalty = jaxsgd.Momentum(0.1, 0.5), jaxsgd.L2(1e-3, mask=jaxsgd.models.weights_only)
    solver = jaxsgd.Solver(task, jaxsgd.Shuffled(16), rule, penalty)
    init_key, run_key = jax.random.split(jax.random.split(jax.random.key(5), 2)[1])
    state = solver.init(task.model.init(init_key), rows.train, key=run_key)
    state, _ = jaxsgd.run(solver, state, rows.train, 9)
    row = frame[(frame["learning_rate"] == 0.1) & (frame["momentum"] == 0.5) & (frame["key"] == 1)]
    loss = jaxsgd.evaluate(task, state.params, rows.held_out)
    np.testing.assert_allclose(row["held_out_loss"], loss, rtol=1e-4)


def test_all_parts_of_a_rule_go_into_a_sweep_and_further_axes_are_held(here, capsys):
    command = "sweep t.csv --target y --loss huber --rule sgd --learning-rate 0.01:0.1:2 --l2 0,0.1 --l1 0,0.1,0.2"
    parts = "--schedule cosine:0.001 --warmup 2 --average ema:0.5 --epochs 2 --seeds 1 --test-fraction 0"
    assert main([*command.split(), *parts.split()]) == 0
    told = capsys.readouterr().out
    assert "sweep         l1 x learning_rate x l2 x key: 3 x 2 x 2 x 1 runs" in told
    assert "best          train huber loss" in told
    assert len(pandas.read_csv("jaxsgd-t-sweep/sweep.csv")) == 12


def test_a_picture_holds_further_axes_at_the_best_setting():
    scores = jnp.arange(5 * 5 * 3.0).reshape(5, 5, 3, 1).at[4, 4, 1].set(-1.0)
    values = {"a": jnp.arange(5.0), "b": jnp.arange(5.0), "c": jnp.array([7.0, 8.0, 9.0])}
    over = tuple({name: of_axis} for name, of_axis in values.items())
    key = {"key": jax.random.split(jax.random.key(0), 1)}
    found = search.SearchResult(jaxsgd.Sweep({"loss": scores}, (*over, key)), "loss")
    ax, held = found.plot("loss")
    assert held == ", best c = 8"
    np.testing.assert_array_equal(ax.images[0].get_array(), scores[:, :, 1, 0].T)
    few = search.SearchResult(jaxsgd.Sweep({"loss": scores[:, :2]}, (over[0], {"b": jnp.arange(2.0)}, over[2], key)), "loss")  # fmt: skip
    assert len(few.plot("loss")[0].lines) == 2


def test_where_every_setting_diverged_that_is_said(here, capsys):
    command = "sweep t.csv --target y --learning-rate 1e20,1e30 --epochs 2 --seeds 2"
    assert main(command.split()) == 1
    out, error = capsys.readouterr()
    assert "diverged      4 of 4 runs, in 2 of 2 settings" in out
    assert "best" not in out
    assert error == (
        "jaxsgd: diverged: in every setting some run was not finite; kept in jaxsgd-t-sweep\n"
    )
    assert (here / "jaxsgd-t-sweep/sweep.png").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "there is nothing to sweep: give one of --learning-rate, --momentum, --l1, --l2"),
        ("--learning-rate 0:1:3", "argument --learning-rate: is '0:1:3', expected 0 < LOW < HIGH"),
        ("--learning-rate 0.1,-1", "learning_rate is -1.0, expected at least 0"),
        ("--momentum 0,1.5", "Momentum's momentum is 1.5, expected 0 to 1"),
        ("--l2 0.1,nan", "L2's strength is nan, expected at least 0"),
        ("--rule sgd --momentum 0,0.9", "--momentum goes with --rule momentum or nesterov"),
        ("--rule adam --l1 0,0.1", "so --rule must be sgd or momentum, but it is adam"),
        ("--rule line-search --l2 0,1", "invalid choice: 'line-search'"),
        ("--l2 0,1 --seeds 0", "--seeds is 0, expected 1 to"),
        ("--l2 0,1 --epochs 0", "epochs is 0, expected 1 to"),
        ("--l2 0,1 --stop patience", "unrecognized arguments: --stop patience"),
    ],
)
def test_a_wrong_sweep_gets_one_sentence(here, capsys, options, told):
    try:
        code = main(["sweep", "t.csv", "--target", "y", *options.split()])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert told in error
    assert error.count("\n") == 1
