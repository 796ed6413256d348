"""What is particular to each sampler; the laws they share are in test_sampler_laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.random.permutation import permute_epoch
from tests import table

LARGEST = 2**31 - 1
BATCHED = [jaxsgd.Sequential, jaxsgd.Shuffled, jaxsgd.WithReplacement]


@partial(jax.jit, static_argnums=0)
def draw(make, key, steps):
    """The batches of many steps: `make` returns a sampler, so that its sizes are static."""
    return jax.vmap(make().batch, (None, 0))(key, steps)


def batches(sampler, steps, seed=0):
    index, weight = draw(lambda: sampler, jax.random.key(seed), jnp.asarray(steps, jnp.int32))
    return np.asarray(index), np.asarray(weight)


# Sequential


def test_sequential_takes_the_rows_in_order_and_weighs_a_short_last_batch_right():
    sampler = jaxsgd.Sequential(3, size=7)
    assert sampler.steps_per_epoch == 3
    index, weight = batches(sampler, range(5))
    assert index.tolist() == [[0, 1, 2], [3, 4, 5], [6, 6, 6], [0, 1, 2], [3, 4, 5]]
    third = [np.float32(1 / 3)] * 3
    assert weight.tolist() == [third, third, [1, 0, 0], third, third]
    again, _ = batches(sampler, range(5), seed=1)
    assert (again == index).all()


def test_padding_repeats_the_last_valid_row():
    index, weight = batches(jaxsgd.Sequential(4, size=6), [1])
    assert index.tolist() == [[4, 5, 5, 5]]
    assert weight.tolist() == [[0.5, 0.5, 0, 0]]


def test_drop_last_leaves_out_the_short_batch():
    sampler = jaxsgd.Sequential(3, size=7, drop_last=True)
    assert sampler.steps_per_epoch == 2
    index, weight = batches(sampler, range(4))
    assert index.tolist() == [[0, 1, 2], [3, 4, 5]] * 2
    assert (weight == np.float32(1 / 3)).all()


def test_drop_last_leaves_out_other_rows_in_each_shuffled_epoch():
    sampler = jaxsgd.Shuffled(3, size=7, drop_last=True)
    assert sampler.steps_per_epoch == 2
    index, weight = batches(sampler, range(80))
    assert (weight == np.float32(1 / 3)).all()
    epochs = index.reshape(40, 6)
    left_out = [set(range(7)) - set(epoch.tolist()) for epoch in epochs]
    assert all(len(rows) == 1 for rows in left_out)
    assert set().union(*left_out) == set(range(7))


# Shuffled


def test_shuffled_takes_its_epochs_permutation_in_order():
    sampler = jaxsgd.Shuffled(4, size=10)
    index, weight = batches(sampler, range(6), seed=3)
    for epoch in range(2):
        rows = permute_epoch(jax.random.key(3), jnp.uint32(epoch), jnp.arange(10), 10)
        drawn = index[3 * epoch : 3 * epoch + 3].ravel()
        np.testing.assert_array_equal(drawn[:10], rows)
        assert (drawn[10:] == rows[-1]).all()
    assert weight[[2, 5]].tolist() == [[0.5, 0.5, 0, 0]] * 2


# FullBatch


def test_full_batch_takes_every_row_in_every_step():
    sampler = jaxsgd.FullBatch(size=5)
    assert (sampler.batch_size, sampler.steps_per_epoch) == (5, 1)
    index, weight = batches(sampler, [0, 1, LARGEST])
    assert index.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert (weight == np.float32(0.2)).all()


# WithReplacement


def test_with_replacement_may_draw_more_rows_than_there_are():
    sampler = jaxsgd.WithReplacement(50, size=3)
    assert sampler.steps_per_epoch == 1
    index, weight = batches(sampler, range(200))
    assert index.shape == (200, 50)
    assert (weight == np.float32(1 / 50)).all()
    counts = np.bincount(index.ravel(), minlength=3)
    assert len(counts) == 3
    error = np.sqrt(index.size * (1 / 3) * (2 / 3))
    assert (abs(counts - index.size / 3) < 4 * error).all()
    assert len(np.unique(index, axis=0)) == 200


# sizes


@pytest.mark.parametrize(
    ("n", "b", "steps"),
    [(100_000, 1_000, 100), (10_000, 100, 100), (1_000, 100, 10), (7, 7, 1), (7, 1, 7), (1, 1, 1)],
)
@pytest.mark.parametrize("sampler", BATCHED)
def test_steps_per_epoch(sampler, n, b, steps):
    assert sampler(b, size=n).steps_per_epoch == steps
    if sampler is not jaxsgd.WithReplacement:
        assert sampler(b, size=n, drop_last=True).steps_per_epoch == steps
    if b > 1:
        assert sampler(b, size=n + 1).steps_per_epoch == steps + 1


def test_steps_per_epoch_of_a_short_last_batch_dropped():
    for sampler in (jaxsgd.Sequential, jaxsgd.Shuffled):
        assert sampler(64, size=1000).steps_per_epoch == 16
        assert sampler(64, size=1000, drop_last=True).steps_per_epoch == 15


@pytest.mark.parametrize(
    "sampler",
    [
        jaxsgd.FullBatch(size=1),
        jaxsgd.Sequential(1, size=1),
        jaxsgd.Sequential(1, size=1, drop_last=True),
        jaxsgd.Shuffled(1, size=1),
        jaxsgd.WithReplacement(1, size=1),
    ],
)
def test_a_single_row(sampler):
    assert sampler.steps_per_epoch == 1
    index, weight = batches(sampler, [0, 1, LARGEST])
    assert index.tolist() == [[0]] * 3
    assert weight.tolist() == [[1]] * 3


@pytest.mark.parametrize(
    "sampler",
    [
        jaxsgd.Sequential(4, size=10),
        jaxsgd.Shuffled(4, size=10),
        jaxsgd.Shuffled(4, size=10, drop_last=True),
        jaxsgd.WithReplacement(4, size=10),
    ],
)
def test_large_step_numbers_stay_in_range(sampler):
    epoch = LARGEST // sampler.steps_per_epoch - 1  # the last whole one
    steps = epoch * sampler.steps_per_epoch + np.arange(sampler.steps_per_epoch)
    index, weight = batches(sampler, np.append(steps, LARGEST))
    assert index.min() >= 0
    assert index.max() < 10
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-6)
    rows = index[:-1][weight[:-1] > 0]
    if isinstance(sampler, jaxsgd.Sequential):
        assert rows.tolist() == list(range(10))
        assert index[-1].tolist() == [4, 5, 6, 7]  # 2^31 - 1 = 1 mod 3
    if isinstance(sampler, jaxsgd.Shuffled):
        assert len(np.unique(rows)) == len(rows) == (8 if sampler.drop_last else 10)


@pytest.mark.parametrize("sampler", BATCHED)
def test_the_largest_size_stays_in_range_to_its_short_last_batch(sampler):
    b = 1000
    sampler = sampler(b, size=LARGEST)
    last = sampler.steps_per_epoch - 1
    valid = LARGEST - last * b
    assert 0 < valid < b
    index, weight = batches(sampler, [last - 1, last])
    assert index.min() >= 0
    assert index.max() < LARGEST
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-4)
    if isinstance(sampler, jaxsgd.WithReplacement):
        assert index.max() > 0.99 * LARGEST
        return
    assert (weight[1] > 0).sum() == valid
    assert (index[1, valid:] == index[1, valid - 1]).all()
    rows = index[weight > 0]
    assert len(np.unique(rows)) == b + valid
    if isinstance(sampler, jaxsgd.Sequential):
        np.testing.assert_array_equal(rows, np.arange(LARGEST - valid - b, LARGEST))


@pytest.mark.parametrize("sampler", [jaxsgd.Sequential, jaxsgd.Shuffled])
def test_sizes_from_numpy_and_x64_mode_change_no_dtype_but_the_weights(sampler):
    with jax.enable_x64(True):
        index, weight = batches(sampler(np.int64(4), size=np.int64(10)), [0, 2])
    assert index.dtype == np.int32
    assert weight.dtype == np.float64
    np.testing.assert_allclose(weight.sum(1), 1, rtol=1e-15)


# refusals


@pytest.mark.parametrize("sampler", BATCHED)
@pytest.mark.parametrize("size", [None, 10])
def test_a_batch_size_that_is_none_is_refused_by_name(sampler, size):
    name = sampler.__name__
    for value in (0, -1, 2**31):
        with pytest.raises(ValueError, match=rf"{name}'s batch_size.* is {value}, expected 1 to"):
            sampler(value, size=size)
    for value in (2.0, True, "8", None, np.array([3, 4])):
        with pytest.raises(TypeError, match=rf"{name}'s batch_size.* is .*expected a"):
            sampler(value, size=size)


@pytest.mark.parametrize("sampler", [jaxsgd.Sequential, jaxsgd.Shuffled])
def test_a_batch_size_above_the_rows_is_refused(sampler):
    told = rf"{sampler.__name__}'s batch_size of data with 10 rows is 11, expected 1 to 10"
    with pytest.raises(ValueError, match=told):
        sampler(11, size=10)
    params, data = table.problem(n=10)
    solver = jaxsgd.Solver(table.loss, sampler(11), jaxsgd.SGD(0.1))
    with pytest.raises(ValueError, match=told):
        solver.init(params, data, key=jax.random.key(0))


@pytest.mark.parametrize("sampler", [jaxsgd.FullBatch, *(partial(s, 1) for s in BATCHED)])
def test_a_size_that_is_none_is_refused_by_name(sampler):
    for value in (0, -1, 2**31):
        with pytest.raises(ValueError, match=f"'s size is {value}, expected 1 to 2147483647"):
            sampler(size=value)
    for value in (2.0, True, "8"):
        with pytest.raises(TypeError, match=f"'s size is {value!r}"):
            sampler(size=value)


@pytest.mark.parametrize("sampler", [jaxsgd.FullBatch(), *(s(4) for s in BATCHED)])
def test_a_sampler_alone_needs_a_size(sampler):
    told = r"has no size; give size=, the number of rows, or let a Solver do so"
    for use in (lambda: sampler.batch(jax.random.key(0), 0), lambda: sampler.steps_per_epoch):
        with pytest.raises(ValueError, match=told):
            use()


@pytest.mark.parametrize("sampler", [jaxsgd.FullBatch(size=5), *(s(2, size=5) for s in BATCHED)])
def test_a_size_other_than_the_datas_is_refused(sampler):
    params, data = table.problem(n=4)
    solver = jaxsgd.Solver(table.loss, sampler, jaxsgd.SGD(0.1))
    with pytest.raises(ValueError, match=r"is for 5 rows, but the data have 4 rows"):
        solver.init(params, data, key=jax.random.key(0))


@pytest.mark.parametrize("sampler", [jaxsgd.Shuffled(2, size=5), jaxsgd.WithReplacement(2, size=5)])
def test_what_is_no_key_is_refused(sampler):
    for key in (0, jax.random.split(jax.random.key(0), 2)):
        with pytest.raises(TypeError, match="key is"):
            sampler.init(key)
        with pytest.raises(TypeError, match="key is"):
            sampler.batch(key, 0)


# DynamicBatch and Sharded


@pytest.mark.parametrize(
    "sampler",
    [
        lambda b, n: jaxsgd.Shuffled(b, size=n),
        lambda b, n: jaxsgd.Sequential(b, size=n, drop_last=True),
        lambda b, n: jaxsgd.WithReplacement(b, size=n),
    ],
)
def test_a_dynamic_batch_is_the_batch_of_its_size(sampler):
    key, n, most = jax.random.key(1), 20, 8

    @jax.jit
    def batches(size):
        dynamic = jaxsgd.DynamicBatch(sampler(most, n), size)
        return jax.vmap(dynamic.batch, (None, 0))(key, jnp.arange(9)), dynamic.steps_per_epoch

    for size in (1, 5, 8):
        found, steps = batches(size)
        own = sampler(size, n)
        assert int(steps) == own.steps_per_epoch
        assert jaxsgd.DynamicBatch(sampler(most, n), size).steps_per_epoch == own.steps_per_epoch
        expected = jax.vmap(own.batch, (None, 0))(key, jnp.arange(9))
        np.testing.assert_array_equal(found.weight[:, :size], expected.weight)
        assert (found.weight[:, size:] == 0).all()
        if not isinstance(own, jaxsgd.WithReplacement):  # which draws its slots from one key
            np.testing.assert_array_equal(found.index[:, :size], expected.index)
        for index, weight in zip(*found, strict=True):
            assert set(index[weight == 0].tolist()) <= set(index[weight > 0].tolist())
    for size in (0, 9):  # a traced size that there are no slots for is not cut
        assert jnp.isnan(batches(size)[0].weight).all()


def test_dynamic_batches_of_a_fit_and_of_rows_on_the_host():
    x = np.arange(20, dtype=np.float32)
    options = {"key": jax.random.key(0), "epochs": 2, "learning_rate": 0.01, "progress": False}
    ends = [
        jaxsgd.fit(
            lambda w, x: (w - x) ** 2, jnp.zeros(()), data, sampler=sampler, **options
        ).params
        for data, sampler in [
            (x, jaxsgd.Shuffled(5)),
            (x, jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), 5)),
            (jaxsgd.HostRows(x), jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), jnp.int32(5))),
        ]
    ]
    np.testing.assert_allclose(ends[1:], ends[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), 9), ValueError, "is 9, expected 1 to 8"),
        (lambda: jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), np.array([1, 9])), ValueError, "expected 1 to 8"),
        (lambda: jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), 2.0), TypeError, "2.0 of type float"),
        (lambda: jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), jnp.float32(2)), TypeError, "of float32"),
        (lambda: jaxsgd.DynamicBatch(jaxsgd.Sharded(8), 4), TypeError, "expected an EpochSampler"),
        (lambda: jaxsgd.Sharded(8, shards=3), ValueError, "is 8, expected a multiple of its 3 shards"),
        (lambda: jaxsgd.PerShard(jaxsgd.WithReplacement(8), shards=3, size=9), ValueError, "batches of 8 rows, expected a multiple of the 3 shards"),
        (lambda: jaxsgd.PerShard(jaxsgd.WithReplacement(8), size=5), ValueError, "shards are 8, expected at most the 5 rows"),
        (lambda: jaxsgd.PerShard(jaxsgd.FixedBatches(np.zeros((2, 8), int)), shards=2, size=9), TypeError, "FixedBatches cannot be divided"),
        (lambda: jaxsgd.PerShard(jaxsgd.FullBatch(), shards=2, size=9), ValueError, r"of lengths \[4, 5\], expected one length"),
        (lambda: jaxsgd.PerShard(jaxsgd.DynamicBatch(jaxsgd.Shuffled(8), 3), shards=2, size=19), ValueError, "batch_size is 3, expected a multiple of the 2 shards"),
        (lambda: jaxsgd.PerShard(jaxsgd.WithReplacement(8)).steps_per_epoch, ValueError, "has no size"),
        (lambda: jaxsgd.Sharded(8, size=17), ValueError, "find a shard empty at some step"),
        (lambda: jaxsgd.Sharded(8, shards=8).steps_per_epoch, ValueError, "has no size"),
    ],
)  # fmt: skip
def test_wrong_dynamic_and_sharded_batches_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_share_of_each_shard():
    """The issue's own numbers: T steps, n_s div T rows a step, one more in the first n_s mod T."""
    sampler = jaxsgd.Sharded(16, shards=8, size=43)  # three shards of 6, five of 5
    assert sampler.steps_per_epoch == 3
    batches = jax.vmap(sampler.batch, (None, 0))(jax.random.key(0), jnp.arange(3))
    taken = (np.asarray(batches.weight) > 0).reshape(3, 8, 2).sum(-1)
    assert taken.tolist() == [[2] * 8, [2] * 8, [2] * 3 + [1] * 5]
    weight = np.asarray(batches.weight).reshape(3, 8, 2)
    np.testing.assert_allclose(weight.sum(-1), [[6 / 43] * 3 + [5 / 43] * 5] * 3, rtol=1e-6)
    shard = np.asarray(batches.index).reshape(3, 8, 2)
    first = np.array([0, 6, 12, 18, 23, 28, 33, 38])[None, :, None]
    assert (shard >= first).all()
    assert (shard - first < np.array([6] * 3 + [5] * 5)[:, None]).all()


def test_drop_last_is_a_bool():
    with pytest.raises(TypeError, match="Shuffled's drop_last: expected True or False, got 'no'"):
        jaxsgd.Shuffled(2, drop_last="no")
