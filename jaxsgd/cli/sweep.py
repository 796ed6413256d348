"""The search of `jaxsgd sweep`: many settings from many seeds, trained as one program."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxsgd import plots
from jaxsgd.cli.task import CLASSIFIERS, Accuracy, Rows, Task
from jaxsgd.core import validation
from jaxsgd.core.validation import Number
from jaxsgd.evaluation import evaluate
from jaxsgd.loops.run import run
from jaxsgd.models import weights_only
from jaxsgd.penalties import L2
from jaxsgd.rules.averaging import averaged, find_average
from jaxsgd.rules.base import Rule
from jaxsgd.samplers.base import Sampler
from jaxsgd.solver import Solver
from jaxsgd.sweeps.result import Ranked, Sweep
from jaxsgd.sweeps.sweep import sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONG = 4  # two axes are drawn as a heat map, not as curves, where the second has more values


def values(text: str) -> list[float]:
    """The values of an option: one number, several as `0,0.9`, or a geometric `1e-3:1:32`."""
    expected = "expected a number, several as 0,0.9, or LOW:HIGH:COUNT"
    try:
        if ":" not in text:
            return [float(number) for number in text.split(",")]
        first, last, number = text.split(":")
        low, high, count = float(first), float(last), int(number)
    except ValueError:
        raise ArgumentTypeError(f"is {text!r}, {expected}") from None
    if not (0 < low < high < np.inf and count >= 2):
        raise ArgumentTypeError(
            f"is {text!r}, expected 0 < LOW < HIGH and a COUNT of at least 2: its values have one "
            "ratio to the next"
        )
    return np.geomspace(low, high, count).tolist()


class SearchResult(NamedTuple):
    """The runs of a search, and the score that they are compared by."""

    runs: Sweep
    by: str  # the loss at the end, a key of the runs' results

    def ranked(self) -> list[Ranked]:
        """The settings, best first, by the mean over the seeds."""
        return self.runs.ranked(self.by, mean_over="key")

    def report(self, score: str) -> list[str]:
        """How many runs diverged, and the ten best of the settings in which none did."""
        ranked, shape = self.ranked(), self.runs.shape
        fine = [entry for entry in ranked if not entry.diverged]
        count = sum(entry.diverged for entry in ranked)
        named = [name for axis in self.runs.over for name in axis]
        lines = [f"sweep         {' x '.join(named)}: {' x '.join(map(str, shape))} runs"]
        where = f", in {len(ranked) - len(fine)} of {len(ranked)} settings" if count else ""
        lines.append(f"diverged      {count} of {np.prod(shape)} runs{where}")
        if not fine:
            return lines
        lines.append(f"best          {score}, mean and standard deviation over {shape[-1]} seeds")
        rows = [[*named[:-1], "mean", "deviation"]]
        for entry in fine[:10]:
            deviation = f"{entry.spread:.2g}" if shape[-1] > 1 else "-"  # one run has none
            rows.append([*map("{:.4g}".format, [*entry.point.values(), entry.score]), deviation])
        return lines + ["".join(f"{cell:>14}" for cell in row) for row in rows]

    def plot(self, label: str) -> "tuple[Axes, str]":
        """A plot over the two longest axes of a search, and the values of the others, for a title.

        They are those of the best setting or, where all diverged, of any.
        """
        scores, over = self.runs.scores(self.by), [*self.runs.over]
        best, fixed = self.ranked()[0], []
        while len(over) > 3:  # the key is the last axis, and longer axes come before shorter ones
            place = best.place[len(over) - 2]
            ((name, numbers),) = over.pop(-2).items()
            fixed.append(f", {'at' if best.diverged else 'best'} {name} = {numbers[place]:.3g}")
            scores = np.take(scores, place, axis=-2)
        drawn = Sweep(jnp.asarray(scores), tuple(over))
        kind = "heat" if len(over) == 3 and scores.shape[1] > LONG else "curves"
        ax = plots.sweep(drawn, mean_over="key", kind=kind, label=label)
        return ax, "".join(reversed(fixed))


def search(
    task: Task,
    rows: Rows,
    numbers: Mapping[str, list[float] | None],
    *,
    make_rule: Callable[..., Rule],
    sampler: Sampler,
    steps: int,
    seed: int,
    seeds: int,
) -> SearchResult:
    """Train every combination of numbers from every seed, and score the end of each run.

    Args:
      numbers: the values of `learning_rate`, `momentum`, `l1`, `l2`; None for the default.
      make_rule: the rule, a function of the keywords `learning_rate`, `momentum` and `l1`.
      seeds: the number of seeds; each gives other initial parameters and orders of the rows.

    Raises:
      ValueError: no number has several values, or a part refuses one.
    """
    seeds = validation.integer(seeds, "--seeds", 1)
    fixed = {name: None if found is None else found[0] for name, found in numbers.items()}
    swept = {name: found for name, found in numbers.items() if found and len(found) > 1}
    if not swept:
        named = ", ".join("--" + name.replace("_", "-") for name in numbers)
        raise ValueError(f"there is nothing to sweep: give one of {named} several values")
    part = "train" if rows.held_out is None else "held_out"
    metrics: dict[str, Task | Accuracy] = {f"{part}_loss": task}
    if task.loss in CLASSIFIERS:
        metrics[f"{part}_accuracy"] = Accuracy(task)

    def parts(*, l2: Number | None, **others: Number | None) -> tuple[Rule, L2]:
        return make_rule(**others), L2(0.0 if l2 is None else l2, mask=weights_only)

    for name, found in numbers.items():
        for value in found or ():
            parts(**fixed | {name: value})  # for the checks, which pass traced numbers

    def end(train: PyTree, scored: PyTree, key: jax.Array, **point: jax.Array) -> PyTree:
        rule, penalty = parts(**fixed | point)
        solver = Solver(task, sampler, rule, penalty)
        init_key, run_key = jax.random.split(key)
        state = solver.init(task.model.init(init_key), train, key=run_key)
        state, _ = run(solver, state, train, steps)
        params = state.params if find_average(state.rule) is None else averaged(state)
        return evaluate(metrics, params, scored)

    over = dict(sorted(swept.items(), key=lambda item: -len(item[1])))  # the longest first
    keys = jax.random.split(jax.random.key(seed), seeds)
    scored = rows.train if rows.held_out is None else rows.held_out
    runs = sweep(end, rows.train, scored, over=over | {"key": keys})
    return SearchResult(jax.block_until_ready(runs), f"{part}_loss")
