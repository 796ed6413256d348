"""The laws of samplers, stated once over the table of parts."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import table

SIZES = [(1, 1), (2, 1), (7, 3), (16, 4), (21, 8), (40, 40), (33, 32)]
SOME_SIZES = {"blocks": (7, 40), "dynamic": (7, 21), "sharded": (16, 21, 40)}  # others: slow
COVERED = [
    (name, n, b)
    for name in table.WITHOUT_REPLACEMENT
    for n, b in SIZES
    if n in SOME_SIZES.get(name, (n,))
]


@pytest.mark.parametrize(("name", "n", "b"), COVERED)
def test_an_epoch_covers_each_row_exactly_once(name, n, b):
    sampler = table.WITHOUT_REPLACEMENT[name](b, n)
    steps = jnp.arange(3 * sampler.steps_per_epoch)
    key = jax.random.key(3)
    batches = jax.jit(jax.vmap(sampler.batch, (None, 0)))(key, steps)
    batches = jax.tree.map(np.asarray, batches)
    rows, valid = batches.index.reshape(3, -1), batches.weight.reshape(3, -1) > 0
    for epoch in range(3):
        assert sorted(rows[epoch][valid[epoch]]) == list(range(n))
    # padding repeats a row of its own batch
    for index, weight in zip(batches.index, batches.weight, strict=True):
        assert set(index[weight == 0].tolist()) <= set(index[weight > 0].tolist())
    # a stratified sampler's classes: a rare one has the weight that other steps have not
    steps, counts = sampler.steps_per_epoch, np.array(getattr(sampler, "counts", [n]))
    total = batches.weight.reshape(3, steps, -1).sum((1, 2)) / steps
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    if (counts >= steps).all():
        np.testing.assert_allclose(batches.weight.sum(1), 1, rtol=1e-6)
    if n % sampler.batch_size == 0 and (counts % steps == 0).all():
        least, most = batches.weight.min(), batches.weight.max()
        assert most <= least * (1 + 2e-7 * (len(counts) > 1))  # a quotient for each class
    if name in ("shuffled", "stratified") and n >= 16:
        assert (rows[0] != rows[1]).any()
        assert (rows[1] != rows[2]).any()


@pytest.mark.parametrize("name", table.SAMPLERS)
def test_update_and_batch_agree_and_the_same_key_repeats(name):
    sampler = table.SAMPLERS[name]().for_size(table.N)
    key = jax.random.key(5)
    update, batch = jax.jit(sampler.update), jax.jit(sampler.batch)
    state = sampler.init(jax.random.clone(key))
    for t in range(7):
        drawn, state = update(state)
        drawn = jax.tree.map(np.asarray, drawn)
        chex.assert_trees_all_equal(drawn, jax.tree.map(np.asarray, batch(key, t)))
        chex.assert_shape(drawn, (sampler.batch_length,))
        assert drawn.index.dtype == jnp.int32
        assert drawn.weight.dtype == jnp.float32
        assert drawn.index.min() >= 0
        assert drawn.index.max() < table.N


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "b"),
    [
        *((name, 5, 2) for name in table.RANDOM if name not in ("sharded", "per shard")),
        *((name, 10, 4) for name in ("shuffled", "with replacement", "sharded", "per shard")),
        ("stratified", 10, 4),
        ("sharded", 5, 4),
        ("per shard", 5, 4),
    ],
)
def test_a_rows_expected_weight_is_the_same_at_every_step(name, n, b):
    sampler = table.RANDOM[name](b, n)
    keys = jax.random.split(jax.random.key(0), 20_000)

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def weights(step, key):
        index, weight = sampler.batch(key, step)
        return jnp.zeros(n).at[index].add(weight)

    for step in range(2 * sampler.steps_per_epoch):  # the short last batch of each epoch included
        drawn = np.asarray(weights(step, keys), np.float64)
        error = drawn.std(axis=0) / np.sqrt(len(keys))
        assert (abs(drawn.mean(axis=0) - 1 / n) < 4.5 * error + 1e-7).all(), step
