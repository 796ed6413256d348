"""Clipping row by row: the textbook's loop over rows, whatever the loss; its noise; its memory."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd.gradients import clipped
from tests import table

D = table.D
squared = lambda output, y: jnp.sum(optax.l2_loss(output, y))  # noqa: E731
MODELS = {
    "linear": jaxsgd.models.Linear(D),
    "linear of 3": jaxsgd.models.Linear(D, 3),
    "mlp": jaxsgd.models.MLP((D, 5, 4, 3), initialise="he"),
}
MAX_NORM = 2.0


def rows_of(model, n=12):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, D))
    y = 3 * rng.normal(size=(n, 3)[: 2 - (getattr(model, "outputs", 3) is None)])
    noise = jax.random.key(3)
    params = model.init(jax.random.key(1))
    leaves, tree = jax.tree.flatten(params)
    leaves = [
        x + 0.3 * jax.random.normal(jax.random.fold_in(noise, i), x.shape)
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, leaves), (jnp.asarray(x), jnp.asarray(y))


def batches(n):
    """One of each kind of weights, drawn from n rows, of 5 slots each."""
    key = jax.random.key(4)
    return {
        "whole": jaxsgd.Shuffled(5, size=n).batch(key, 0),
        "short": jaxsgd.Shuffled(5, size=n).batch(key, n // 5),
        "importance": jaxsgd.ImportanceSampled(np.arange(1.0, n + 1), 5).batch(key, 1),
        "poisson": jaxsgd.Poisson(0.2, capacity=5, size=n).batch(key, 2),
    }


@jax.jit
def update(gradient, params, data, batch, state):
    return gradient.update(params, data, batch, state)[0]


def by_rows(loss, params, data, batch, max_norm, scales=None):
    """What the docstring says, in float64, a row at a time: value, grads, how many are clipped."""
    total, grads, clipped = 0.0, jax.tree.map(lambda x: np.zeros(x.shape), params), 0
    rows = jax.tree.map(lambda x: x[batch.index], data)
    each = jax.vmap(jax.value_and_grad(loss), (None, 0) if scales is None else (None, 0, 0))
    values, slopes = jax.jit(each)(params, rows, *([] if scales is None else [scales]))
    slopes = jax.tree.map(lambda x: np.asarray(x, np.float64), slopes)
    for slot, weight in enumerate(np.asarray(batch.weight)):
        g = jax.tree.map(lambda x, slot=slot: x[slot], slopes)
        factor = min(1.0, max_norm / np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(g))))
        clipped += weight != 0 and factor < 1
        total += weight * float(values[slot])
        grads = jax.tree.map(lambda t, x, f=factor * weight: t + f * x, grads, g)
    return total, grads, clipped


@pytest.mark.parametrize("name", MODELS)
def test_it_is_a_loop_over_rows_and_a_model_loss_its_plain_function(name):
    model = MODELS[name]
    with jax.enable_x64(True):
        params, data = rows_of(model)
        # float64 parameters, as float32 ones are differentiated in float32
        params = jax.tree.map(lambda x: x.astype(float), params)
        model_loss = jaxsgd.models.ModelLoss(model, squared)
        plain = lambda params, row: model_loss(params, row)  # noqa: E731
        each = jax.jit(jax.vmap(jax.grad(plain), (None, 0)))(params, data)
        max_norm = float(jnp.median(jax.vmap(optax.tree.norm)(each)))
        made = [jaxsgd.PerExampleClipped(f, max_norm) for f in (model_loss, plain)]
        count = []
        for kind, batch in batches(12).items():
            total, grads, clipped = by_rows(plain, params, data, batch, max_norm)
            count.append((clipped, int(jnp.sum(batch.weight != 0))))
            for gradient in made:
                state = gradient.init(params, data, jax.random.key(0))
                found = update(gradient, params, data, batch, state)
                np.testing.assert_allclose(found.loss, total, rtol=1e-12, err_msg=kind)
                chex.assert_trees_all_close(found.grads, grads, rtol=1e-10, atol=1e-13)
        assert any(0 < clipped < valid for clipped, valid in count)


def keyed(params, row, key):
    scale = 1 + jax.random.normal(key)
    return table.loss(params, row) * scale, {"scale": scale}


def test_a_keyed_loss_has_one_key_for_a_slot_and_its_aux_is_weighed():
    """The norm, the gradient and the loss of a row are of the same draw."""
    params, data = table.problem()
    gradient = jaxsgd.PerExampleClipped(jaxsgd.RowLoss(keyed, keyed=True, has_aux=True), MAX_NORM)
    state = gradient.init(params, data, jax.random.key(5))
    state = state._replace(step=jnp.int32(3))
    of_step = jax.random.fold_in(jax.random.fold_in(jax.random.clone(state.key), 3), 0)
    keys = jax.random.split(of_step, 5)
    scales = np.asarray(jax.vmap(lambda key: 1 + jax.random.normal(key))(keys), np.float64)
    fn = lambda params, row, scale: table.loss(params, row) * scale  # noqa: E731
    for kind, batch in batches(table.N).items():
        total, grads, clipped = by_rows(fn, params, data, batch, MAX_NORM, scales)
        assert clipped or kind == "short"
        found = update(gradient, params, data, batch, state)
        np.testing.assert_allclose(found.loss, total, rtol=1e-5)
        np.testing.assert_allclose(found.aux["scale"], scales @ batch.weight, rtol=1e-5)
        chex.assert_trees_all_close(found.grads, grads, rtol=1e-5, atol=1e-6)
    # the value is that of the same numbers, nothing clipped
    value = gradient.value(params, data, batch, state)
    np.testing.assert_allclose(value, found.loss, rtol=1e-6)


def test_a_keyed_loss_uses_no_key_twice():
    params, data = table.problem()
    gradient = jaxsgd.PerExampleClipped(jaxsgd.RowLoss(table.noisy, keyed=True), MAX_NORM)
    solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
    jaxsgd.run(solver, solver.init(params, data, key=jax.random.key(0)), data, 2)


@pytest.mark.parametrize("name", ["plain", "model"])
def test_slots_of_weight_0_play_no_part_whatever_their_rows(name):
    model_loss = jaxsgd.models.ModelLoss(jaxsgd.models.Linear(D), squared)
    loss = table.loss if name == "plain" else model_loss
    params, (x, y) = table.problem()
    spoiled = x.at[7].set(jnp.nan), y.at[8].set(jnp.inf)
    gradient = jaxsgd.PerExampleClipped(loss, MAX_NORM)
    state = gradient.init(params, spoiled, jax.random.key(0))
    index, weight = jnp.array([7, 2, 8, 5]), jnp.array([0.0, 0.25, 0.0, 0.5])
    found = update(gradient, params, spoiled, jaxsgd.Batch(index, weight), state)
    batch = jaxsgd.Batch(index[1::2], weight[1::2])
    expected = update(gradient, params, (x, y), batch, state)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    # rows that were gathered elsewhere
    solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(4), jaxsgd.SGD(1.0))
    start = solver.init(params, spoiled, key=jax.random.key(0))
    rows = jax.tree.map(lambda a: a[index], spoiled)
    after, info = solver.step_on(start, rows, weight)
    np.testing.assert_allclose(info.loss, expected.loss, rtol=1e-6)
    moved = jax.tree.map(jnp.subtract, start.params, after.params)
    chex.assert_trees_all_close(moved, expected.grads, rtol=1e-5)
    # an empty batch, whose rows are all spoiled
    empty = jaxsgd.Batch(jnp.array([7, 8, 7]), jnp.zeros(3))
    found = update(gradient, params, spoiled, empty, state)
    zeros = jax.tree.map(jnp.zeros_like, params)
    chex.assert_trees_all_equal((found.loss, found.grads), (0.0, zeros))
    assert float(gradient.value(params, spoiled, empty, state)) == 0
    noisy = jaxsgd.PerExampleClipped(loss, MAX_NORM, noise=0.5, row_scale=0.1)
    own = noisy.init(params, spoiled, jax.random.key(0))
    of_step = lambda t: noisy.update(params, spoiled, empty, own._replace(step=t))[0].grads  # noqa: E731
    noise = jax.jit(jax.vmap(of_step))
    drawn = jnp.concatenate(
        [x.reshape(4000, -1) for x in jax.tree.leaves(noise(jnp.arange(4000)))], 1
    )
    np.testing.assert_allclose(drawn.std(0), 0.1, rtol=5 / np.sqrt(8000))


def test_a_row_whose_gradient_is_0_is_not_divided_by_it():
    gradient = jaxsgd.PerExampleClipped(lambda theta, y: (theta - y) ** 2 / 2, 1.0)
    batch = jaxsgd.Batch(jnp.arange(2), jnp.full(2, 0.5))
    state = gradient.init(jnp.zeros(()), jnp.zeros(2), jax.random.key(0))
    found = update(gradient, jnp.zeros(()), jnp.array([0.0, 3.0]), batch, state)
    np.testing.assert_allclose(found.grads, -0.5)


def test_noise_has_its_scale_and_is_drawn_anew_for_each_leaf_and_step():
    """The standard deviation is noise max_norm row_scale, whatever the batch's weights."""
    params, data = table.problem()
    noise, scale = 1.5, 0.02
    expected = noise * MAX_NORM * scale
    quiet = jaxsgd.PerExampleClipped(table.loss, MAX_NORM)
    noisy = jaxsgd.PerExampleClipped(table.loss, MAX_NORM, noise, scale)
    start = noisy.init(params, data, jax.random.key(6))
    index = jnp.arange(5, dtype=jnp.int32)
    steps = jnp.arange(8000)

    @jax.jit
    def noise_of(weight, key, steps):
        batch = jaxsgd.Batch(index, weight)
        plain = quiet.update(params, data, batch, quiet.init(params, data, key))[0].grads
        states = lambda t: start._replace(key=key, step=t)  # noqa: E731
        of_step = lambda t: noisy.update(params, data, batch, states(t))[0].grads  # noqa: E731
        drawn = jax.vmap(of_step)(steps)
        drawn = jax.tree.map(jnp.subtract, drawn, plain)
        return jnp.concatenate([x.reshape(len(steps), -1) for x in jax.tree.leaves(drawn)], 1)

    of_batch = partial(noise_of, key=start.key, steps=steps)
    drawn = np.asarray(of_batch(jnp.full(5, 0.2)), np.float64)
    assert drawn.shape == (8000, D + 1)
    assert (abs(drawn.mean(0)) < 5 * expected / np.sqrt(8000)).all()
    np.testing.assert_allclose(drawn.std(0), expected, rtol=5 / np.sqrt(2 * 8000))
    correlation = np.corrcoef(drawn.T) - np.eye(D + 1)  # leaves and their entries
    assert abs(correlation).max() < 5 / np.sqrt(8000)
    along = (drawn[1:] * drawn[:-1]).mean(0) / expected**2  # steps
    assert abs(along).max() < 5 / np.sqrt(8000)
    # the same for the same key, in a batch of other weights
    np.testing.assert_allclose(of_batch(jnp.full(5, 2.0)), drawn, atol=1e-5)
    other = noise_of(jnp.full(5, 0.2), jax.random.key(7), steps)
    assert not np.isin(np.asarray(other)[:100].round(6), drawn[:100].round(6)).any()
    # a step counts on, the key stays
    _, after = noisy.update(params, data, jaxsgd.Batch(index, jnp.ones(5)), start)
    assert int(after.step) == 1
    chex.assert_trees_all_equal(jax.random.key_data(after.key), jax.random.key_data(start.key))


