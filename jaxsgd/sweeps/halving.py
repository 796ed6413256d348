"""`halving`: successive halving over a sweep whose runs continue from their states."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import as_callable, part, static
from jaxsgd.sweeps.axes import Over, as_axes, length, repeated, take, value_at
from jaxsgd.sweeps.result import Ranked, Sweep
from jaxsgd.sweeps.sweep import sweep
from jaxsgd.sweeps.vmapped import RUNS


class Rung(NamedTuple):
    """The settings that one rung of `halving` compared.

    Attributes:
      steps: the steps that each of its settings has taken since the start.
      settings: int[m], their numbers, in the order of the product of the axes.
      scores: float64[m], the mean score of each over its runs; infinite where one diverged.
    """

    steps: int
    settings: np.ndarray
    scores: np.ndarray


class HalvingResult(NamedTuple):
    """The result of `halving`.

    Attributes:
      best: the best setting, whose `place` is its number among the settings.
      state: its state, from which to continue; with leading axes for averaged runs.
      rungs: the settings and scores of each rung.
      work: the steps of all settings together.
    """

    best: Ranked
    state: PyTree
    rungs: tuple[Rung, ...]

    @property
    def work(self) -> int:
        """The steps of all settings together. Runs that are averaged take as many steps each."""
        before = [0, *(rung.steps for rung in self.rungs)]
        return sum(
            len(rung.settings) * (rung.steps - begin)
            for rung, begin in zip(self.rungs, before, strict=False)
        )


def halving(
    init: Callable[..., PyTree],
    run: Callable[..., tuple[PyTree, jax.Array]],
    *args: PyTree,
    over: Over,
    steps: int,
    factor: int = 2,
    mean_over: str | Sequence[str] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> HalvingResult:
    """Find the best of n settings by successive halving.

    Rung k = 1..K, with `K = ceil(log_factor n)`, ends after
    `steps (factor^k - 1) / (factor^K - 1)` steps, rounded, and keeps the best `1 / factor` of its
    settings.

    All rungs take about as many steps in total, and the best setting takes `steps`. Together that
    is about K / n of the work of a full sweep, but there are K programs to compile, so halving pays
    where steps are expensive. Runs continue from their states, and those that share their
    minibatches continue to share them.

    Args:
      init: `init(*args, **point) -> state`, any pytree, such as `(solver, solver.init(...))`.
      run: `run(state, *args, steps=..., **point) -> (state, score)` takes `steps` more steps (an
        int) and returns the number by which settings are compared. The smaller score is better, and
        a score that is not finite loses.
      args: arguments that all runs share.
      over: the settings, as in `sweep`.
      steps: the number of steps of the best setting, at least one per rung.
      factor: the factor by which each rung reduces the number of settings, at least 2.
      mean_over: the name of an axis whose runs repeat one setting, such as "key", or several names.
        Settings are compared by the mean over their runs, all of which continue.
      chunk, mesh: as in `sweep`. Where no axis of `mean_over` is a multiple of the mesh's devices,
        a rung's settings are filled up to one with copies of the last, whose results are not used.

    Returns:
      A `HalvingResult`. The same arguments give the same result.

    Raises:
      TypeError: `run` does not return a pair.
      ValueError: fewer than two settings, too few steps, or a diverged run in every setting of the
        last rung.

    >>> def init(learning_rate):
    ...     return jnp.array(1.0)
    >>> def run(theta, steps, learning_rate):  # gradient descent on theta^2
    ...     theta = theta * (1 - 2 * learning_rate) ** steps
    ...     return theta, theta**2
    >>> halved = jaxsgd.halving(init, run, over={"learning_rate": [0.01, 0.1, 0.3, 2.0]}, steps=6)
    >>> halved.best.point, [len(rung.settings) for rung in halved.rungs], halved.work
    ({'learning_rate': 0.3}, [4, 2], 16)

    References: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter
    optimization" (2016).
    """
    axes = as_axes(over)
    repeats = repeated(axes, mean_over)
    repetitions = [axes[i] for i in repeats]
    settings = _product([axis for i, axis in enumerate(axes) if i not in repeats])
    n = length(settings) if settings else 1
    if n < 2:
        raise ValueError(f"over holds {n} settings, expected at least 2 to choose from")
    factor = validation.integer(factor, "factor", 2)

    # on a mesh the devices divide the settings of each rung, unless they divide the repetitions
    devices = 1 if mesh is None else dict(mesh.shape).get(RUNS, 1)
    unit = 1 if any(length(axis) % devices == 0 for axis in repetitions) else devices
    options = {"chunk": chunk, "mesh": mesh, "progress": False}

    init, run, rungs, taken = as_callable(init, "init"), as_callable(run, "run"), [], 0
    numbers = kept = np.arange(n)
    scores = np.zeros((n, 0))
    settings = jax.tree.map(partial(take, places=_filled(numbers, unit)), settings)
    states = sweep(init, *args, over=[settings, *repetitions], **options)
    for end in _rung_ends(n, steps, factor):
        some_steps, points = _RunSteps(run, end - taken), [settings, *repetitions]
        result = sweep(some_steps, states, *args, over=points, **options)
        if not isinstance(result.runs, tuple) or len(result.runs) != 2:
            kind = type(result.runs).__name__
            raise TypeError(f"run returned a {kind}, expected (state, score)")
        scores = result[1].scores().reshape(length(settings), -1)[: len(numbers)]
        rungs.append(Rung(end, numbers, scores.mean(axis=1)))
        count = 1 if len(numbers) <= factor else -(-len(numbers) // factor)
        kept = np.sort(np.argsort(rungs[-1].scores, kind="stable")[:count])
        places = _filled(kept, unit)
        settings = jax.tree.map(partial(take, places=places), settings)
        kept_runs = _take_runs(result.runs[0], jax.device_put(places))
        states, numbers, taken = Sweep(kept_runs, (settings, *repetitions)), numbers[kept], end
    scores = scores[kept]
    if not np.isfinite(scores).all():
        raise ValueError("in every setting that was left a run diverged, so none is the best")
    spread = float(np.std(scores, ddof=1)) if scores.size > 1 else 0.0
    point = {name: value_at(values, 0) for name, values in settings.items()}
    best = Ranked(point, float(scores.mean()), spread, 0, (int(numbers[0]),))
    return HalvingResult(best, jax.tree.map(partial(take, places=0), states.value), tuple(rungs))


def _rung_ends(n: int, steps: int, factor: int) -> list[int]:
    """The steps, counted from the start, after which each rung of n settings ends."""
    rungs, settings = 1, n
    while settings > factor:
        rungs, settings = rungs + 1, -(-settings // factor)
    steps = validation.integer(steps, "steps", rungs)
    shares = np.cumsum(float(factor) ** np.arange(rungs))
    ends = np.round(steps * shares / shares[-1]).astype(int)
    return np.maximum(ends, np.arange(rungs) + 1).tolist()  # at least one step per rung


@part
class _RunSteps:
    """`run` with a static number of steps."""

    run: Callable[..., PyTree]
    steps: int = static()

    def __call__(self, state: PyTree, *args: PyTree, **point: PyTree) -> PyTree:
        return self.run(state, *args, steps=self.steps, **point)


def _filled(places: np.ndarray, unit: int) -> np.ndarray:
    """The places, and the last of them again, up to a multiple of `unit`."""
    return np.append(places, np.repeat(places[-1:], -len(places) % unit))


def _product(axes: Sequence[dict[str, PyTree]]) -> dict[str, PyTree]:
    """The product of some axes as one axis."""
    lengths = [len(jax.tree.leaves(axis)[0]) for axis in axes]
    places = np.indices(lengths).reshape(len(axes), -1)
    return {
        name: jax.tree.map(partial(take, places=at), values)
        for at, axis in zip(places, axes, strict=True)
        for name, values in axis.items()
    }


@jax.jit
def _take_runs(runs: PyTree, places: jax.Array) -> PyTree:
    """The results of some settings; what all settings share stays shared."""
    return jax.tree.map(lambda x: x if x.shape[0] == 1 else take(x, places), runs)
