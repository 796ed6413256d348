"""The command, end to end: files in, files and a report out, one sentence where it does not fit."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest

from jaxsgd import problems
from jaxsgd.cli import tables
from jaxsgd.cli.main import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(n=90, seed=0):
    rng = np.random.default_rng(seed)
    frame = pandas.DataFrame(
        {"a": rng.normal(size=n), "b": 100 + 20 * rng.normal(size=n), "one": 1}
    )
    frame["y"] = 3 * frame["a"] - 0.1 * frame["b"] + 2
    frame["kind"] = np.where(frame["y"] > frame["y"].median(), "high", "low")
    return frame


def test_digits(here, capsys):
    assert main(["fit", "digits"]) == 0
    told = capsys.readouterr().out
    held_out = re.search(r"held out +accuracy ([\d.]+), softmax loss ([\d.]+)", told)
    assert float(held_out[1]) >= 0.95
    ours, best = map(
        float, re.search(r"objective +([\d.]+) .* L-BFGS.* ([\d.]+)$", told, re.M).groups()
    )
    assert best <= ours < 1.5 * best
    for words in ("device", "1438 rows x 64 features", "compile", "us/step", "rows/s"):
        assert words in told
    history = pandas.read_csv("jaxsgd-digits/history.csv")
    assert len(history) == 100
    assert history["loss"].iloc[-1] < 0.1
    assert (here / "jaxsgd-digits/learning_curve.png").stat().st_size > 10_000
    with np.load("jaxsgd-digits/model.npz", allow_pickle=False) as model:
        assert model["params_1"].shape == (10, 64)
    assert main(["predict", "jaxsgd-digits/model.npz", "digits"]) == 0
    assert (pandas.read_csv("predictions.csv")["prediction"] == problems.digits()[1]).mean() > 0.95


def test_regression_from_each_format_and_its_predictions(here, capsys):
    frame = table().drop(columns="kind")
    np.savez("t.npz", x=frame[["a", "b", "one"]].to_numpy(), y=frame["y"].to_numpy())
    frame.to_parquet("t.parquet")
    frame.to_csv("t.csv", index=False)
    csv, parquet, npz = (
        tables.read(f"t.{suffix}", target="y") for suffix in ("csv", "parquet", "npz")
    )
    for other in (parquet, npz):
        np.testing.assert_allclose(other.features, csv.features, rtol=1e-6)
        np.testing.assert_allclose(other.target, csv.target, rtol=1e-6)
    assert parquet.names == csv.names == ["a", "b", "one"]
    assert main(["fit", "t.csv", "--target", "y", "--epochs", "30", "--l2", "0", "--rule",
                     "momentum", "--batch-size", "16", "--out", "o"]) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "squared_error loss" in told
    assert main(["predict", "o/model.npz", "t.csv"]) == 0
    predictions = pandas.read_csv("predictions.csv")["prediction"]
    np.testing.assert_allclose(predictions, frame["y"], atol=0.05)
    assert float(re.search(r"held out .* root mean square ([\d.]+)", told)[1]) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        ["--loss", "logistic"],
        ["--loss", "hinge", "--rule", "line-search"],
        ["--model", "mlp:8,4", "--rule", "adam", "--learning-rate", "0.02"],
    ],
)
def test_text_classes_and_their_probabilities(here, options):
    frame = table().drop(columns="y")
    frame.to_csv("t.csv", index=False)
    assert (
        main(
            ["fit", "t.csv", "--target", "kind", "--epochs", "60", "--test-fraction", "0", *options]
        )
        == 0
    )
    assert main(["predict", "jaxsgd-t/model.npz", "t.csv", "--out", "p.csv"]) == 0
    predictions = pandas.read_csv("p.csv")
    assert (predictions["prediction"] == frame["kind"]).mean() > 0.9
    if "hinge" in options:
        np.testing.assert_array_equal(predictions["score_high"], -predictions["score_low"])
        return
    np.testing.assert_allclose(
        predictions["probability_high"] + predictions["probability_low"], 1, atol=1e-5
    )


def test_an_mlp_learns_a_target_in_any_unit(here, capsys):
    frame = table(200).drop(columns="kind")
    frame["y"] = 1e6 * frame["y"]
    frame.to_csv("t.csv", index=False)
    assert main(["fit", "t.csv", "--target", "y", "--model", "mlp:16", "--out", "o"]) == 0
    told = capsys.readouterr().out
    assert float(re.search(r"held out +squared_error loss ([\d.]+)", told)[1]) < 0.1


def test_a_torn_model_file_is_told_as_such(here, capsys):
    write("a,y\n1,2\n2,3\n3,4\n4,5\n5,6\n")
    assert main(["fit", "t.csv", "--target", "y", "--epochs", "1"]) == 0
    model = here / "jaxsgd-t/model.npz"
    model.write_bytes(model.read_bytes()[:300])
    assert main(["predict", str(model), "t.csv"]) == 2
    assert "is no model that jaxsgd fit wrote" in capsys.readouterr().err


def write(text):
    with open("t.csv", "w") as file:
        file.write(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,y\n1,2\n\nred,3\n", "column 'a' holds 'red' in line 4, expected a number"),
        ("a,y\n1,2\n,3\n", "column 'a' is empty in line 3"),
        ("a,y\n1,2\n2,\n", "column 'y' is empty in line 3"),
        ("a,y\n1,2\n1e99,3\n", "column 'a' holds 1e.99 in line 3"),
        ("a,y\n", "no rows below its header"),
        ("", "could not be read as csv"),
        ("a,y\n1,2\n1,2,3\n", "could not be read as csv.* line 3"),
        ("a,y\n1,2,3\n1,2,3\n", "more fields in its rows than names"),
        (",y\n1,2\n2,3\n", "column 1 has no name in the header"),
        ("a,a,y\n1,2,3\n", "two columns named 'a' in its header, line 1"),
        ("a,b\n1,2\n", "no column 'y'; it has a, b"),
        ("y\n1\n2\n", "no column but the target"),
        ("a,y\n1,2\n2,high\n", "column 'y' holds 'high' in line 3, expected a number"),
    ],
)
def test_a_wrong_file_gets_one_sentence(here, capsys, text, told):
    write(text)
    assert main(["fit", "t.csv", "--target", "y", "--loss", "squared_error"]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("fit t.csv", "--target is missing"),
        ("fit none.csv --target y", "none.csv is no file"),
        ("fit t.xls --target y", "ends in '.xls'"),
        ("fit digits --target y", "leave out --target"),
        ("fit t.csv --target y --loss logistic", "expected 2 classes"),
        ("fit t.csv --target y --seed -1", "expected 0 to 4294967295"),
        ("fit t.csv --target y --model tree", "--model is 'tree'"),
        ("fit t.csv --target y --model mlp:4 --init zeros", "all hidden units would remain equal"),
        ("fit t.csv --target y --loss squared", "invalid choice: 'squared'"),
        ("fit t.csv --target y --momentum 0.9", "--momentum goes with --rule momentum"),
        (
            "fit t.csv --target y --schedule cosin",
            "--schedule is 'cosin', expected one of constant, linear",
        ),
        (
            "fit t.csv --target y --schedule cosine:a",
            "expected cosine[:FINAL[,STEPS]] with numbers",
        ),
        ("fit t.csv --target y --stop converged:1,2,3", "expected converged[:ATOL[,RTOL]] with"),
        (
            "fit t.csv --target y --rule adam --l1 0.1",
            "so --rule must be sgd or momentum, but it is adam",
        ),
        ("fit t.csv --target y --rule line-search --learning-rate 1", "finds its own rates"),
        ("fit t.csv --target y --rule line-search --batch-size 2", "takes all rows at each step"),
        (
            "fit t.csv --target y --l1 1 --stop gradient",
            "--l1 has no gradient at 0 for --stop gradient",
        ),
        ("fit t.csv --target y --average tail:0.5", "expected a whole number"),
        ("fit t.csv --target y --l1 -1", "L1's strength is -1.0, expected at least 0"),
        ("fit t.csv --target y --warmup -1", "Warmup's steps is -1, expected at least 0"),
        ("fit t.csv --target y --learning-rate -1", "learning_rate is -1.0, expected at least 0"),
        ("fit t.csv --target y --batch-size 500", "batch_size of data with 4 rows is 500"),
        ("fit t.csv --target y --test-fraction 1", "expected 0 or more and below 1"),
        ("fit t.csv --target y --epochs -3", "epochs is -3"),
        ("fit t.npz --target y", "could not be read as npz"),
        ("fit t.parquet --target y", "could not be read as parquet"),
        ("predict t.csv t.csv", "t.csv is no model that jaxsgd fit wrote"),
        ("predict none.npz t.csv", "none.npz is no file"),
        ("", "the following arguments are required"),
    ],
)
def test_a_wrong_command_gets_one_sentence(here, capsys, command, told):
    write("a,y\n1,2\n2,3\n3,4\n4,5\n5,6\n")
    for name in ("t.xls", "t.npz", "t.parquet"):
        (here / name).write_text("nothing")
    try:
        code = main(command.split())
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert told in error
    assert error.count("\n") == 1


def test_predict_names_a_column_the_model_needs(here, capsys):
    write("a,b,y\n1,2,3\n2,3,4\n3,5,7\n4,4,5\n5,1,0\n")
    assert main(["fit", "t.csv", "--target", "y", "--epochs", "1"]) == 0
    write("a,c\n1,2\n")
    assert main(["predict", "jaxsgd-t/model.npz", "t.csv"]) == 2
    assert "no column 'b', which the model was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("mean", lambda x: np.append(x, 0.0), "mean is float64[3], expected floats of shape [2]"),
        ("scale", lambda x: 0 * x, "a scale in it is not above 0"),
        ("scale", lambda x: x * np.nan, "scale holds nan"),
        ("unit", lambda x: x[:1], "unit is float64[1], expected floats of shape [2]"),
        ("params_1", lambda x: np.full_like(x, np.inf), "params_1 holds inf"),
        ("classes", lambda x: x[:1], "params_0 is float32[2], expected floats of shape [1]"),
        ("classes", None, "the loss 'softmax' does not fit its classes, None"),
        ("params_0", None, "is no model that jaxsgd fit wrote"),
    ],
)
def test_a_damaged_model_is_refused(here, capsys, name, change, told):
    write("a,b,kind\n1,2,u\n2,3,v\n3,5,u\n4,4,v\n5,1,u\n")
    assert main(["fit", "t.csv", "--target", "kind", "--epochs", "1"]) == 0
    assert "the target is text, so its 2 values are classes" in capsys.readouterr().out
    with np.load("jaxsgd-t/model.npz", allow_pickle=False) as model:
        arrays = dict(model)
    value = arrays.pop(name)
    if change is not None:
        arrays[name] = change(value)
    np.savez("damaged.npz", **arrays)
    assert main(["predict", "damaged.npz", "t.csv"]) == 2
    assert told in capsys.readouterr().err


def test_a_lasso_with_a_schedule_an_average_and_a_stop(here, capsys):
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.normal(size=(200, 8)), columns=list("abcdefgh"))
    frame.assign(y=3 * frame["a"] - 2 * frame["c"]).to_csv("t.csv", index=False)
    options = "--rule momentum --schedule cosine:0.001 --warmup 10 --average tail --l1 0.2 --l2 0"
    stop = "--stop patience:20 --stop converged:1e-7 --epochs 200 --loss l2_loss"
    assert main(["fit", "t.csv", "--target", "y", *options.split(), *stop.split()]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"rule +TailAverage\(rule=Proximal\(rule=Momentum\(learning_rate=Warmup\(", told
    )
    assert "penalty=L1(strength=0.2, mask=weights_only)" in told
    assert re.search(r"stopped +ended in epoch \d+, after \d+ steps: the monitored", told)
    assert len(pandas.read_csv("jaxsgd-t/history.csv")) < 200
    ours, best = map(
        float, re.search(r"objective +([\d.]+) .* L-BFGS.* ([\d.]+)$", told, re.M).groups()
    )
    assert best <= ours < best + 0.02  # validation stops before the minimum
    assert int(re.search(r"weights +(\d+) of 8 are exactly 0", told)[1]) >= 3


def test_a_diverged_run_leaves_the_files_of_a_good_one_and_gives_a_rate_to_try(here, capsys):
    table().drop(columns="kind").to_csv("t.csv", index=False)
    fit = ["fit", "t.csv", "--target", "y", "--out", "o"]
    assert main(fit) == 0
    names = ["history.csv", "learning_curve.png", "model.npz"]
    good = [Path("o", name).read_bytes() for name in names]
    for rate, epochs, why in [
        ("1e5", "30", r"at step \d+ the loss was not finite"),
        ("5", "1", r"the train loss is \S+, \S+ before the first step"),
    ]:
        assert main([*fit, "--learning-rate", rate, "--epochs", epochs]) == 1
        told = capsys.readouterr().err
        assert re.search(rf"diverged: {why}\. Only o.diverged-history.csv was written; try", told)
        assert [Path("o", name).read_bytes() for name in names] == good
        assert sorted(path.name for path in Path("o").iterdir()) == ["diverged-history.csv", *names]
    rate = re.search(r"--learning-rate (\S+)", told)[1]
    assert main([*fit, "--learning-rate", rate]) == 0


@pytest.mark.slow
def test_ctrl_c_keeps_what_there_is(here):
    command = [
        sys.executable,
        "-m",
        "jaxsgd",
        "fit",
        "digits",
        "--model",
        "mlp:8",
        "--epochs",
        "1000000",
        "--out",
        "o",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = ""
    while "5/1000000" not in told:  # a few epochs are done
        told += process.stderr.read(64)
        assert process.poll() is None, told
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted" in error
    assert "kept in o" in error
    assert "held out" in out
    assert len(pandas.read_csv("o/history.csv")) >= 5
    assert (here / "o/model.npz").exists()
    assert (here / "o/learning_curve.png").exists()
