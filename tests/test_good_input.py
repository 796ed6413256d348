"""Parts that fit together run, whatever the pytrees, shapes, dtypes and sizes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests.table import key_data

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

shapes = st.lists(st.integers(1, 3), max_size=2).map(tuple)
floats = st.sampled_from([jnp.float32, jnp.bfloat16, jnp.float16])
leaves = st.builds(lambda shape, dtype: jnp.full(shape, 0.5, dtype), shapes, floats)
params = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2)
        | st.tuples(inner, st.none())
    ),
    max_leaves=3,
)
dtypes = st.sampled_from([np.float32, np.float16, np.int32, np.uint8, np.bool_])
SAMPLERS = {
    "shuffled": lambda n, size: jaxsgd.Shuffled(size),
    "short batches dropped": lambda n, size: jaxsgd.Shuffled(size, drop_last=True),
    "sequential": lambda n, size: jaxsgd.Sequential(size),
    "with replacement": lambda n, size: jaxsgd.WithReplacement(size),
    "full batch": lambda n, size: jaxsgd.FullBatch(),
    "importance": lambda n, size: jaxsgd.ImportanceSampled(np.arange(1.0, n + 1), size),
    "poisson": lambda n, size: jaxsgd.Poisson(min(0.9, size / n), n),
    "stratified": lambda n, size: jaxsgd.Stratified(np.arange(n) * 2 // n, max(2, size)),
    "dynamic": lambda n, size: jaxsgd.DynamicBatch(jaxsgd.Shuffled(size), max(1, size // 2)),
}
RULES = {
    "sgd": jaxsgd.SGD(0.01),
    "momentum, a schedule": jaxsgd.Momentum(jaxsgd.LinearDecay(0.01, 0.001, steps=5), 0.5),
    "nesterov": jaxsgd.Nesterov(0.01, 0.5),
    "adam": jaxsgd.Adam(0.01),
    "adagrad": jaxsgd.AdaGrad(0.01),
    "rmsprop": jaxsgd.RMSProp(0.01),
    "averaged": jaxsgd.EMA(jaxsgd.SGD(0.01), 0.9),
    "proximal": jaxsgd.Proximal(jaxsgd.SGD(0.01), jaxsgd.L1(1e-3)),
}


def loss(params, row):
    target = sum(jnp.mean(x.astype(jnp.float32)) for x in jax.tree.leaves(row))
    return sum(jnp.mean((p - target) ** 2) for p in jax.tree.leaves(params)).astype(jnp.float32)


@pytest.mark.slow
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    params,
    st.integers(2, 40),
    st.integers(1, 40),
    st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=3),
    st.sampled_from(sorted(SAMPLERS)),
    st.sampled_from(sorted(RULES)),
    st.sampled_from([None, jaxsgd.L2(1e-3)]),
    st.integers(1, 7),
)
def test_what_fits_together_runs(params, n, size, columns, sampler, rule, penalty, steps):
    rng = np.random.default_rng(n)
    data = [rng.integers(0, 2, (n, *shape)).astype(dtype) for shape, dtype in columns]
    sampler = SAMPLERS[sampler](n, min(size, n))
    solver = jaxsgd.Solver(loss, sampler, RULES[rule], penalty)
    state = solver.init(params, data, key=jax.random.key(n))
    after, trace = jaxsgd.run(solver, state, data, steps)
    chex.assert_trees_all_equal_shapes_and_dtypes(key_data(after), key_data(state))
    chex.assert_shape(trace.loss, (steps,))
    chex.assert_tree_all_finite((after.params, trace.loss))
    assert int(after.step) == steps
    again, _ = jaxsgd.run(solver, state, data, steps)
    chex.assert_trees_all_equal(key_data(again), key_data(after))
