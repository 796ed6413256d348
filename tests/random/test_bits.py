"""The hashed words of a step: uniform, and independent across positions, steps and keys."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxsgd.random.bits import multiply_high, randint_below, random_words

COUNT, MANY = 8, 2**13
SOURCES = ["positions", "steps", "far steps", "keys", "first words", "equal words"]
EXTREME = [0, 1, 2, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


@cache
def many(source):
    """Words (uint32[2, MANY, COUNT], upper and lower) whose rows are neighbours of some kind."""
    i = np.arange(MANY, dtype=np.uint32)
    if source == "positions":
        both = jax.jit(random_words, static_argnums=2)(
            jax.random.key(3), jnp.int32(5), MANY * COUNT
        )
        return np.stack(both).reshape(2, MANY, COUNT)
    steps, first, second = 0 * i, 0 * i, 0 * i + 3
    if source == "steps":
        steps = i
    if source == "far steps":  # to the end of 31 bits
        steps = i << 18
    if source in ("first words", "equal words"):
        first = i
    if source in ("keys", "equal words"):
        second = i
    keys = jax.random.wrap_key_data(np.stack([first, second], 1))
    draw = jax.jit(jax.vmap(lambda key, step: random_words(key, step, COUNT)))
    return np.stack(draw(keys, steps.astype(np.int32)))


def assert_chi_square(counts, freedom, expected=None):
    """Neither too far from the expected numbers nor, as of words dealt out in turn, too near."""
    expected = counts.mean() if expected is None else expected
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert 1e-6 < scipy.stats.chi2.sf(statistic, freedom) < 1 - 1e-6, (statistic, freedom)


def joint(first, second, bins):
    return np.bincount((first * bins + second).ravel(), minlength=bins**2)


def neighbours(x):
    """Pairs of words that lie next to each other, in the row and across rows, and a row apart."""
    return [(x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x[:-2], x[2:]), (x[:-1, :-1], x[1:, 1:])]


@pytest.mark.parametrize("source", SOURCES)
def test_words_are_uniform(source):
    drawn = many(source)
    for word in drawn:
        for byte in range(4):
            assert_chi_square(np.bincount((word >> 8 * byte).ravel() & 255, minlength=256), 255)
        by_position = joint(np.arange(COUNT) + 0 * (word >> 28), word >> 28, 16)[: COUNT * 16]
        assert_chi_square(by_position, COUNT * 15)
        bits = (word[..., None] >> np.arange(32, dtype=np.uint32)) & 1
        z = (bits.mean((0, 1)) - 0.5) * 2 * np.sqrt(word.size)
        assert abs(z).max() < 5
    numbers = np.asarray(randint_below(tuple(jnp.asarray(drawn)), 1000))
    assert_chi_square(np.bincount(numbers.ravel(), minlength=1000), 999)


@pytest.mark.parametrize("source", SOURCES)
def test_neighbouring_words_are_independent(source):
    high, low = many(source)
    for pair in [*neighbours(high), *neighbours(low), (high, low)]:
        for shift in (28, 0):  # the upper bits and the lower ones
            coarse = [(word >> shift) & 15 for word in pair]
            assert_chi_square(joint(*coarse, 16), 255)
        signs = [
            ((word.ravel()[:, None] >> np.arange(32, dtype=np.uint32)) & 1) * np.float32(2) - 1
            for word in (pair[0][:3000], pair[1][:3000])
        ]
        z = signs[0].T @ signs[1] / np.sqrt(len(signs[0]))  # each bit with each of the other word
        assert abs(z).max() < 6
        assert abs(np.mean(z**2) - 1) < 6 * np.sqrt(2 / z.size)


@pytest.mark.parametrize("source", ["positions", "steps", "keys"])
def test_upper_words_repeat_as_often_as_random_ones_do(source):
    high, _ = many(source)
    if source == "positions":  # so many that some 128 pairs of whole words are alike
        high, _ = jax.jit(random_words, static_argnums=2)(jax.random.key(3), jnp.int32(5), 2**20)
        high = np.asarray(high)
    pairs = high.size * (high.size - 1) / 2
    repeats = lambda bits: pairs / 2**bits  # noqa: E731
    for bits in (24, 32):  # of the upper 24, and of all of them
        _, counts = np.unique(high >> np.uint32(32 - bits), return_counts=True)
        found = int((counts * (counts - 1) // 2).sum())
        assert scipy.stats.poisson.sf(found - 1, repeats(bits)) > 1e-6, found
        assert scipy.stats.poisson.cdf(found, repeats(bits)) > 1e-6, found


def test_each_argument_changes_the_words_and_a_longer_batch_begins_alike():
    key = jax.random.key(0)
    draw = lambda key, step, count: np.stack(random_words(key, jnp.int32(step), count))  # noqa: E731
    plain = draw(key, 0, 8)
    assert plain.dtype == np.uint32
    np.testing.assert_array_equal(plain, draw(key, 0, 24)[:, :8])
    others = [plain, draw(key, 1, 8), draw(key, -1, 8), draw(jax.random.key(1), 0, 8)]
    others.append(draw(jax.random.wrap_key_data(np.array([1, 0], np.uint32)), 0, 8))
    assert len(np.unique(others)) == np.size(others)


def extreme_and_random():
    rng = np.random.default_rng(0)
    one, other = (x.ravel() for x in np.meshgrid(EXTREME, EXTREME))
    drawn = rng.integers(2**32, size=(2, 2000))
    return np.concatenate([[one, other], drawn], 1).astype(np.uint32)


@pytest.mark.parametrize("bound", [1, 2, 3, 997, 2**16 + 1, 2**31 - 1])
def test_randint_below_is_the_product_of_python_integers(bound):
    high, low = extreme_and_random()
    # where the product passes a whole number, the lower word decides
    edges = [-(-(i << 64) // bound) for i in {0, 1, 2, bound // 2, bound - 1} if i < bound]
    edges = [w for edge in edges for w in (edge - 1, edge) if w >= 0]
    high = np.append(high, [w >> 32 for w in edges]).astype(np.uint32)
    low = np.append(low, [w & (2**32 - 1) for w in edges]).astype(np.uint32)
    found = randint_below((jnp.asarray(high), jnp.asarray(low)), bound)
    assert found.dtype == jnp.int32
    pairs = zip(high.tolist(), low.tolist(), strict=True)
    assert found.tolist() == [((h << 32) + w) * bound >> 64 for h, w in pairs]


def test_multiply_high_is_the_upper_word_of_python_integers():
    x, y = extreme_and_random()
    expected = [a * b >> 32 for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert multiply_high(jnp.asarray(x), jnp.asarray(y)).tolist() == expected
