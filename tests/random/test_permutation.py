"""The keyed bijection: a permutation for every size, and random by statistical tests."""

from functools import cache
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import jaxsgd
from jaxsgd.random.permutation import networks, permute_each, permute_epoch, quotient

LARGEST = 2**31 - 1


# a bijection


STATIC = [1, 2, 3, 7, 64, 1000, 1001]


@pytest.mark.parametrize("size", [*STATIC, 70_001])
def test_static_sizes_are_permuted_and_the_same_key_repeats(size):
    positions = jnp.arange(size)
    rows = jaxsgd.permute(jax.random.key(1), positions, size)
    assert rows.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(rows), np.arange(size))
    np.testing.assert_array_equal(rows, jaxsgd.permute(jax.random.key(1), positions, size))
    if size >= 64:
        assert (rows != jaxsgd.permute(jax.random.key(2), positions, size)).any()
        assert (rows != positions).any()


def test_several_sizes_at_once_are_permuted_as_each_alone():
    """Sizes with the same number of rounds; with more, those of the smallest size are taken."""
    key, epoch, positions = jax.random.key(1), jnp.uint32(3), np.arange(1001)
    for sizes in (np.arange(1, 128), np.array([128, 300, 997, 1000, 1001])):
        several = networks(sizes)
        several = several._replace(**{n: getattr(several, n)[:, None] for n in ("size", "a", "b")})
        inside = np.minimum(positions, sizes[:, None] - 1)
        each = jax.jit(
            lambda x, several=several: permute_each(key, epoch, x, several, np.uint32(0))
        )
        for size, row in zip(sizes, np.asarray(each(inside)), strict=True):
            np.testing.assert_array_equal(np.sort(row[:size]), np.arange(size), err_msg=str(size))
            if size in STATIC:
                alone = permute_epoch(key, epoch, jnp.arange(size), int(size))
                np.testing.assert_array_equal(row[:size], alone)
    assert networks(np.array([70_000, 1000])).rounds == 8
    salted = [
        permute_each(key, epoch, jnp.arange(1000), networks(1000), np.uint32(s)) for s in (0, 1)
    ]
    assert (salted[0] != salted[1]).any()


def test_networks_hold_their_sizes_and_have_an_even_side():
    sizes = np.concatenate(
        [np.arange(1, 5000), 2 ** np.arange(13, 31), [10**6, 10**6 + 3, LARGEST]]
    )
    size, a, b, _, excess = networks(sizes)
    area = a.astype(np.int64) * b
    assert (area >= size).all()
    assert (area - size).max() == excess
    assert max(a.max(), b.max()) <= 2**16
    assert not (a & b & 1).any()
    for exact in (1000, 60_000, 10**6):
        assert networks(exact).excess == 0


def test_the_largest_size_stays_distinct_and_in_range():
    positions = np.append(np.linspace(0, LARGEST - 1, 5000, dtype=np.int64), np.arange(1, 1000))
    rows = jaxsgd.permute(jax.random.key(1), positions, LARGEST)
    assert len(np.unique(rows)) == len(positions)
    assert rows.min() >= 0
    assert rows.max() < LARGEST
    assert scipy.stats.kstest(np.asarray(rows) / LARGEST, "uniform").pvalue > 1e-3


# arguments


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64])
def test_positions_of_any_integer_dtype_and_shape(dtype):
    limits = np.iinfo(np.int32 if dtype == np.int64 else dtype)
    positions = np.array([[limits.min, 0, 1], [5, 63, limits.max]], dtype)
    whole = np.asarray(jaxsgd.permute(jax.random.key(1), np.arange(64), 64))
    inside = (positions >= 0) & (positions < 64)
    expected = np.where(inside, whole[np.where(inside, positions, 0)], -1)
    for size in (64, np.int64(64)):
        rows = jaxsgd.permute(jax.random.key(1), positions, size)
        assert rows.dtype == jnp.int32
        np.testing.assert_array_equal(rows, expected)


