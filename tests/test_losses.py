"""The three forms of a loss and their options, and what they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import jaxsgd
from tests import table

PARAMS, DATA = table.problem()
W = {"bias": jnp.float32(0.3), "weight": jnp.array([0.5, -1.0, 2.0])}
# a short batch: three rows, the last one repeated with weight 0; the weights do not sum to 1
BATCH = jaxsgd.Batch(jnp.array([4, 9, 17, 17]), jnp.array([0.2, 0.5, 0.1, 0.0]))


@jax.jit
def update(gradient, batch, model_state=None, seed=0, params=W, data=DATA):
    state = gradient.init(params, data, jax.random.key(seed), model_state)
    return gradient.update(params, data, batch, state)


def by_hand(batch=BATCH):
    """Loss, gradient and residuals of the least-squares problem in plain NumPy."""
    index, weight = (np.asarray(a) for a in batch)
    x, y = (np.asarray(a, np.float64)[index] for a in DATA)
    residual = x @ np.asarray(W["weight"]) + 0.3 - y
    grads = {"bias": weight @ residual, "weight": x.T @ (weight * residual)}
    return weight @ residual**2 / 2, grads, residual


# the three forms


def test_the_three_forms_give_one_gradient():
    forms = [
        table.loss,
        jaxsgd.RowLoss(table.loss),
        jaxsgd.RowsLoss(table.loss),
        jaxsgd.BatchLoss(table.weighted),
    ]
    loss, grads, _ = by_hand()
    for form in forms:
        estimate, _ = update(jaxsgd.MinibatchGradient(form), BATCH)
        chex.assert_trees_all_close(estimate, jaxsgd.Estimate(loss, grads), rtol=1e-5)


def test_a_row_of_weight_zero_plays_no_part():
    elsewhere = BATCH._replace(index=jnp.array([4, 9, 17, 0]))
    for form in (
        jaxsgd.RowLoss(table.loss),
        jaxsgd.RowsLoss(table.loss),
        jaxsgd.BatchLoss(table.weighted),
    ):
        gradient = jaxsgd.MinibatchGradient(form)
        chex.assert_trees_all_equal(update(gradient, BATCH), update(gradient, elsewhere))


# aux


def with_aux(params, rows):
    residual = table.residual(params, rows)
    wrong = residual > 0  # a bool is averaged as a number
    return residual**2 / 2, {"both": jnp.stack([residual, residual**2], -1), "wrong": wrong}


def test_aux_is_averaged_with_the_weights():
    loss, grads, residual = by_hand()
    weight = np.asarray(BATCH.weight)
    both = weight @ np.stack([residual, residual**2], -1)
    expected = jaxsgd.Estimate(loss, grads, {"both": both, "wrong": weight @ (residual > 0)})
    for form in (jaxsgd.RowLoss, jaxsgd.RowsLoss):
        estimate, _ = update(jaxsgd.MinibatchGradient(form(with_aux, has_aux=True)), BATCH)
        chex.assert_trees_all_close(estimate, expected, rtol=1e-5)
    whole = jaxsgd.BatchLoss(
        lambda p, rows, weight: (p["bias"], {"sum": weight.sum()}), has_aux=True
    )
    estimate, _ = update(jaxsgd.MinibatchGradient(whole), BATCH)
    assert float(estimate.aux["sum"]) == pytest.approx(0.8)  # as returned


def test_aux_of_a_short_last_batch_is_the_mean_over_its_rows():
    loss = jaxsgd.RowLoss(table.with_aux, has_aux=True)
    solver = jaxsgd.Solver(loss, jaxsgd.Sequential(8), jaxsgd.SGD(0.0))
    state = solver.init(W, DATA, key=jax.random.key(0))
    _, info = jaxsgd.run(solver, state, DATA, 3, record=lambda state, info: info)
    x, y = (np.asarray(a) for a in DATA)
    residual = x @ np.asarray(W["weight"]) + 0.3 - y
    means = [residual[i : i + 8].mean() for i in (0, 8, 16)]  # the last has 5 rows
    np.testing.assert_allclose(info.aux["error"], means, rtol=1e-5)
    np.testing.assert_allclose(info.loss[2], np.mean(residual[16:] ** 2) / 2, rtol=1e-5)


# keys


def drawn(params, row, key):
    noise = jax.random.normal(key)
    return params["bias"] * noise, noise


def drawn_rows(params, rows, key):
    noise = jax.random.normal(key, rows[1].shape)
    return params["bias"] * noise, noise


@pytest.mark.parametrize("form", [jaxsgd.RowLoss(drawn, has_aux=True, keyed=True),
                                  jaxsgd.RowsLoss(drawn_rows, has_aux=True, keyed=True)])  # fmt: skip
def test_each_row_has_a_key_of_its_own_and_the_same_key_repeats(form):
    gradient = jaxsgd.MinibatchGradient(form)
    state = gradient.init(W, DATA, jax.random.key(0))
    index = jnp.array([3, 3, 5, 8])  # the same row twice, too

    @jax.jit
    def noises(state):
        """The noise of each row: the aux under a weight on that row alone."""
        batches = jaxsgd.Batch(jnp.broadcast_to(index, (4, 4)), jnp.eye(4))
        estimate, after = jax.vmap(gradient.update, (None, None, 0, None), (0, None))(
            W, DATA, batches, state
        )
        return estimate.aux, after

    first, after = noises(state)
    second, _ = noises(after)
    again, _ = noises(state)
    assert len(np.unique(np.append(first, second))) == 8
    np.testing.assert_array_equal(first, again)


def scaled(params, rows, weight, key):
    return table.weighted(params, rows, weight) * jax.random.uniform(key)


@pytest.mark.parametrize(
    "loss", [jaxsgd.RowLoss(table.noisy, keyed=True), jaxsgd.BatchLoss(scaled, keyed=True)]
)
def test_a_runs_noise_changes_from_step_to_step_and_with_the_key_alone(loss):
    solver = jaxsgd.Solver(loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.0))
    losses = [
        np.asarray(
            jaxsgd.run(solver, solver.init(W, DATA, key=jax.random.key(seed)), DATA, 4)[1].loss
        )
        for seed in (0, 0, 1)
    ]
    assert len(np.unique(losses[0])) == 4  # the same rows and parameters: the noise alone
    np.testing.assert_array_equal(losses[0], losses[1])
    assert not set(losses[0]) & set(losses[2])


def test_value_has_the_noise_of_the_update():
    gradient = jaxsgd.MinibatchGradient(jaxsgd.RowLoss(table.noisy, keyed=True))
    state = gradient.init(W, DATA, jax.random.key(0))
    estimate, after = update(gradient, BATCH)
    value = jax.jit(gradient.value)
    assert float(value(W, DATA, BATCH, state)) == pytest.approx(float(estimate.loss), rel=1e-6)
    assert float(value(W, DATA, BATCH, after)) != pytest.approx(float(estimate.loss), rel=1e-6)


# model states


def test_a_carry_of_rows_is_averaged_with_the_weights():
    def fn(params, row, model_state):
        return table.loss(params, row), {"mean": 0.9 * model_state["mean"] + 0.1 * row[1]}

    gradient = jaxsgd.MinibatchGradient(jaxsgd.RowLoss(fn, has_model_state=True))
    y = np.asarray(DATA[1])[np.asarray(BATCH.index)]
    for weight in ([0.25, 0.5, 0.25, 0.0], [0.2, 0.5, 0.1, 0.0]):
        _, state = update(
            gradient, BATCH._replace(weight=jnp.array(weight)), {"mean": jnp.float32(2.0)}
        )
        change = np.asarray(weight) @ (0.1 * (y - 2.0))  # weights of any sum leave the scale alone
        np.testing.assert_allclose(state.model_state["mean"], 2.0 + change, rtol=1e-5)


def rows_mean(params, rows, model_state):
    return table.loss(params, rows), 0.9 * model_state + 0.1 * jnp.mean(rows[1])


def batch_mean(params, rows, weight, model_state):
    return table.weighted(params, rows, weight), 0.9 * model_state + 0.1 * weight @ rows[1]


def row_mean(params, row, model_state):
    return table.loss(params, row), 0.9 * model_state + 0.1 * row[1]


@pytest.mark.parametrize(
    ("loss", "b"),  # RowsLoss is not told the weights: its batches are whole here
    [(jaxsgd.RowLoss(row_mean, has_model_state=True), 8), (jaxsgd.RowsLoss(rows_mean, has_model_state=True), 10),
     (jaxsgd.BatchLoss(batch_mean, has_model_state=True), 8)],
)  # fmt: skip
def test_a_run_keeps_a_running_mean_in_its_state(loss, b):
    solver = jaxsgd.Solver(loss, jaxsgd.Sequential(b), jaxsgd.SGD(0.1))
    state = solver.init(PARAMS, DATA, key=jax.random.key(0), model_state=5.0)
    assert float(state.model_state) == 5.0
    plain = jaxsgd.Solver(table.loss, jaxsgd.Sequential(b), jaxsgd.SGD(0.1))
    expected, _ = jaxsgd.run(plain, plain.init(PARAMS, DATA, key=jax.random.key(0)), DATA, 6)
    after, means = jaxsgd.run(solver, state, DATA, 6, record=lambda state, info: state.model_state)
    y, mean, path = np.asarray(DATA[1]), 5.0, []
    for step in range(6):
        start = step % -(-len(y) // b) * b
        mean = 0.9 * mean + 0.1 * y[start : start + b].mean()
        path.append(mean)
    np.testing.assert_allclose(means, path, rtol=1e-5)
    np.testing.assert_array_equal(after.model_state, means[-1])
    chex.assert_trees_all_close(after.params, expected.params, rtol=1e-5)


@pytest.mark.parametrize("form", [jaxsgd.RowLoss, jaxsgd.RowsLoss, jaxsgd.BatchLoss])
def test_the_options_lengthen_arguments_and_result_in_one_order(form):
    def fn(params, rows, *rest):
        *weight, key, model_state = rest
        assert len(weight) == (form is jaxsgd.BatchLoss)
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        assert key.shape == ()
        each = table.loss(params, rows)
        return (weight[0] @ each if weight else each), {"aux": 2 * each}, model_state + jnp.ones(2)

    gradient = jaxsgd.MinibatchGradient(form(fn, has_aux=True, keyed=True, has_model_state=True))
    batch = BATCH._replace(weight=jnp.array([0.25, 0.5, 0.25, 0.0]))
    estimate, state = update(gradient, batch, jnp.zeros(2))
    chex.assert_trees_all_close(tuple(estimate)[:2], by_hand(batch)[:2], rtol=1e-5)
    np.testing.assert_allclose(state.model_state, [1, 1], rtol=1e-6)
    chex.assert_shape(estimate.aux["aux"], (4,) if form is jaxsgd.BatchLoss else ())


def test_a_carry_keeps_its_dtype():
    loss = jaxsgd.BatchLoss(
        lambda p, rows, weight, model_state: (
            p["bias"],
            (model_state[0] + 1.0, model_state[1] + 1),
        ),
        has_model_state=True,
    )
    _, state = update(
        jaxsgd.MinibatchGradient(loss),
        BATCH,
        (jnp.zeros((), jnp.bfloat16), jnp.zeros((), jnp.int32)),
    )
    assert [x.dtype for x in state.model_state] == [jnp.bfloat16, jnp.int32]
    assert [float(x) for x in state.model_state] == [1, 1]


def test_a_missing_and_an_unwanted_carry_are_refused():
    with_state = jaxsgd.Solver(
        jaxsgd.RowsLoss(rows_mean, has_model_state=True), jaxsgd.FullBatch(), jaxsgd.SGD(0.1)
    )
    with pytest.raises(ValueError, match=r"the loss has a model state, expected model_state="):
        with_state.init(PARAMS, DATA, key=jax.random.key(0))
    plain = jaxsgd.Solver(table.loss, jaxsgd.FullBatch(), jaxsgd.SGD(0.1))
    with pytest.raises(ValueError, match=r"model_state was given, but the loss has none"):
        plain.init(PARAMS, DATA, key=jax.random.key(0), model_state=1.0)


def test_an_integer_carry_of_rows_is_refused():
    loss = jaxsgd.RowLoss(
        lambda p, row, model_state: (p["bias"], model_state + 1), has_model_state=True
    )
    with pytest.raises(
        TypeError, match=r"averaged over the rows, but holds int32.*RowsLoss or BatchLoss"
    ):
        update(jaxsgd.MinibatchGradient(loss), BATCH, jnp.zeros((), jnp.int32))


# callables


@pytest.mark.parametrize("form", [jaxsgd.RowLoss, jaxsgd.RowsLoss, jaxsgd.BatchLoss])
def test_what_is_no_function_is_refused(form):
    name = rf"{form.__name__}'s fn"
    with pytest.raises(
        TypeError, match=name + r" is a functools\.partial.*jax\.tree_util\.Partial"
    ):
        form(functools.partial(table.loss, PARAMS))
    with pytest.raises(TypeError, match=name + r" is 3 of type int, expected a function"):
        form(3)
    with pytest.raises(TypeError, match=name + r".* is 'mean', which is no array.*static"):
        form(Partial(table.loss, "mean"))
    with pytest.raises(TypeError, match=name + r".* is <.*, which is no array.*static"):
        form(Partial(table.loss, jnp.tanh))


@jaxsgd.part
class Weighted:
    """A loss with an array that is not trained and a static choice."""

    scale: jax.Array
    power: int = jaxsgd.static(default=2)

    def __call__(self, params, row):
        return self.scale * table.residual(params, row) ** self.power


def test_a_callable_pytree_keeps_its_arrays_as_leaves():
    assert jax.tree.leaves(jaxsgd.RowLoss(table.loss)) == []
    forms = [
        jaxsgd.RowLoss(Weighted(jnp.float32(0.25))),
        jaxsgd.RowLoss(
            Partial(lambda scale, p, row: scale * table.residual(p, row) ** 2, jnp.float32(0.25))
        ),
    ]
    loss, grads, _ = by_hand()
    for form in forms:
        assert [float(x) for x in jax.tree.leaves(form)] == [0.25]
        value, slope = jax.value_and_grad(
            lambda form: update(jaxsgd.MinibatchGradient(form), BATCH)[0].loss
        )(form)
        np.testing.assert_allclose(value, loss / 2, rtol=1e-5)
        np.testing.assert_allclose(jax.tree.leaves(slope), [2 * loss], rtol=1e-5)
        estimate, _ = update(jaxsgd.MinibatchGradient(form), BATCH)
        chex.assert_trees_all_close(estimate.grads, jax.tree.map(lambda g: g / 2, grads), rtol=1e-5)


# results

FORMS = r"RowLoss\(fn\(params, row\).*RowsLoss\(fn\(params, rows\).*BatchLoss\(fn\(params, rows, weight\)"


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (lambda p, row: row[0], r"returned an array of shape \(3,\) for one row, expected a scalar.*" + FORMS),
        (jaxsgd.RowLoss(lambda p, row: row[1][None]), r"shape \(1,\) for one row, expected a scalar.*" + FORMS),
        (jaxsgd.RowsLoss(lambda p, rows: p["bias"]), r"shape \(\) as loss of 4 rows, expected one a row.*" + FORMS),
        (jaxsgd.RowsLoss(lambda p, rows: rows[0]), r"shape \(4, 3\) as loss of 4 rows.*" + FORMS),
        (jaxsgd.RowsLoss(lambda p, rows: (rows[1], 1.0), has_aux=True), r"shape \(\) as aux of 4 rows.*" + FORMS),
        (jaxsgd.BatchLoss(lambda p, rows, weight: weight), r"shape \(4,\), expected a scalar.*" + FORMS),
    ],
)  # fmt: skip
def test_a_loss_of_the_wrong_shape_is_refused_and_told_the_forms(loss, told):
    with pytest.raises(TypeError, match=told):
        update(jaxsgd.MinibatchGradient(loss), BATCH)


@pytest.mark.parametrize(
    ("form", "arguments"), [(jaxsgd.RowLoss, 2), (jaxsgd.RowsLoss, 2), (jaxsgd.BatchLoss, 3)]
)
def test_results_that_do_not_fit_the_options_are_refused(form, arguments):
    def returning(result):
        return {
            2: lambda p, rows: result,
            3: lambda p, rows, x: result,
            4: lambda p, rows, x, y: result,
        }

    cases = [
        ((1.0, 2.0), {}, r"returned a tuple, expected a number; for aux give has_aux=True"),
        ({"loss": 1.0}, {}, r"returned a dict, expected a number"),
        (1.0, {"has_aux": True}, r"returned float, expected the tuple \(loss, aux\)"),
        (
            1.0,
            {"has_model_state": True},
            r"returned float, expected the tuple \(loss, model_state\)",
        ),
        ((1.0, 2.0, 3.0), {"has_aux": True}, r"expected the tuple \(loss, aux\)"),
        (
            (1.0, 2.0),
            {"has_aux": True, "has_model_state": True},
            r"expected the tuple \(loss, aux, model_state\)",
        ),
    ]
    for result, options, told in cases:
        with_state = options.get("has_model_state", False)
        loss = form(returning(result)[arguments + with_state], **options)
        with pytest.raises(TypeError, match=told):
            update(jaxsgd.MinibatchGradient(loss), BATCH, 0.0 if with_state else None)


# the losses are Optax's


def test_optaxs_losses_are_the_textbooks_and_their_kinks_are_as_stated():
    z, y = jnp.array([-2.0, -0.5, 0.0, 0.3, 3.0]), jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
    np.testing.assert_allclose(optax.squared_error(z, y), (z - y) ** 2, rtol=1e-6)
    np.testing.assert_allclose(optax.l2_loss(z, y), (z - y) ** 2 / 2, rtol=1e-6)
    far = abs(z - y) > 1
    huber = jnp.where(far, abs(z - y) - 0.5, (z - y) ** 2 / 2)
    np.testing.assert_allclose(optax.huber_loss(z, y), huber, rtol=1e-6)
    logistic = jnp.log1p(jnp.exp(-y * z))
    np.testing.assert_allclose(
        optax.sigmoid_binary_cross_entropy(z, (y + 1) / 2), logistic, rtol=1e-5
    )
    np.testing.assert_allclose(optax.hinge_loss(z, y), np.maximum(0, 1 - y * z))
    slope = jax.grad(optax.hinge_loss)  # below the hinge, at it, above it
    assert [float(slope(x, t)) for t in (1.0, -1.0) for x in (0.5 * t, 1.0 * t, 2.0 * t)] == [
        -1.0, -0.5, 0.0, 1.0, 0.5, 0.0
    ]  # fmt: skip
