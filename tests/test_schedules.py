"""Schedules: their closed forms from step 0 on, leaves, slopes, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd import (
    CompoundDecay,
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LinearDecay,
    StepDecay,
    WarmRestarts,
    Warmup,
)
from jaxsgd.core.trees import as_arguments
from tests import table

T = 400
STEPS = np.arange(T)


def clipped(n):
    return np.minimum(STEPS / n, 1)


def compound(initial, decay):
    rates = [initial]
    for t in range(T - 1):
        rates.append(rates[-1] / (1 + decay * t))
    return np.array(rates)


def restarts(initial, final, steps, factor):
    rates, start, length = [], 0, steps
    for t in range(T):
        while t >= start + length - 1e-9:
            start, length = start + length, length * factor
        u = (t - start) / length
        rates.append(final + (initial - final) * (1 + np.cos(np.pi * u)) / 2)
    return np.array(rates)


def warm(rates, steps):
    ramp = rates[0] * (np.arange(steps) + 1) / (steps + 1)
    return np.concatenate([ramp, rates])[:T]


CASES = {
    "linear": (LinearDecay(0.4, 0.1, 150), 0.4 + clipped(150) * (0.1 - 0.4)),
    "inverse": (InverseTimeDecay(0.4, 0.03), 0.4 / (1 + 0.03 * STEPS)),
    "exponential": (ExponentialDecay(0.4, 0.03), 0.4 * np.exp(-0.03 * STEPS)),
    "step": (StepDecay(0.4, 0.5, 30), 0.4 * 0.5 ** (STEPS // 30)),
    "cosine": (CosineDecay(0.4, 0.1, 150), 0.1 + 0.3 * (1 + np.cos(np.pi * clipped(150))) / 2),
    "restarts": (WarmRestarts(0.4, 0.1, 10, 2), restarts(0.4, 0.1, 10, 2)),
    "restarts of one length": (WarmRestarts(0.4, 0.1, 7), restarts(0.4, 0.1, 7, 1)),
    "restarts by halves": (WarmRestarts(0.4, 0.1, 12, 1.5), restarts(0.4, 0.1, 12, 1.5)),
    "warmup": (Warmup(StepDecay(0.4, 0.5, 30), 8), warm(0.4 * 0.5 ** (STEPS // 30), 8)),
    "warmup to a number": (Warmup(0.4, 8), warm(np.full(T, 0.4), 8)),
    "warmup of none": (Warmup(LinearDecay(0.4, 0.1, 9), 0), 0.4 - 0.3 * clipped(9)),
} | {
    f"compound {rho:g}": (CompoundDecay(0.4, rho), compound(0.4, rho))
    for rho in (0.0, 1e-5, 1e-3, 0.05, 0.1, 0.11, 0.4, 3.0)
}


@jax.jit
def rates(schedule):
    return jax.vmap(schedule)(jnp.arange(T, dtype=jnp.int32))


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_from_step_0_on(name):
    schedule, expected = CASES[name]
    ours = rates(schedule)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, expected, rtol=6e-5, atol=1e-30)
    with jax.enable_x64(True):
        wide = rates(schedule)
    assert wide.dtype == jnp.float64
    seen = expected > 1e-25  # beyond it the expansion's 3e-6 of a step have added up
    tolerance = 4e-6 if name.startswith("compound") else 1e-12
    np.testing.assert_allclose(wide[seen], expected[seen], rtol=tolerance)


def test_the_compound_decay_is_exact_in_float32_for_long_runs():
    """log-gamma would lose 7 % at a decay of 1e-5."""
    steps = jnp.array([100, 1_000, 2_500])
    ours = jax.vmap(CompoundDecay(1.0, 1e-5))(steps)
    expected = [np.exp(-np.log1p(1e-5 * np.arange(t)).sum()) for t in steps]
    np.testing.assert_allclose(ours, expected, rtol=3e-5)
    # its sum is finite, where that of 1 / (1 + rho t) is not: it freezes
    assert rates(CompoundDecay(1.0, 0.1)).sum() < 6
    assert rates(InverseTimeDecay(1.0, 0.1)).sum() > 30


def test_constants_are_leaves_to_be_swept_and_differentiated():
    every = {name: schedule for name, (schedule, _) in CASES.items()}
    total = lambda schedules: sum(s(jnp.int32(13)) for s in schedules.values())  # noqa: E731
    slopes = jax.jit(jax.grad(total, allow_int=True))(every)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert leaf.dtype == jax.dtypes.float0 or np.isfinite(leaf), path
    # d a(t) / d rho at rho = 0 is -a sum i
    slope = jax.jit(jax.grad(lambda rho: CompoundDecay(1.0, rho)(50)))(0.0)
    np.testing.assert_allclose(slope, -1225, rtol=1e-5)
    before = rates._cache_size()
    for initial in (0.1, 0.2, 0.3):
        rates(as_arguments(LinearDecay(initial, 0.0, 10)))
    assert rates._cache_size() == before + 1


def test_optaxs_schedules_work_as_they_are_and_coincide():
    steps = jnp.arange(40)
    for ours, theirs in [
        (CosineDecay(0.4, 0.1, 30), optax.cosine_decay_schedule(0.4, 30, alpha=0.25)),
        (LinearDecay(0.4, 0.1, 30), optax.linear_schedule(0.4, 0.1, 30)),
        (StepDecay(0.4, 0.5, 10), optax.exponential_decay(0.4, 10, 0.5, staircase=True)),
    ]:
        np.testing.assert_allclose(jax.vmap(ours)(steps), jax.vmap(theirs)(steps), rtol=2e-6)
    params, data = table.problem()
    final = []
    for rate in (CosineDecay(0.4, 0.1, 30), optax.cosine_decay_schedule(0.4, 30, alpha=0.25)):
        solver = jaxsgd.Solver(table.loss, jaxsgd.Sequential(8), jaxsgd.SGD(rate))
        state = solver.init(params, data, key=jax.random.key(0))
        state, told = jaxsgd.run(solver, state, data, 12, lambda state, info: info.learning_rate)
        final.append((state.params["weight"], told))
    np.testing.assert_allclose(final[0][0], final[1][0], rtol=1e-5)
    np.testing.assert_allclose(final[0][1], final[1][1], rtol=1e-5)
    np.testing.assert_allclose(final[0][1][0], 0.4)  # step 0 is the first


def test_restarts_of_one_length_are_exact_for_long_runs():
    steps = jnp.array([4_999_999, 5_000_000, 15_999_999, 16_000_000])
    np.testing.assert_allclose(
        jax.vmap(WarmRestarts(1.0, 0.0, 1000))(steps), [0.0, 1.0, 0.0, 1.0], atol=1e-4
    )


def test_refusals():
    with pytest.raises(ValueError, match="LinearDecay's initial is -1, expected at least 0"):
        LinearDecay(-1, 0, 10)
    with pytest.raises(ValueError, match="CosineDecay's steps is 0, expected at least 1"):
        CosineDecay(1, 0, 0)
    with pytest.raises(ValueError, match="WarmRestarts's factor is 0.5, expected at least 1"):
        WarmRestarts(1, 0, 10, 0.5)
    with pytest.raises(ValueError, match="InverseTimeDecay's decay is -0.1"):
        InverseTimeDecay(0.1, -0.1)
    with pytest.raises(
        ValueError, match="Warmup's steps is 3000000000, expected a whole number of at most"
    ):
        Warmup(0.1, 3_000_000_000)
    unmapped = jax.tree.map(lambda rate: None, jaxsgd.SGD(0.1))
    with pytest.raises(TypeError, match="learning_rate is None, expected a number"):
        unmapped.update(jnp.ones(2), unmapped.init(jnp.ones(2)))
    plain = jaxsgd.SGD(0.1).init(jnp.ones(2))
    with pytest.raises(ValueError, match="the rule's state counts no steps"):
        jaxsgd.SGD(StepDecay(0.1, 0.5, 3)).update(jnp.ones(2), plain)
    with pytest.raises(TypeError, match="Warmup's schedule is 'cosine'"):
        Warmup("cosine", 3)
    with pytest.raises(
        ValueError, match=r"StepDecay's period has shape \(2,\), expected one number"
    ):
        StepDecay(0.1, 0.5, jnp.array([2, 3]))(4)