def test_shapes_from_scalar_to_empty():
    key = jax.random.key(1)
    assert jaxsgd.permute(key, 3, 64).shape == ()
    assert jaxsgd.permute(key, jnp.zeros((2, 0), int), 64).shape == (2, 0)
    assert jaxsgd.permute(key, [[1, 2, 3], [4, 5, 6]], 64).shape == (2, 3)


def test_positions_outside_give_minus_one():
    positions = np.array([[-(2**31), -1, 0], [63, 64, LARGEST]], np.int32)
    outside = np.asarray(jaxsgd.permute(jax.random.key(1), positions, 64)) == -1
    assert outside.tolist() == [[True, True, False], [False, True, True]]
    assert int(jaxsgd.permute(jax.random.key(1), LARGEST, LARGEST)) == -1


def test_positions_beyond_32_bits_do_not_wrap_around():
    far = [[2**32 + 1, 2**40, 2**31]]
    for positions in (far, np.array(far), np.array(far, np.uint64), [-(2**32)]):
        assert (np.asarray(jaxsgd.permute(jax.random.key(1), positions, 64)) == -1).all()
        assert (np.asarray(jaxsgd.permute(jax.random.key(1), positions, LARGEST)) == -1).all()
    with jax.enable_x64(True):
        wide = jnp.array(far)
        assert (np.asarray(jaxsgd.permute(jax.random.key(1), wide, 64)) == -1).all()


@pytest.mark.parametrize("size", [2**31, 0, -1])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match=f"size is {size}, expected 1 to 2147483647"):
        jaxsgd.permute(jax.random.key(1), jnp.arange(3), size)


@pytest.mark.parametrize("size", [1.5, True, "3", None])
def test_a_size_that_is_not_an_integer_is_refused(size):
    with pytest.raises(TypeError, match="size"):
        jaxsgd.permute(jax.random.key(1), jnp.arange(3), size)


@pytest.mark.parametrize("size", [jnp.array(3), np.array(3), np.array([3, 4]), jnp.array(3.0)])
def test_a_size_that_is_an_array_is_refused(size):
    with pytest.raises(
        TypeError, match=r"size: expected a Python int, got an array of .*int\(size"
    ):
        jaxsgd.permute(jax.random.key(1), jnp.arange(3), size)
    with pytest.raises(TypeError, match="size: expected a Python int"):
        jax.jit(jaxsgd.permute)(jax.random.key(1), jnp.arange(3), size)


@pytest.mark.parametrize("positions", [1.0, jnp.arange(3.0), np.array([True])])
def test_positions_that_are_not_integers_are_refused(positions):
    with pytest.raises(
        TypeError, match=r"positions: expected .* integers, got one of (float|bool)"
    ):
        jaxsgd.permute(jax.random.key(1), positions, 3)


def test_keys_of_every_kind():
    positions = jnp.arange(64)
    typed = jaxsgd.permute(jax.random.key(7), positions, 64)
    np.testing.assert_array_equal(jaxsgd.permute(jax.random.PRNGKey(7), positions, 64), typed)
    rbg = [jaxsgd.permute(jax.random.key(s, impl="rbg"), positions, 64) for s in (7, 8)]
    for rows in rbg:
        np.testing.assert_array_equal(np.sort(rows), positions)
    assert (rbg[0] != rbg[1]).any()
    for key in (7, jax.random.split(jax.random.key(0), 2), jnp.zeros(2)):
        with pytest.raises(TypeError, match=r"key is .*expected one key"):
            jaxsgd.permute(key, positions, 64)


# statistics: fixed keys, bounds from the distribution of what is counted

KEYS = 5000
MANY = [(1000, "keys"), (1000, "epochs"), (997, "keys"), (997, "epochs")]


def shuffles(keys, epochs, size):
    """All rows of one permutation for each key and epoch."""
    keys = jnp.broadcast_to(keys, epochs.shape)
    shuffle = jax.vmap(permute_epoch, (0, 0, None, None))
    return np.asarray(shuffle(keys, epochs.astype(jnp.uint32), jnp.arange(size), size))


