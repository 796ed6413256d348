"""The parts that the command names: `cosine`, `patience:5`, `ema:0.99`.

A part is written as a name and, after a colon, its numbers; the default of a number may depend on
the learning rate and the number of steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax

from jaxsgd.core.validation import Number
from jaxsgd.penalties import L1, Mask
from jaxsgd.rules.adaptive import AdaGrad, Adam, RMSProp
from jaxsgd.rules.averaging import EMA, TailAverage
from jaxsgd.rules.base import Rule
from jaxsgd.rules.descent import SGD, Momentum, Nesterov
from jaxsgd.rules.line_search import LineSearch
from jaxsgd.rules.proximal import Proximal
from jaxsgd.schedules import (
    CompoundDecay,
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LinearDecay,
    Rate,
    StepDecay,
    WarmRestarts,
    Warmup,
)
from jaxsgd.stopping.base import Stop
from jaxsgd.stopping.criteria import (
    AnyOf,
    Converged,
    Diverged,
    EarlyStopping,
    SmallGradient,
    SmallStep,
)

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Choice(Generic[T_co]):
    """A part that can be named: what makes it, and its numbers with their defaults.

    A default may be a function of the arguments of `choose` that follow the choices.
    """

    make: Callable[..., T_co]
    numbers: dict[str, float | Callable[..., float]]

    def __str__(self) -> str:
        opened = "".join(f"[{',' if i else ':'}{name}" for i, name in enumerate(self.numbers))
        return opened + "]" * len(self.numbers)


# make(learning_rate, momentum), and a good rate for standardised rows; None: it takes no rate
RULES: dict[str, tuple[Callable[[Rate, Number], Rule], float | None]] = {
    "sgd": (lambda a, m: SGD(a), 0.05),
    "momentum": (Momentum, 0.01),
    "nesterov": (Nesterov, 0.01),
    "adagrad": (lambda a, m: AdaGrad(a), 0.05),
    "rmsprop": (lambda a, m: RMSProp(a), 0.001),
    "adam": (lambda a, m: Adam(a), 0.001),
    "line-search": (lambda a, m: LineSearch(), None),
}
WITH_MOMENTUM = ("momentum", "nesterov")

# make(learning_rate, *numbers), defaults by rate and steps; decays end at a hundredth of the rate
SCHEDULES: dict[str, Choice[Rate]] = {
    "constant": Choice(lambda a: a, {}),
    "linear": Choice(LinearDecay, {"FINAL": lambda a, n: a / 100, "STEPS": lambda a, n: n}),
    "cosine": Choice(CosineDecay, {"FINAL": 0.0, "STEPS": lambda a, n: n}),
    "inverse": Choice(InverseTimeDecay, {"DECAY": lambda a, n: 99 / n}),
    "compound": Choice(CompoundDecay, {"DECAY": lambda a, n: 2 * math.log(100) / n**2}),
    "exponential": Choice(ExponentialDecay, {"DECAY": lambda a, n: math.log(100) / n}),
    "step": Choice(StepDecay, {"FACTOR": 0.1, "PERIOD": lambda a, n: max(n // 3, 1)}),
    "restarts": Choice(
        WarmRestarts, {"FINAL": 0.0, "STEPS": lambda a, n: max(n / 7, 1), "FACTOR": 2.0}
    ),
}

STOPS: dict[str, Choice[Stop]] = {
    "converged": Choice(Converged, {"ATOL": 1e-4, "RTOL": 0.0}),
    "gradient": Choice(SmallGradient, {"ATOL": 1e-6}),
    "step": Choice(SmallStep, {"ATOL": 1e-6}),
    "patience": Choice(EarlyStopping, {"EPOCHS": 10, "MIN_DELTA": 0.0}),
    "diverged": Choice(Diverged, {"FACTOR": 1e3}),
}

# make(rule, number), defaults by rule and steps
AVERAGES: dict[str, Choice[Rule]] = {
    "tail": Choice(TailAverage, {"START_STEP": lambda rule, n: n // 2}),
    "ema": Choice(EMA, {"DECAY": lambda rule, n: max(1 - 10 / max(n, 1), 0)}),  # a tenth of the run
}


def rule(
    name: str,
    *,
    learning_rate: Number | None,
    momentum: Number | None,
    schedule: str,
    warmup: int,
    average: str | None,
    l1: Number,
    mask: Mask,
    steps: int,
) -> Rule:
    """The rule of a run of `steps` steps; its numbers may be traced, in a sweep over them.

    Raises:
      ValueError: options that do not go together, or an unknown part.
    """
    make, default = RULES[name]
    if momentum is not None and name not in WITH_MOMENTUM:
        expected = f"--momentum goes with --rule {' or '.join(WITH_MOMENTUM)}"
        raise ValueError(f"{expected}, but --rule is {name}")
    if name == "line-search" and (learning_rate is not None or schedule != "constant" or warmup):
        raise ValueError(
            "--rule line-search finds its own rates: leave out --learning-rate, --schedule and "
            "--warmup"
        )
    rate: Rate = 0.0
    if default is not None:
        rate = default if learning_rate is None else learning_rate
        rate = choose("--schedule", schedule, SCHEDULES, rate, max(steps - warmup, 1))
        rate = Warmup(rate, warmup) if warmup else rate
    made = make(rate, 0.9 if momentum is None else momentum)
    if isinstance(l1, jax.Array) or l1:  # the value of a traced one is not known
        if not isinstance(made, SGD | Momentum):
            raise ValueError(
                "--l1 is a proximal step at the rule's learning rate, so --rule must be sgd or "
                f"momentum, but it is {name}"
            )
        made = Proximal(made, L1(l1, mask))
    return made if average is None else choose("--average", average, AVERAGES, made, steps)


def stop(specs: list[str]) -> Stop | None:
    """A stop at any of several conditions; None where there are none."""
    stops = [choose("--stop", spec, STOPS) for spec in specs]
    return stops[0] if len(stops) == 1 else AnyOf(*stops) if stops else None


def choose(option: str, spec: str, choices: dict[str, Choice[T_co]], *context: object) -> T_co:
    """The part that a spec such as `cosine:0.001` names.

    It is made of the first of the context and its numbers; default numbers depend on the context.
    """
    name, _, rest = spec.partition(":")
    if name not in choices:
        raise ValueError(f"{option} is {spec!r}, expected one of {', '.join(choices)}")
    choice = choices[name]
    texts = rest.split(",") if rest else []
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = None
    if numbers is None or len(numbers) > len(choice.numbers):
        raise ValueError(f"{option} is {spec!r}, expected {name}{choice} with numbers")
    for default in list(choice.numbers.values())[len(numbers) :]:
        numbers.append(default(*context) if callable(default) else default)
    return choice.make(*context[:1], *numbers)