def test_numbers_are_leaves_and_parts_of_a_batch_add_up():
    params, data = table.problem()
    batch = jaxsgd.Shuffled(8, size=table.N).batch(jax.random.key(0), 0)
    norms = jnp.array([0.5, 2.0, 1e6])

    def grads(norm, chunks=None):
        gradient = jaxsgd.PerExampleClipped(table.loss, norm)
        gradient = gradient if chunks is None else jaxsgd.Accumulated(gradient, chunks)
        state = gradient.init(params, data, jax.random.key(0))
        return gradient.update(params, data, batch, state)[0].grads

    swept = jax.jit(jax.vmap(grads))(norms)
    in_parts = jax.jit(jax.vmap(partial(grads, chunks=3)))(norms)
    chex.assert_trees_all_close(swept, in_parts, rtol=1e-5)
    plain = jaxsgd.MinibatchGradient(table.loss)
    whole = plain.update(params, data, batch, jaxsgd.GradientState())[0].grads
    last = jax.tree.map(lambda x: x[-1], swept)
    chex.assert_trees_all_close(last, whole, rtol=1e-5)
    sizes = jax.vmap(optax.tree.norm)(swept)
    assert sizes[0] <= 0.5 * (1 + 1e-6)  # weights sum to 1
    assert sizes[0] < sizes[1] < sizes[2]


