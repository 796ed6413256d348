"""The contenders do the same work, and the contest says so where one does not."""

import dataclasses
from importlib import import_module

import jax
import numpy as np
import pytest

from benchmarks import contest, report
from benchmarks.tasks import Cannot, Grid, Training
from benchmarks.works import BARE, CONTENDERS, SWEEPS, TRAINERS, WORKS

pytestmark = pytest.mark.filterwarnings("default")  # PyTorch's compiler warns of its own code
INSTALLED = [name for name in TRAINERS | BARE if name != "Keras 3 on JAX"]


def trained(name, task, data, seed=0):
    module, function = CONTENDERS[name].split(":")
    return getattr(import_module(f"benchmarks.{module}"), function)(task, data)(seed)()


@pytest.mark.parametrize(
    "task",
    [
        Training("linear", 12, 3, 12, 4, 0.1),
        Training("mlp", 12, 3, 12, 4, 0.1, classes=3, hidden=5),
        Training("logistic", 12, 3, 5, 4, 0.1),  # the last batch of an epoch is short
    ],
)
def test_contenders_take_the_same_steps(task):
    """All must end at the same parameters, where all rows are in a batch, or are alike."""
    x, y = task.data()
    data = (x, y) if task.batch == task.rows else (np.tile(x[:1], (12, 1)), np.tile(y[:1], 12))
    expected = trained("NumPy loop", task, data)
    before = task.objective(task.start(), data)
    assert task.objective(expected, data) < before
    for name in INSTALLED:
        try:
            found = trained(name, task, data)
        except Cannot:
            continue
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine[0], theirs[0], rtol=1e-4, atol=1e-6, err_msg=name)
            np.testing.assert_allclose(mine[1], theirs[1], rtol=1e-4, atol=1e-6, err_msg=name)


def test_sweeps_train_the_same_runs():
    grid = Grid(Training("linear", 12, 2, 12, 3, 0.1), 0.01, 0.2, 3, 2)
    data = grid.data()
    expected = trained("NumPy, run after run", grid, data)
    assert expected[0][0].shape == (6, 2, 1)
    for name in SWEEPS:
        with jax.debug_key_reuse(False):  # ours runs with it elsewhere
            found = trained(name, grid, data)
        for mine, theirs in zip(found[0], expected[0], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_counts_of_a_step():
    moved, multiplied = WORKS["softmax"].cases["60000"].counts
    assert moved == 4 * (60_000 * 785 + 2 * 7850)
    assert multiplied == 60_000 * 4 * 7840
    assert WORKS["mlp"].cases[""].counts[1] == pytest.approx(
        60_000 / 938 * 2 * (2 * (784 * 128 + 1280) + 1280)
    )


def measured(seconds, objective):
    return {"seconds": seconds, "objective": objective, "compile": 0.0, "first": 1.0, "memory": 9.0}


def test_a_contender_that_did_other_work_fails():
    ours, theirs = [1.0, 1.02, 1.01], [1.01, 1.0, 1.02]
    found = contest.judged(
        {
            "jaxsgd": measured([1.0, 2.0, 4.0], ours),
            "alike": measured([3.0, 4.0, 4.0], theirs),
            "other": measured([1.0, 1.0, 1.0], [x + 0.05 for x in theirs]),
            "lost": measured([1.0, 1.0, 1.0], [np.nan] * 3),
            "absent": {"cannot": "one row a step"},
        },
        [0.99, 1.0],
    )
    assert found["alike"]["ratio"] == 2.0  # of 3, 2 and 1
    assert "failed" not in found["alike"]
    assert "did other work" in found["other"]["failed"]
    assert "failed" in found["lost"]
    assert found["absent"] == {"cannot": "one row a step"}
    machine = {"bandwidth": 1e9, "rate": 1e9}
    table = report.table("seed", "", found, machine)
    assert "| absent | one row a step |" in table
    assert "failed: its objective is 1.06" in table
    assert "| other |" in table


def test_processes_take_turns(monkeypatch):
    names = ("NumPy loop", "scikit-learn")
    monkeypatch.setitem(WORKS, "seed", dataclasses.replace(WORKS["seed"], contenders=names))
    found = contest.contest("seed", "", 2, lambda words: None)
    assert len(found["NumPy loop"]["seconds"]) == 2
    assert found["NumPy loop"]["ratio"] == 1.0
    assert found["NumPy loop"]["objective"][0] == pytest.approx(0.1125, abs=1e-3)
    assert found["scikit-learn"] == {"cannot": "one row a step"}
    with pytest.raises(contest.Failed, match="KeyError"):
        contest.Contender("no such work", "", "NumPy loop")


def test_the_readme_tells_what_was_measured():
    text = report.README.read_text()
    folders = [path.parent for path in report.RESULTS.glob("*/results.json")]
    whole = [
        folder
        for folder in folders
        if all(name in report.load(folder) for name, _ in report.HIGHLIGHTS)
    ]
    assert any(report.readme_text(folder) in text for folder in whole)
