"""Samplers whose batches have rows, weights or sizes of their own."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxsgd
from jaxsgd.random.bits import random_words
from jaxsgd.samplers import importance, stratified
from tests import table
from tests.test_laws import no_compilation

KEY = jax.random.key(7)


def drawn(sampler, steps, key=KEY):
    """Rows and weights of the steps, in an array each."""
    batches = jax.jit(jax.vmap(sampler.batch, (None, 0)))(key, jnp.asarray(steps, jnp.int32))
    return np.asarray(batches.index), np.asarray(batches.weight)


def keys_of(count):
    return jax.random.split(jax.random.key(8), count)


def assert_chi_square(counts, expected):
    assert expected.min() > 5
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert scipy.stats.chi2.sf(statistic, len(counts) - 1) > 1e-6, statistic


def solver(sampler):
    return jaxsgd.Solver(table.loss, sampler, jaxsgd.SGD(0.1))


# rows with probabilities


def shares(state, n):
    """How many of 2**32 words draw each row."""
    last = np.asarray(state.last)
    assert (last[n - 1 :] == 2**32 - 1).all()
    return np.diff(last[:n].astype(np.int64), prepend=-1)


def uneven(n):
    return np.random.default_rng(n).lognormal(0, 4, n)


@pytest.mark.slow
@pytest.mark.parametrize(
    "probabilities",
    [
        *(uneven(n) for n in (1, 2, 5, 1000)),
        np.append(np.full(999, 1e-30), 1e30),
        np.ones(3_000_000),
        uneven(3_000_000),
    ],
    ids="1 2 5 1000 1e60 uniform large".split(),
)
def test_the_words_are_shared_out_whole(probabilities):
    n = len(probabilities)
    sampler = jaxsgd.ImportanceSampled(probabilities, 512)
    state = sampler.init(KEY)
    share = shares(state, n)
    assert share.min() >= 1
    assert share.sum() == 2**32
    assert float(state.scale) == pytest.approx(2**32 / n, rel=1e-6)
    exact = probabilities / probabilities.sum()
    spread = 1e-4 + n / 2**31  # of the draws: they go to all rows alike
    wrong = abs(share - 2**32 * exact)
    assert (wrong <= 2**32 * spread * (exact + 1 / n) + 2).all()

    # a word's row, and its share, are those of a search in the whole table
    edges = np.append(state.last[:n][:: n // 1000 + 1], np.uint32([0, 2**32 - 1]))
    random = random_words(KEY, jnp.int32(3), 512)[0]
    word = np.concatenate([random, edges, edges + np.uint32(1)])
    index, found = jax.jit(importance._found)(state.last, word)
    np.testing.assert_array_equal(index, np.searchsorted(state.last[:n], word))
    np.testing.assert_allclose(found, share[np.asarray(index)], rtol=2e-7)

    batch, _ = sampler.update(state._replace(step=jnp.int32(3)))
    np.testing.assert_array_equal(batch.index, index[:512])
    expected = 2**32 / (512 * n * share[np.asarray(batch.index)].astype(float))
    np.testing.assert_allclose(batch.weight, expected, rtol=3e-7)


@pytest.mark.slow
def test_rows_are_drawn_as_often_as_their_probabilities_say():
    probabilities = np.random.default_rng(0).uniform(0.1, 2, 500)
    index, _ = drawn(jaxsgd.ImportanceSampled(probabilities, 1000), range(200))
    expected = index.size * probabilities / probabilities.sum()
    assert_chi_square(np.bincount(index.ravel(), minlength=500), expected)


def test_probabilities_that_are_none_are_refused_or_traced_give_nan():
    for bad, told in [
        ([1.0, 0, 2], "0 for some row"),
        ([0.0, 0, 0], "0 for all rows"),
        ([1.0, -1, 2], "least entry is -1"),
        ([1.0, np.nan, 2], "nan"),
        ([1.0, np.inf, 2], "inf"),
    ]:
        with pytest.raises(ValueError, match=told):
            jaxsgd.ImportanceSampled(np.array(bad), 4)
        batch = jax.jit(lambda p: jaxsgd.ImportanceSampled(p, 4).batch(KEY, 0))(jnp.array(bad))
        assert np.isnan(batch.weight).all(), bad
        assert ((batch.index >= 0) & (batch.index < 3)).all()
    with pytest.raises(TypeError, match="type float"):
        jaxsgd.ImportanceSampled(0.5, 4)
    for far in (1e-300, 1e-30, 1e38, 1e300):  # of any size, and a list
        batch = jaxsgd.ImportanceSampled([far] * 4, 64).batch(KEY, 0)
        np.testing.assert_allclose(batch.weight, 1 / 64, rtol=1e-4)
        assert set(batch.index.tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="batch_size is 0"):
        jaxsgd.ImportanceSampled(np.ones(3), 0)
    params, data = table.problem()
    with pytest.raises(ValueError, match="20 rows"):
        solver(jaxsgd.ImportanceSampled(np.ones(3), 4)).init(params, data, key=KEY)


def test_other_probabilities_compile_nothing_and_are_vmapped():
    params, data = table.problem()

    def losses(probabilities):
        own = solver(jaxsgd.ImportanceSampled(probabilities, 8))
        return np.asarray(jaxsgd.run(own, own.init(params, data, key=KEY), data, 6)[1].loss)

    first = losses(np.ones(table.N))
    with no_compilation():
        assert not np.array_equal(losses(np.arange(1.0, table.N + 1)), first)

    both = jnp.stack([jnp.ones(table.N), jnp.arange(1.0, table.N + 1)])
    batch = jax.jit(lambda sampler: sampler.batch(KEY, 2))
    lanes = [
        jax.vmap(lambda p: batch(jaxsgd.ImportanceSampled(p, 8)))(both),
        jax.vmap(batch)(jaxsgd.ImportanceSampled(both, 8)),
    ]
    lanes = jax.tree.map(np.asarray, lanes)
    for lane, probabilities in enumerate(np.asarray(both)):
        alone = batch(jaxsgd.ImportanceSampled(probabilities, 8))
        for other in lanes:
            chex.assert_trees_all_close(alone, jax.tree.map(lambda x, i=lane: x[i], other))


def test_probabilities_renewed_in_the_middle_of_a_run():
    params, data = table.problem()
    old, new = (jaxsgd.ImportanceSampled(p, 8) for p in (np.ones(table.N), table.PROBABILITIES))
    record = lambda state, info: old.update(state.sampler)[0]  # noqa: E731, of the next step
    state = solver(old).init(params, data, key=KEY)
    state, _ = jaxsgd.run(solver(old), state, data, 3)
    kept, _ = jaxsgd.run(solver(new), state, data, 2, record)
    np.testing.assert_array_equal(kept.sampler.last, state.sampler.last)  # the state's table
    state = state._replace(sampler=new.renewed(state.sampler))
    state, after = jaxsgd.run(solver(new), state, data, 4, record)
    index, weight = drawn(new, range(4, 8), state.sampler.key)
    np.testing.assert_array_equal(after.index, index)
    np.testing.assert_allclose(after.weight, weight, rtol=1e-6)


# classes


def classes(*counts, seed=0, names=None):
    names = np.arange(len(counts)) if names is None else names
    return np.random.default_rng(seed).permutation(np.repeat(names, counts))


STRATA = {  # labels, batch size, proportions
    "rare": (classes(701, 200, 90, 7, 3, names=[-5, 100, 3, 0, 2**30]), 64, None),
    "whole": (classes(60, 30, 10), 10, None),
    "one step": (classes(5, 1, 3), 9, None),
    "one row a step": (classes(9, 4, 2), 1, None),
    "in a lane": (classes(*[1, 2, 3] * 12), 6, None),  # six or so classes in the places of a slot
    "many": (classes(*[1, 4, 7, 2] * 35), 30, None),
    "proportions": (classes(300, 20, 5), 40, (1, 2.5, 1)),
    "many proportions": (classes(*[1, 6, 2] * 30), 25, tuple([1, 0.2, 3, 2, 0.1] * 18)),
    "almost none": (classes(90, 9, 1), 20, (1e-6, 1, 1e-9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATA)
def test_classes_have_their_parts_of_each_batch(name):
    labels, size, proportions = STRATA[name]
    sampler = jaxsgd.Stratified(labels, size, proportions)
    n, steps = len(labels), sampler.steps_per_epoch
    assert steps == -(-n // size)
    index, weight = drawn(sampler, range(3 * steps))
    valid = weight > 0
    assert (index[~valid] == np.repeat(index[:, :1], size, 1)[~valid]).all()
    _, kind, counts = np.unique(labels, return_inverse=True, return_counts=True)
    taken = np.zeros((3 * steps, len(counts)), int)
    np.add.at(taken, (np.nonzero(valid)[0], kind[index[valid]]), 1)

    # places: rows in proportion, or those of the proportions give or take one; the same each epoch
    places = taken.reshape(3, steps, -1).sum(1)
    assert (places == places[0]).all()
    places = places[0]
    assert places.sum() == n
    if proportions is None:
        np.testing.assert_array_equal(places, counts)
    else:
        exact = np.array(proportions) / sum(proportions) * n
        is_large = exact >= 1
        assert (abs(places - exact)[is_large] <= np.ceil((1 - exact)[~is_large].sum()) + 1).all()
        assert (places[~is_large] == 1).all()
    assert (taken >= places // steps).all()
    assert (taken <= -(-places // steps)).all()

    # weights
    is_rare = places < steps
    v = np.where(is_rare, places / steps, taken)[np.arange(3 * steps)[:, None], kind[index]]
    expected = (counts[kind[index]] / n / np.where(v == 0, 1, v))[valid]
    np.testing.assert_allclose(weight[valid], expected, rtol=1e-6)
    if not is_rare.any():
        np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-6)

    # each row as often as any other of its class, give or take one
    for rows, which in zip(index.reshape(3, -1), valid.reshape(3, -1), strict=True):
        times = np.bincount(rows[which], minlength=n)
        least = (places // counts)[kind]
        assert ((times == least) | ((times == least + 1) & (places % counts != 0)[kind])).all()
    epochs = index.reshape(3, -1)
    if n > 10:
        assert (epochs[0] != epochs[1]).any()
        assert (epochs[1] != epochs[2]).any()


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 997, 65536])
def test_the_first_places_of_an_epochs_steps_are_all_of_them(steps):
    place = jax.jit(partial(stratified._first_place, steps=steps))
    turns = jnp.arange(steps, dtype=jnp.int32)
    places = np.asarray(jax.vmap(place, (None, None, 0))(KEY, jnp.int32(2), turns))
    np.testing.assert_array_equal(np.sort(places), turns)


@pytest.mark.parametrize("steps", [13, 100, 357, 997, 1000, 1563, 65536])
def test_the_steps_of_a_rare_class_are_spread_evenly(steps):
    """With the golden ratio there are gaps of three lengths, at most 1.9 of the mean one."""
    place = jax.jit(partial(stratified._first_place, steps=steps))
    places = jax.vmap(place, (None, None, 0))(KEY, jnp.int32(2), jnp.arange(steps))
    turn_of = np.argsort(np.asarray(places))
    for count in range(2, min(steps // 2, 60)):
        for first in (0, steps // 3, steps - count):
            turn = np.sort(turn_of[first : first + count])
            gaps = np.diff(np.append(turn, turn[0] + steps))  # the orbit is a ring
            assert gaps.max() <= 3 * steps / count, (count, gaps)


@pytest.mark.parametrize("steps", [2**25 + 1, 2**26])
def test_first_places_are_those_of_python_integers(steps):
    turns = np.random.default_rng(0).integers(steps, size=5000).astype(np.int32)
    turns = np.append(turns, np.int32([0, 1, 2, steps // 2, steps - 2, steps - 1]))
    place = jax.jit(jax.vmap(partial(stratified._first_place, KEY, jnp.int32(1), steps=steps)))
    places = place(turns).tolist()
    phase, stride = places[-6], (places[-5] - places[-6]) % steps
    assert abs(stride / steps - stratified.GOLDEN_RATIO) < 1e-6
    assert np.gcd(stride, steps) == 1
    assert places == [(int(turn) * stride + phase) % steps for turn in turns]


@pytest.mark.slow
def test_the_phase_is_random_in_keys_and_epochs():
    place = lambda key, epoch: stratified._first_place(key, epoch, jnp.int32(0), 10)  # noqa: E731
    epochs = jax.jit(jax.vmap(place, (None, 0)))(KEY, jnp.arange(10_000))
    keys = jax.jit(jax.vmap(place, (0, None)))(keys_of(10_000), jnp.int32(0))
    for phase in (np.asarray(epochs), np.asarray(keys)):
        assert_chi_square(np.bincount(phase, minlength=10), np.full(10, 1000.0))
        pairs = np.bincount(phase[:-1] * 10 + phase[1:], minlength=100)
        assert_chi_square(pairs, np.full(100, 99.99))


@pytest.mark.slow
def test_no_two_shuffles_of_a_size_are_alike():
    """Those of two classes, of one after the other epoch, and of a class that begins anew."""

    def orders(sampler, parts, step):
        batches = jax.jit(jax.vmap(sampler.batch, (0, None)))(keys_of(20_000), jnp.int32(step))
        index = np.asarray(batches.index)  # one step is an epoch; a class lies in one piece
        codes = [index[:, i : i + 3] - at for i, at in parts]
        assert all((np.sort(code) == np.arange(3)).all() for code in codes)
        return [(code[:, 0] * 2 + (code[:, 1] > code[:, 2])) for code in codes]

    two = jaxsgd.Stratified(np.repeat([0, 1], 3), 6)
    first, second = orders(two, [(0, 0), (3, 3)], 0)
    (later,) = orders(two, [(0, 0)], 1)
    again = jaxsgd.Stratified(np.repeat([0, 1], [3, 9]), 12, (1, 1))
    one, other = orders(again, [(0, 0), (3, 0)], 0)
    for a, b in [(first, second), (first, later), (one, other)]:
        assert_chi_square(np.bincount(a * 6 + b, minlength=36), np.full(36, 20_000 / 36))


def test_arguments_that_make_no_strata_are_refused(monkeypatch):
    labels = np.repeat([0, 1], 5)
    for bad in (labels * 1.0, labels[:, None], labels[:0], np.array(["a", "b"]), 3):
        with pytest.raises(TypeError, match="labels are an array of"):
            jaxsgd.Stratified(bad, 1)
    with pytest.raises(TypeError, match="labels are traced"):
        jax.jit(lambda x: jaxsgd.Stratified(x, 2).batch(KEY, 0))(labels)
    for size in (0, 11):
        with pytest.raises(ValueError, match=f"10 rows is {size}, expected 1 to 10"):
            jaxsgd.Stratified(labels, size)
    for proportions in ((1,), (1, 1, 1), (1, 0), (1, -1), (1, np.nan), (1, np.inf)):
        with pytest.raises(ValueError, match="expected 2 numbers above 0"):
            jaxsgd.Stratified(labels, 2, proportions)
    params, data = table.problem()
    with pytest.raises(ValueError, match="20 rows"):
        solver(jaxsgd.Stratified(labels, 2)).init(params, data, key=KEY)
    monkeypatch.setattr(stratified, "MOST_STEPS", 4)
    with pytest.raises(ValueError, match="steps an epoch of 10 rows"):
        jaxsgd.Stratified(labels, 2)


# each row on its own


@pytest.mark.slow
def test_each_set_of_rows_is_as_likely_as_independent_rows_make_it():
    n, rate, count = 6, 0.35, 40_000
    sampler = jaxsgd.Poisson(rate, capacity=n, size=n)
    sets = lambda batch: jnp.sum(jnp.where(batch.weight > 0, 2**batch.index, 0))  # noqa: E731
    draw = jax.jit(jax.vmap(lambda key, step: sets(sampler.batch(key, step))))
    steps = np.arange(count, dtype=np.int32)
    size = np.bitwise_count(np.arange(2**n))
    of_set = rate**size * (1 - rate) ** (n - size)
    few = np.bitwise_count(np.arange(2**3))
    few = rate**few * (1 - rate) ** (3 - few)
    for keys, step in [(keys_of(count), 0 * steps), (jnp.broadcast_to(KEY, count), steps)]:
        which = np.asarray(draw(keys, step))
        assert_chi_square(np.bincount(which, minlength=2**n), count * of_set)
        # nor does one batch's tell of the next one's
        pairs = (which[:-1] & 7) * 8 + (which[1:] & 7)
        assert_chi_square(
            np.bincount(pairs, minlength=64), (count - 1) * np.outer(few, few).ravel()
        )


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rate"), [(1000, 0.03), (60, 0.9)])
def test_the_number_of_rows_is_binomial_and_rows_are_alike(n, rate):
    count, capacity = 5000, min(n, 64)
    sampler = jaxsgd.Poisson(rate, capacity=capacity, size=n)
    index, weight = drawn(sampler, range(count))
    is_in = weight > 0
    np.testing.assert_allclose(weight[is_in], 1 / (rate * n), rtol=1e-6)
    assert (np.diff(index)[is_in[:, 1:]] > 0).all()
    number = is_in.sum(1)
    expected = count * scipy.stats.binom.pmf(np.arange(n + 1), n, rate)
    kept = np.nonzero(expected > 20)[0]
    clip = lambda x: np.clip(x, kept[0], kept[-1]) - kept[0]  # noqa: E731
    expected = np.bincount(clip(np.arange(n + 1)), weights=expected)
    assert_chi_square(np.bincount(clip(number), minlength=len(expected)), expected)

    member = np.zeros((count, n), bool)
    member[np.nonzero(is_in)[0], index[is_in]] = True
    variance = rate * (1 - rate)
    z = (member.mean(0) - rate) * np.sqrt(count / variance)
    assert abs(z).max() < 5.5
    for lag in (1, 2, n // 2):  # pairs of rows
        both = (member[:, :-lag] - rate) * (member[:, lag:] - rate)
        assert abs(both.sum()) < 5 * np.sqrt(both.size) * variance


def test_a_batch_that_is_too_large_has_the_first_rows_and_is_counted():
    n, rate, few = 50, 0.5, 24
    small, large = (jaxsgd.Poisson(rate, capacity=c, size=n) for c in (few, n))
    run = lambda sampler, state: jax.lax.scan(  # noqa: E731
        lambda state, _: sampler.update(state)[::-1], state, None, 100
    )
    run = jax.jit(run)
    after, (index, weight) = run(small, small.init(KEY))
    whole_after, (whole, true) = run(large, large.init(KEY))
    number = (np.asarray(true) > 0).sum(1)
    is_over = number > few
    assert 20 < is_over.sum() < 80
    assert (number == few).any()
    assert (number == few + 1).any()
    assert int(after.overflows) == is_over.sum()
    assert int(whole_after.overflows) == 0
    assert int(after.step) == 100
    np.testing.assert_array_equal(weight, true[:, :few])
    is_in = np.asarray(weight) > 0
    np.testing.assert_array_equal(index[is_in], whole[:, :few][is_in])
    first = np.repeat(np.asarray(index)[:, :1], few, 1)  # padding repeats a row of the batch
    np.testing.assert_array_equal(index[~is_in], first[~is_in])


def test_an_empty_batch_moves_nothing():
    params, data = table.problem()
    own = solver(jaxsgd.Poisson(1e-9, capacity=3))
    everything = lambda state, info: info  # noqa: E731
    state, info = jaxsgd.run(own, own.init(params, data, key=KEY), data, 5, everything)
    chex.assert_trees_all_equal(state.params, params)
    np.testing.assert_array_equal(info.loss, 0)
    np.testing.assert_array_equal(info.grad_norm, 0)
    assert info.finite.all()
    index, weight = drawn(own.sampler_for(data), range(5))
    np.testing.assert_array_equal(weight, 0)
    np.testing.assert_array_equal(index, 0)


def test_rates_of_one_outside_and_vmapped():
    own = jax.jit(lambda sampler: sampler.batch(KEY, 1))
    batch = lambda rate: own(jaxsgd.Poisson(rate, capacity=20, size=20))  # noqa: E731
    index, weight = batch(1.0)
    np.testing.assert_array_equal(index, np.arange(20))
    np.testing.assert_allclose(weight, 0.05, rtol=1e-6)
    rates = jnp.array([0.2, 1, 0.7, 0, -0.1, 1.001, np.nan, np.inf])
    lanes = jax.jit(jax.vmap(batch))(rates)
    lanes = jax.tree.map(np.asarray, lanes)
    assert np.isnan(lanes.weight[3:]).all()
    assert ((lanes.index >= 0) & (lanes.index < 20)).all()
    other = jax.vmap(own)(jaxsgd.Poisson(rates[:3], capacity=20, size=20))
    for lane, rate in enumerate([0.2, 1.0, 0.7]):
        for lanes_ in (lanes, other):
            alone = batch(rate)
            np.testing.assert_array_equal(lanes_.index[lane], alone.index)
            np.testing.assert_allclose(lanes_.weight[lane], alone.weight, rtol=1e-6)

    assert jaxsgd.Poisson(0.3, 2).steps_per_epoch == 3
    assert jaxsgd.Poisson(1.0, 2).steps_per_epoch == 1
    for rate in (0, 0.0, -0.5, 1.5, np.nan):
        with pytest.raises(ValueError, match=f"rate is {re.escape(str(rate))}, expected"):
            jaxsgd.Poisson(rate, capacity=3)
    for capacity in (0, 21):
        with pytest.raises(ValueError, match=f"20 rows is {capacity}, expected 1 to 20"):
            jaxsgd.Poisson(0.5, capacity=capacity, size=20)


def test_gaps_of_a_small_rate_in_many_rows():
    n, rate = 10**7, 1e-5
    index, weight = drawn(jaxsgd.Poisson(rate, capacity=160, size=n), range(4000))
    number = (weight > 0).sum(1)
    assert abs(number.mean() - n * rate) < 5 * np.sqrt(n * rate / len(number))
    gaps = np.diff(index[:, :40].astype(np.int64), axis=1, prepend=-1).ravel()  # all inside
    assert gaps.min() >= 1
    assert abs(gaps.mean() * rate - 1) < 5 / np.sqrt(len(gaps))
    assert scipy.stats.kstest(gaps, scipy.stats.geom(rate).cdf).pvalue > 1e-6
    rows = index[weight > 0]
    assert scipy.stats.kstest(rows / n, "uniform").pvalue > 1e-6


def test_rows_are_in_order_in_data_of_the_largest_size():
    index, weight = drawn(jaxsgd.Poisson(1e-9, capacity=15, size=2**31 - 1), range(20))
    assert (np.diff(index)[weight[:, 1:] > 0] > 0).all()


# batches given


def test_fixed_batches_keep_their_order_and_begin_again():
    index = np.random.default_rng(0).integers(table.N, size=(5, 4))
    weight = np.random.default_rng(1).uniform(-1, 2, size=(5, 4)).astype(np.float32)
    for sampler, expected in [
        (jaxsgd.FixedBatches(index), np.full((5, 4), 0.25)),
        (jaxsgd.FixedBatches(jnp.asarray(index), weight), weight),
        (jaxsgd.FixedBatches(index.tolist(), weight.tolist()), weight),
    ]:
        rows, given = drawn(sampler, range(12))
        np.testing.assert_array_equal(rows, np.tile(index, (3, 1))[:12])
        np.testing.assert_array_equal(given, np.tile(expected, (3, 1))[:12])
        assert (sampler.batch_size, sampler.steps_per_epoch) == (4, 5)

    ragged = jaxsgd.FixedBatches([range(3), np.array([7]), (5, 5)])
    np.testing.assert_array_equal(ragged.index, [[0, 1, 2], [7, 7, 7], [5, 5, 5]])
    np.testing.assert_allclose(ragged.weight, [[1 / 3] * 3, [1, 0, 0], [0.5, 0.5, 0]], rtol=1e-6)

    params, data = table.problem()
    own = solver(jaxsgd.FixedBatches(index))
    state = own.init(params, data, key=KEY)
    record = lambda state, info: state.params  # noqa: E731
    trace = jaxsgd.run(own, state, data, 3, record)[1]
    for t in range(3):  # as those very steps by hand
        batch = jaxsgd.Batch(jnp.asarray(index[t], jnp.int32), jnp.full(4, 0.25))
        state, _ = own.step_at(state, data, batch)
        now = jax.tree.map(lambda x, t=t: x[t], trace)
        chex.assert_trees_all_close(now, state.params, rtol=1e-5, atol=1e-6)


def test_batches_that_are_none_are_refused():
    fixed = jaxsgd.FixedBatches
    for bad in ([[0.0, 1.0]], np.zeros((2, 3)), np.zeros(3, int), [[True, False]]):
        with pytest.raises(TypeError, match="expected integers of shape"):
            fixed(bad)
    for bad in ([], [[0], []], [[[0]], [[1]]]):
        with pytest.raises(ValueError, match="expected one"):
            fixed(bad)
    for bad in ([[0, -1]], np.array([[2**31]])):
        with pytest.raises(ValueError, match=r"expected them in 0\.\."):
            fixed(bad)
    for weight in (np.ones(2), np.ones((2, 1)), 1.0):
        with pytest.raises(ValueError, match="that of its index"):
            fixed([[0, 1]], weight)
    params, data = table.problem()
    with pytest.raises(ValueError, match=r"rows 0 to 20, expected them in 0\.\.19"):
        solver(fixed([[0, 20]])).init(params, data, key=KEY)
    solver(fixed([[0, 19]])).init(params, data, key=KEY)


@pytest.mark.slow
def test_rows_of_any_residue_are_as_likely_in_large_data():
    """Above 2**24 a float32 tells multiples of 2 only: gaps are blocks and a remainder."""
    sampler = jaxsgd.Poisson(8 / 1e8, capacity=12, size=10**8)
    index = jax.jit(jax.vmap(sampler.batch, (None, 0)))(KEY, jnp.arange(40_000)).index
    for column in (index[:, 0], index[:, 4]):
        counts = np.bincount(np.asarray(column) % 4, minlength=4)
        assert scipy.stats.chisquare(counts).pvalue > 1e-6