def memory(loss, params):
    """Temporary bytes of a step on 256 rows of 784 entries."""
    data = jax.ShapeDtypeStruct((1000, 784), jnp.float32), jax.ShapeDtypeStruct((1000,), jnp.int32)
    gradient = jaxsgd.PerExampleClipped(loss, 1.0)
    solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(256), jaxsgd.SGD(0.1))
    state = jax.eval_shape(partial(solver.init, key=jax.random.key(0)), params, data)
    compiled = jax.jit(solver.step).lower(state, data).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_no_gradient_of_all_rows_is_in_memory(monkeypatch):
    """256 of 100,000 parameters would be 100 MB."""
    model = jaxsgd.models.MLP((784, 128, 10))
    model_loss = jaxsgd.models.ModelLoss(model, optax.softmax_cross_entropy_with_integer_labels)
    params = model.init(jax.random.key(0))
    plain = lambda params, row: model_loss(params, row)  # noqa: E731
    # weights used at 4 places of a row: no outer product, whose squares the compiler could sum
    shared = lambda w, row: jnp.sum(jnp.tanh(row[0].reshape(4, 196) @ w))  # noqa: E731
    weight = jnp.ones((196, 512))
    for loss, start in ((model_loss, params), (plain, params), (shared, weight)):
        assert memory(loss, start) < 20 * 2**20
    monkeypatch.setattr(clipped, "CHUNK", 2**32)  # the witness sees them
    assert memory(lambda w, row: shared(w, row), weight) > 80 * 2**20


