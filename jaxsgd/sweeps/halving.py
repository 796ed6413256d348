"""Successive halving: many settings for a few steps, fewer for more."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable, part, static
from jaxsgd.core.trees import by_words
from jaxsgd.sweeps.axes import as_axes, entry, length, repeated
from jaxsgd.sweeps.result import Ranked, Sweep
from jaxsgd.sweeps.sweep import sweep


class Rung(NamedTuple):
    """What one rung of a halving saw."""

    steps: int  # taken by each of its settings since the start
    settings: np.ndarray  # int[m]: their numbers, in the order of the product of the axes
    scores: np.ndarray  # float64[m]: the mean over runs; infinite where one diverged


class HalvingResult(NamedTuple):
    """What `halving` returns.

    `best`: the winner, whose `place` is its number among the settings. `state`: the winner's, to go
    on from, with leading axes where runs were averaged. `rungs`: what each rung saw.
    """

    best: Ranked
    state: PyTree
    rungs: tuple[Rung, ...]

    @property
    def work(self) -> int:
        """Steps taken by all settings together; each of the runs that are averaged takes them."""
        before = [0, *(rung.steps for rung in self.rungs)]
        return sum(
            len(rung.settings) * (rung.steps - begin)
            for rung, begin in zip(self.rungs, before, strict=False)
        )


def halving(
    init: Callable[..., PyTree],
    run: Callable[..., tuple[PyTree, jax.Array]],
    *args: PyTree,
    over: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    steps: int,
    factor: int = 2,
    mean_over: str | Sequence[str] | None = None,
    chunk: int | None = None,
) -> HalvingResult:
    """Find the best of n settings by dropping all but the best `1 / factor` again and again.

    Each of the `K = ceil(log_factor n)` rungs takes as many steps in all, so that a setting which
    stays for rung k takes `factor^k` times as many there as in the first, and the winner `steps` in
    all: rung k = 1..K ends after `steps (factor^k - 1) / (factor^K - 1)`, rounded. That is about
    K / n of the work of a full sweep, and K programs to compile: it pays where steps are dear. The
    states go on; lanes that share their rows keep sharing them. Jamieson and Talwalkar,
    "Non-stochastic best arm identification and hyperparameter optimization" (2016).

    Args:
      init: `init(*args, **point) -> state`, any pytree: `solver.init`, perhaps beside the solver.
      run: `run(state, *args, steps=..., **point) -> (state, score)`: that many more steps, an int,
        and a number by which settings are compared, the smaller the better. A number that is not
        finite loses.
      args: what all runs are given.
      over: the settings, as in `sweep`.
      steps: how many the winner takes, at least one for each rung.
      factor: how many times fewer settings each rung has.
      mean_over: the name of an axis whose runs are repetitions of one setting, compared by their
        mean: "key", or the names of several. All of its runs go on.
      chunk: as in `sweep`.

    Returns:
      A `HalvingResult`. The same arguments give the same one.

    Raises:
      ValueError: too few steps, one setting only, or settings that all diverged.

    >>> def init(learning_rate):
    ...     return jnp.array(1.0)
    >>> def run(theta, steps, learning_rate):  # gradient descent on theta^2
    ...     theta = theta * (1 - 2 * learning_rate) ** steps
    ...     return theta, theta**2
    >>> halved = jaxsgd.halving(init, run, over={"learning_rate": [0.01, 0.1, 0.3, 2.0]}, steps=6)
    >>> halved.best.point, [len(rung.settings) for rung in halved.rungs], halved.work
    ({'learning_rate': 0.3}, [4, 2], 16)
    """
    axes = as_axes(over)
    repeats = repeated(axes, mean_over)
    kept = [axes[i] for i in repeats]
    settings = _flat([axis for i, axis in enumerate(axes) if i not in repeats])
    n = length(settings) if settings else 1
    if n < 2:
        raise ValueError(f"over holds {n} settings, expected at least 2 to choose from")
    factor = validation.integer(factor, "factor", 2)
    sizes = [n]
    while sizes[-1] > factor:
        sizes.append(-(-sizes[-1] // factor))
    steps = validation.integer(steps, "steps", len(sizes))
    shares = np.cumsum(float(factor) ** np.arange(len(sizes)))
    ends = np.maximum(np.round(steps * shares / shares[-1]).astype(int), np.arange(len(sizes)) + 1)

    run, rungs, taken = as_callable(run, "run"), [], 0
    numbers = np.arange(n)
    states = sweep(init, *args, over=[settings, *kept], chunk=chunk, progress=False)
    for end in map(int, ends):
        rung, over = _Rung(run, end - taken), [settings, *kept]
        result = sweep(rung, states, *args, over=over, chunk=chunk, progress=False)
        if not isinstance(result.lanes, tuple) or len(result.lanes) != 2:
            kind = type(result.lanes).__name__
            raise TypeError(f"run returned a {kind}, expected (state, score)")
        scores = result[1].scores().reshape(len(numbers), -1)
        rungs.append(Rung(end, numbers, scores.mean(axis=1)))
        order = np.argsort(rungs[-1].scores, kind="stable")
        keep = np.sort(order[: -(-len(numbers) // factor) if end < steps else 1])
        lanes = _at(result.lanes[0], jax.device_put(keep))
        settings = jax.tree.map(partial(_take, places=keep), settings)
        states, numbers, taken = Sweep(lanes, (settings, *kept)), numbers[keep], end
        scores = scores[keep]
    if not np.isfinite(scores).all():
        raise ValueError("in every setting that was left a run diverged: there is no best one")
    spread = float(np.std(scores, ddof=1)) if scores.size > 1 else 0.0
    point = {name: entry(values, 0) for name, values in settings.items()}
    best = Ranked(point, float(scores.mean()), spread, 0, (int(numbers[0]),))
    return HalvingResult(best, jax.tree.map(partial(_take, places=0), states.value), tuple(rungs))


@part
class _Rung:
    """So many steps of a run; the number is static."""

    run: Any
    steps: int = static()

    def __call__(self, state: PyTree, *args: PyTree, **point: Any) -> PyTree:
        return self.run(state, *args, steps=self.steps, **point)


def _flat(axes: Sequence[dict[str, PyTree]]) -> dict[str, PyTree]:
    """The product of some axes as one."""
    lengths = [len(jax.tree.leaves(axis)[0]) for axis in axes]
    places = np.indices(lengths).reshape(len(axes), -1)
    return {
        name: jax.tree.map(partial(_take, places=at), values)
        for at, axis in zip(places, axes, strict=True)
        for name, values in axis.items()
    }


@jax.jit
def _at(tree: PyTree, keep: jax.Array) -> PyTree:
    """Some lanes; what is shared by all of them stays so."""
    return jax.tree.map(lambda x: x if x.shape[0] == 1 else _take(x, keep), tree)


def _take(x: jax.Array, places: Any) -> jax.Array:
    return by_words(lambda x: x[places], x)
