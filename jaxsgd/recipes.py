"""The parts that the command names: `cosine`, `patience:5`, `ema:0.99`.

A part is written as a name and, after a colon, its numbers; those left out follow from the learning
rate and the number of steps.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxsgd.adaptive import AdaGrad, Adam, RMSProp
from jaxsgd.averaging import EMA, TailAverage
from jaxsgd.line_search import LineSearch
from jaxsgd.penalties import L1
from jaxsgd.proximal import Proximal
from jaxsgd.rules import SGD, Momentum, Nesterov
from jaxsgd.schedules import (
    CompoundDecay,
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LinearDecay,
    StepDecay,
    WarmRestarts,
    Warmup,
)
from jaxsgd.stopping import AnyOf, Converged, Diverged, EarlyStopping, SmallGradient, SmallStep


class Choice(NamedTuple):
    """A part of the command: how it is made, and what its numbers are called."""

    make: Callable[..., Any]
    numbers: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "".join(f"[{',' if i else ':'}{name}" for i, name in enumerate(self.numbers)) + (
            "]" * len(self.numbers)
        )


# make(learning_rate, momentum), and the rate that suits standardised rows
RULES: dict[str, tuple[Callable[..., Any], float | None]] = {
    "sgd": (lambda a, m: SGD(a), 0.05),
    "momentum": (Momentum, 0.01),
    "nesterov": (Nesterov, 0.01),
    "adagrad": (lambda a, m: AdaGrad(a), 0.05),
    "rmsprop": (lambda a, m: RMSProp(a), 0.001),
    "adam": (lambda a, m: Adam(a), 0.001),
    "line-search": (lambda a, m: LineSearch(), None),
}
WITH_MOMENTUM = ("momentum", "nesterov")

# make(learning_rate, steps of the whole run, *numbers); most end at a hundredth of the rate
SCHEDULES = {
    "constant": Choice(lambda a, n: a),
    "linear": Choice(
        lambda a, n, b=None, steps=None: LinearDecay(a, *_or((b, a / 100), (steps, n))),
        ("FINAL", "STEPS")),
    "cosine": Choice(lambda a, n, b=0.0, steps=None: CosineDecay(a, b, *_or((steps, n))),
                     ("FINAL", "STEPS")),
    "inverse": Choice(lambda a, n, decay=None: InverseTimeDecay(a, *_or((decay, 99 / n))),
                      ("DECAY",)),
    "compound": Choice(
        lambda a, n, decay=None: CompoundDecay(a, *_or((decay, 2 * math.log(100) / n**2))),
        ("DECAY",)),
    "exponential": Choice(
        lambda a, n, decay=None: ExponentialDecay(a, *_or((decay, math.log(100) / n))), ("DECAY",)),
    "step": Choice(lambda a, n, f=0.1, every=None: StepDecay(a, f, *_or((every, max(n // 3, 1)))),
                   ("FACTOR", "EVERY")),
    "restarts": Choice(
        lambda a, n, steps=None, f=2.0, b=0.0: WarmRestarts(
            a, b, _or((steps, max(n / 7, 1)))[0], f),
        ("STEPS", "FACTOR", "FINAL")),
}  # fmt: skip

STOPS = {
    "converged": Choice(Converged, ("ATOL", "RTOL")),
    "gradient": Choice(SmallGradient, ("ATOL",)),
    "step": Choice(SmallStep, ("ATOL",)),
    "patience": Choice(lambda n=10, delta=0.0: EarlyStopping(n, delta), ("EPOCHS", "MIN_DELTA")),
    "diverged": Choice(Diverged, ("FACTOR",)),
}

# make(rule, steps of the whole run, *numbers)
AVERAGES = {
    "tail": Choice(
        lambda rule, n, start=None: TailAverage(rule, *_or((start, n // 2))), ("START",)
    ),
    "ema": Choice(lambda rule, n, decay=0.999: EMA(rule, decay), ("DECAY",)),
}  # fmt: skip


def rule(
    name: str,
    *,
    learning_rate: float | None,
    momentum: float | None,
    schedule: str,
    warmup: int,
    average: str | None,
    l1: float,
    mask: Any,
    steps: int,
) -> Any:
    """The rule of a run of so many steps.

    Raises:
      ValueError: options that do not go together, or an unknown part.
    """
    make, default = RULES[name]
    if momentum is not None and name not in WITH_MOMENTUM:
        told = f"--momentum goes with --rule {' or '.join(WITH_MOMENTUM)}"
        raise ValueError(f"{told}, but --rule is {name}")
    if name == "line-search" and (learning_rate is not None or schedule != "constant" or warmup):
        raise ValueError(
            "--rule line-search finds its own rates: leave out --learning-rate, --schedule and "
            "--warmup"
        )
    rate: Any = None
    if default is not None:
        rate = default if learning_rate is None else learning_rate
        rate = choose("--schedule", schedule, SCHEDULES, rate, max(steps, 1))
        rate = Warmup(rate, warmup) if warmup else rate
    made = make(rate, 0.9 if momentum is None else momentum)
    if l1:
        if not isinstance(made, SGD | Momentum):
            raise ValueError(
                f"--l1 is a proximal step at the rule's one rate, so --rule is sgd or momentum "
                f"there, but it is {name}"
            )
        made = Proximal(made, L1(l1, mask))
    return made if average is None else choose("--average", average, AVERAGES, made, steps)


def stop(specs: list[str]) -> Any:
    """Any of the stops, or None of none."""
    stops = [choose("--stop", spec, STOPS) for spec in specs]
    return stops[0] if len(stops) == 1 else AnyOf(*stops) if stops else None


def choose(option: str, spec: str, choices: dict[str, Choice], *context: Any) -> Any:
    """The part that a spec such as `cosine:0.001` names."""
    name, _, rest = spec.partition(":")
    if name not in choices:
        raise ValueError(f"{option} is {spec!r}, expected one of {', '.join(choices)}")
    choice = choices[name]
    try:
        numbers = [float(text) for text in rest.split(",")] if rest else []
    except ValueError:
        numbers = []
    if len(numbers) != len(rest.split(",")) * bool(rest) or len(numbers) > len(choice.numbers):
        raise ValueError(f"{option} is {spec!r}, expected {name}{choice} with numbers")
    return choice.make(*context, *numbers)


def _or(*pairs: tuple[Any, Any]) -> list[Any]:
    """Of each pair the first, or the second where that was left out."""
    return [default if value is None else value for value, default in pairs]
