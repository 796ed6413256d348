"""The parts that the command names, and the numbers that follow from the run."""

import numpy as np
import pytest

import jaxsgd
from jaxsgd.cli import options


def rule(name="sgd", **given_options):
    given = {"learning_rate": 0.1, "momentum": None, "schedule": "constant", "warmup": 0}
    given |= {
        "average": None,
        "l1": 0.0,
        "mask": jaxsgd.models.weights_only,
        "steps": 1000,
    } | given_options
    return options.rule(name, **given)


@pytest.mark.parametrize("name", options.RULES)
def test_every_rule_with_its_own_rate(name):
    made = rule(name, learning_rate=None)
    assert getattr(made, "learning_rate", None) == options.RULES[name][1]
    assert type(made).__name__.lower() == name.replace("-", "")


@pytest.mark.parametrize(
    ("spec", "at_start", "at_end"),
    [
        ("constant", 0.1, 0.1),
        ("linear", 0.1, 0.001),
        ("linear:0.05,500", 0.1, 0.05),
        ("cosine", 0.1, 0.0),
        ("cosine:0.02", 0.1, 0.02),
        ("inverse", 0.1, 0.001),
        ("inverse:0.001", 0.1, 0.05),
        ("compound", 0.1, 0.001),
        ("exponential", 0.1, 0.001),
        ("step", 0.1, 0.0001),
        ("step:0.5,400", 0.1, 0.025),
        ("restarts:0.02,100,1", 0.1, 0.1),
    ],
)
def test_schedules_end_where_their_defaults_say(spec, at_start, at_end):
    rate = rule(schedule=spec).learning_rate
    rate = rate if callable(rate) else lambda step: 0.1
    np.testing.assert_allclose(float(rate(0)), at_start, rtol=1e-6)
    np.testing.assert_allclose(float(rate(1000)), at_end, rtol=0.03, atol=1e-7)


def test_parts_are_nested_in_order():
    made = rule("momentum", momentum=0.5, schedule="step", warmup=7, l1=0.1, average="ema:0.9")
    assert isinstance(made, jaxsgd.EMA)
    assert made.decay == 0.9
    assert isinstance(made.rule, jaxsgd.Proximal)
    assert made.rule.rule.momentum == 0.5
    assert made.rule.rule.learning_rate.steps == 7
    assert made.rule.penalty.mask is jaxsgd.models.weights_only
    assert rule(average="tail").start == 500
    assert rule(average="ema").decay == pytest.approx(0.99)
    assert options.stop([]) is None
    assert options.stop(["gradient:0.5"]).atol == 0.5
    both = options.stop(["patience:3,0.1", "diverged"])
    assert [type(stop).__name__ for stop in both.stops] == ["EarlyStopping", "Diverged"]