@cache
def many(size, source):
    """Permutations of neighbouring keys, or of neighbouring epochs of one key: int32[KEYS, size].

    1,000 factors into two sides, 997 does not: its network walks.
    """
    numbers = jnp.arange(KEYS)
    if source == "keys":
        return shuffles(jax.vmap(jax.random.key)(numbers), 0 * numbers, size)
    return shuffles(jax.random.key(11), numbers, size)


def test_the_public_permutation_is_that_of_epoch_zero():
    for seed in (0, 7):
        rows = jaxsgd.permute(jax.random.key(seed), jnp.arange(1000), 1000)
        np.testing.assert_array_equal(rows, many(1000, "keys")[seed])


def assert_standard_normal(z):
    assert abs(z) < 4, z


def assert_chi_square(counts, expected, freedom, scale=1.0):
    statistic = scale * np.sum((counts - expected) ** 2 / expected)
    assert scipy.stats.chi2.sf(statistic, freedom) > 1e-3, statistic


@cache
def related_keys():
    """Keys that differ little, where a weak hash of their words would show."""
    seeds = jnp.arange(200 * factorial(5), dtype=jnp.uint32)
    wrap = jax.vmap(jax.random.wrap_key_data)
    return {
        "neighbouring seeds": wrap(jnp.stack([0 * seeds, seeds], 1)),
        "neighbouring first words": wrap(jnp.stack([seeds, 0 * seeds], 1)),
        "equal words": wrap(jnp.stack([seeds, seeds], 1)),
        "high bits": wrap(jnp.stack([seeds << 16, seeds << 17], 1)),
        "split": jax.random.split(jax.random.key(0), len(seeds)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4, 5])
def test_every_permutation_of_a_few_rows_is_equally_likely(size):
    none = jnp.zeros(200 * factorial(5), int)
    drawn = {name: shuffles(keys, none, size) for name, keys in related_keys().items()}
    drawn["epochs"] = shuffles(jax.random.key(1), jnp.arange(len(none)), size)
    for name, rows in drawn.items():
        code = rows @ size ** np.arange(size)
        _, counts = np.unique(code, return_counts=True)
        assert len(counts) == factorial(size), name
        assert scipy.stats.chisquare(counts).pvalue > 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize(("size", "source"), MANY)
def test_fixed_points(size, source):
    count = (many(size, source) == np.arange(size)).sum(1)
    assert_standard_normal((count.mean() - 1) * np.sqrt(KEYS))
    # the fourth central moment is 4 for n >= 4, as of a Poisson variable
    assert_standard_normal((np.mean((count - 1) ** 2) - 1) * np.sqrt(KEYS / 3))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "source"), MANY)
def test_inversions(size, source):
    rows = many(size, source)[:400].astype(np.int16)
    later = np.triu(np.ones((size, size), bool), 1)
    count = np.array([np.count_nonzero((r[:, None] > r) & later) for r in rows])
    variance = size * (size - 1) * (2 * size + 5) / 72
    z = (count - size * (size - 1) / 4) / np.sqrt(variance)
    assert_standard_normal(z.mean() * np.sqrt(len(z)))
    assert_standard_normal((np.mean(z**2) - 1) * np.sqrt(len(z) / 2))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "source"), MANY)
def test_each_row_is_equally_likely_at_each_position(size, source):
    bins = 20
    of_position = np.arange(size) * bins // size
    cell = many(size, source).astype(np.int64) * bins + of_position
    counts = np.bincount(cell.ravel(), minlength=size * bins).reshape(size, bins)
    expected = KEYS * np.bincount(of_position) / size
    # the covariance of a permutation's table is n / (n - 1) times that of independent draws
    assert_chi_square(counts, expected, (size - 1) * (bins - 1), (size - 1) / size)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "source"), MANY)