@pytest.mark.parametrize("name", ["plain", "model"])
def test_bfloat16_parameters_are_clipped_in_float32(name):
    loss = (
        table.loss if name == "plain" else jaxsgd.models.ModelLoss(jaxsgd.models.Linear(D), squared)
    )
    gradient = jaxsgd.PerExampleClipped(loss, MAX_NORM, noise=0.1, row_scale=0.125)
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        params, data = table.problem()
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(dtype), params)  # noqa: B023
        solver = jaxsgd.Solver(gradient, jaxsgd.Shuffled(8), jaxsgd.SGD(0.1))
        state = solver.init(params, data, key=jax.random.key(0))
        batch = solver.sampler_for(data).batch(state.sampler.key, 0)
        estimate = update(gradient, params, data, batch, state.gradient)
        assert {x.dtype for x in jax.tree.leaves(estimate)} == {jnp.dtype(jnp.float32)}
        found[dtype] = estimate
        after, _ = jax.eval_shape(lambda s: jaxsgd.run(solver, s, data, 2), state)  # noqa: B023
        assert {x.dtype for x in jax.tree.leaves(after.params)} == {jnp.dtype(dtype)}
    chex.assert_trees_all_close(found[jnp.bfloat16], found[jnp.float32], rtol=0.02, atol=0.02)


def test_refused_arguments():
    told = "PerExampleClipped's loss is .*expected a function of"
    for loss in (
        jaxsgd.BatchLoss(table.weighted),
        jaxsgd.RowsLoss(table.residual),
        jaxsgd.RowLoss(lambda params, row, model_state: (0.0, model_state), has_model_state=True),
    ):
        with pytest.raises(TypeError, match=told):
            jaxsgd.PerExampleClipped(loss, 1.0)
    for options, told in [
        ({"max_norm": 0.0}, "max_norm is 0.0"),
        ({"max_norm": -1.0}, "max_norm is -1.0"),
        ({"max_norm": jnp.nan}, "max_norm is nan"),
        ({"max_norm": 1.0, "noise": -1.0, "row_scale": 1.0}, "noise is -1.0"),
        ({"max_norm": 1.0, "noise": 1.0}, "has noise but no row_scale"),
        ({"max_norm": 1.0, "noise": jnp.float32(0)}, "has noise but no row_scale"),
        ({"max_norm": 1.0, "noise": 1.0, "row_scale": -1.0}, "row_scale is -1.0"),
    ]:
        with pytest.raises(ValueError, match=f"PerExampleClipped('s)? {told}"):
            jaxsgd.PerExampleClipped(table.loss, **options)
    with pytest.raises(TypeError, match="ModelLoss's model is"):
        jaxsgd.models.ModelLoss(lambda params, x: x, squared)
    params, data = table.problem()
    gradient = jaxsgd.PerExampleClipped(table.loss, 1.0)
    with pytest.raises(ValueError, match="model_state was given"):
        gradient.init(params, data, jax.random.key(0), jnp.zeros(()))
    noisy = jaxsgd.PerExampleClipped(table.loss, 1.0, 1.0, 1.0)
    solver = jaxsgd.Solver(noisy, jaxsgd.Shuffled(16), jaxsgd.SGD(0.1))
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    rows = jaxsgd.MeshRows(data, mesh)
    with pytest.raises(TypeError, match="expected one that is a sum over rows on MeshRows"):
        jaxsgd.run(solver, solver.init(params, rows, key=jax.random.key(0)), rows, 1)
