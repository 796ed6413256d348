"""The arguments of the command `jaxsgd`."""

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from jaxsgd.cli import options
from jaxsgd.cli.sweep import values
from jaxsgd.cli.task import LOSSES
from jaxsgd.models import INITS

Command = Callable[[argparse.Namespace], int]
DESCRIPTION = "Train a small model on a table of rows, sweep its numbers, and predict."


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """The parser of the command; `run` of what it parses is one of the given functions."""
    parser = _Parser(prog="jaxsgd", description=DESCRIPTION)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = parsers.add_parser(
        "fit",
        help="train on a table of rows",
        description="Train on a table of rows; write the learning curve, the history and the model."
        " Features, and a target of numbers, are standardised with the training part's statistics.",
    )
    fit.set_defaults(run=commands["fit"])
    _add_training(fit, float, [*options.RULES], "sgd", 100)
    add = fit.add_argument
    stops = f"before the last epoch, may be repeated: {_listed(options.STOPS)}"
    add("--stop", action="append", default=[], help=stops)
    add("--out", metavar="FOLDER", help="default: jaxsgd-NAME; its files are replaced")

    sweep = parsers.add_parser(
        "sweep",
        help="train with many numbers and seeds at once",
        description="Train with every combination of learning rates, momenta and penalties, from"
        " several seeds, all at once; print the ten best settings, write and plot all. Each of"
        " these options takes several values: 0,0.9 or, geometric, LOW:HIGH:COUNT.",
    )
    sweep.set_defaults(run=commands["sweep"])
    rules = [name for name, (_, rate) in options.RULES.items() if rate is not None]
    _add_training(sweep, values, rules, None, 10)
    add = sweep.add_argument
    add("--seeds", type=int, default=8, help="of start and order, for each setting; default: 8")
    add("--out", metavar="FOLDER", help="default: jaxsgd-NAME-sweep; its files are replaced")

    predict = parsers.add_parser("predict", help="predict with a trained model")
    predict.set_defaults(run=commands["predict"])
    add = predict.add_argument
    add("model", metavar="MODEL", help="the model.npz that fit wrote")
    add("file", metavar="FILE", help="a file with the same feature columns")
    add("--out", metavar="FILE", default="predictions.csv", help="default: predictions.csv")
    return parser


def say(sentence: str, code: int) -> int:
    """Print a sentence to stderr; returns the exit code."""
    print(f"jaxsgd: {sentence}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's usage and sentence."""
        raise SystemExit(say(f"{message}; see {self.prog} --help", 2))


def _add_training(
    parser: argparse.ArgumentParser,
    number: Callable[[str], float | list[float]],
    rules: list[str],
    rule: str | None,
    epochs: int,
) -> None:
    """The options of training; `number` parses those that a sweep is over."""
    add = parser.add_argument
    add("file", metavar="FILE", help="'digits', or a .csv, .parquet or .npz file")
    add("--target", metavar="COLUMN", help="the column to predict")
    add("--loss", choices=LOSSES, help="default: softmax for text targets, else squared_error")
    add("--model", default="linear", help="linear, or mlp with hidden units: mlp:128,64")
    add("--init", choices=tuple(INITS), help="default: zeros for linear, lecun for mlp")
    add("--batch-size", type=int, help="default: 64, or all rows where there are fewer")
    add("--epochs", type=int, default=epochs, help=f"default: {epochs}")
    default = rule or "sgd, or momentum where --momentum is given"
    add("--rule", choices=rules, default=rule, help=f"default: {default}")
    rates = ", ".join(f"{rate:g} for {name}" for name, (_, rate) in options.RULES.items() if rate)
    add("--learning-rate", type=number, help=f"default: {rates}")
    add("--momentum", type=number, help="of --rule momentum and nesterov; default: 0.9")
    schedules = f"of the rate, by the step: {_listed(options.SCHEDULES)}; default: constant"
    add("--schedule", default="constant", help=schedules)
    ramp = "a ramp up to the schedule; default: 0"
    add("--warmup", type=int, default=0, metavar="STEPS", help=ramp)
    add("--average", help=f"of the parameters: {_listed(options.AVERAGES)}")
    l1 = "of l1 |weights|, exact zeros if not averaged; default: 0"
    add("--l1", type=number, default="0", help=l1)
    add("--l2", type=number, default="0.001", help="of l2/2 |weights|^2; default: 0.001")
    add("--seed", type=_seed, default=0, help="of split, start and order; default: 0")
    add("--test-fraction", type=_fraction, default=0.2, help="rows held out; default: 0.2")


def _listed(choices: Mapping[str, options.Choice[object]]) -> str:
    return ", ".join(f"{name}{choice}" for name, choice in choices.items())


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 or more and below 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 to {2**32 - 1}")
    return value