def test_adjacent_rows_keep_no_distance(size, source):
    step = np.diff(many(size, source), axis=1)
    counts = np.bincount(step.ravel() % size, minlength=size)
    assert counts[0] == 0
    assert_chi_square(counts[1:], KEYS, size - 2, (size - 2) / (size - 1))
    successions = (step == 1).sum(1)
    mean = (size - 1) / size
    variance = (size - 2) / size + mean - mean**2
    assert_standard_normal((successions.mean() - mean) * np.sqrt(KEYS / variance))


@pytest.mark.slow
@pytest.mark.parametrize(("size", "source"), MANY)
def test_neighbouring_keys_and_epochs_are_unrelated(size, source):
    rows = many(size, source)
    for lag in (1, 2):
        first, second = rows[:-lag], rows[lag:]
        pairs = len(first)
        counts = np.bincount(((second - first) % size).ravel(), minlength=size)
        assert_chi_square(counts, pairs, size - 1, (size - 1) / size)
        centre, variance = (size - 1) / 2, (size**2 - 1) / 12
        correlation = ((first - centre) * (second - centre)).mean(1) / variance
        z = correlation * np.sqrt(size - 1)  # the variance is 1 / (n - 1) exactly
        assert_standard_normal(z.mean() * np.sqrt(pairs))
        assert_standard_normal((np.mean(z**2) - 1) * np.sqrt(pairs / 2))


# what it is for: SGD runs like those of a sorted shuffle

N, D, BATCH, EPOCHS, RATE = 100, 3, 10, 2, 0.15


def squared_error(w, row):
    x, y = row
    return (x @ w - y) ** 2


@pytest.mark.slow
def test_final_losses_are_distributed_as_with_a_sorted_shuffle():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)).astype(np.float32)
    data = jnp.asarray(x), jnp.asarray(x @ [1, 2, 3] + rng.normal(size=N), jnp.float32)
    mean_loss = lambda w, rows: jnp.mean(jax.vmap(squared_error, (None, 0))(w, rows))  # noqa: E731

    @jax.jit
    @jax.vmap
    def ours(key):
        solver = jaxsgd.Solver(squared_error, jaxsgd.Shuffled(BATCH), jaxsgd.SGD(RATE))
        state = solver.init(jnp.zeros(D), data, key=key)
        steps = EPOCHS * solver.sampler_for(data).steps_per_epoch
        return mean_loss(jaxsgd.run(solver, state, data, steps)[0].params, data)

    @jax.jit
    @jax.vmap
    def by_hand(orders):
        def step(w, index):
            rows = jax.tree.map(lambda x: x[index], data)
            return w - RATE * jax.grad(mean_loss)(w, rows), None

        return mean_loss(jax.lax.scan(step, jnp.zeros(D), orders.reshape(-1, BATCH))[0], data)

    keys = jax.random.split(jax.random.key(1), (200, EPOCHS))
    sort = jax.jit(jax.vmap(jax.vmap(lambda key: jax.random.permutation(key, N))))
    expected = by_hand(sort(keys))
    losses = ours(jax.random.split(jax.random.key(2), 200))
    assert scipy.stats.ks_2samp(losses, expected).pvalue > 0.01
    # the same test rejects sampling with replacement
    replaced = by_hand(rng.integers(N, size=(200, EPOCHS, N)))
    assert scipy.stats.ks_2samp(losses, replaced).pvalue < 0.01


def test_quotients_are_those_of_python_integers():
    rng = np.random.default_rng(0)
    side = np.concatenate([2 ** rng.uniform(0, 31, 5000), [1, 2, 3, 2**31 - 1]]).astype(np.int64)
    whole = (rng.uniform(size=side.size) * np.minimum((2**31 - 1) // side, 2**20 - 1)).astype(int)
    for x in (whole * side, whole * side - 1, whole * side + side - 1):  # where it changes
        x = np.clip(x, 0, 2**31 - 1)
        found = quotient(jnp.asarray(x, jnp.uint32), jnp.asarray(side, jnp.uint32))
        np.testing.assert_array_equal(found, x // side)
