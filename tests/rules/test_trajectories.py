"""Law 10: each rule step for step against a plain NumPy loop, and against Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from tests import table

STEPS, RATE, DECAY = 50, 0.2, 0.1
RNG = np.random.default_rng(3)
ROOT = RNG.normal(size=(4, 4))
HESSIAN = ROOT @ ROOT.T / 4 + np.eye(4) / 4  # a random quadratic, its coordinates coupled
CENTRE = RNG.normal(size=4)


def loss(params, row):
    """A quadratic of four parameters beside logistic regression of three and a bias."""
    x, label = row
    ahead = params["quadratic"] - CENTRE
    output = x @ params["weight"] + params["bias"]
    return ahead @ HESSIAN @ ahead / 2 + optax.sigmoid_binary_cross_entropy(output, label)


def problem(dtype):
    x, y = table.problem()[1]
    params = {"quadratic": jnp.ones(4), "weight": jnp.full(3, 0.1), "bias": jnp.zeros(())}
    to = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)  # noqa: E731
    return to(params), to((x, y > 0.5))


def flat(params):
    return np.concatenate([np.ravel(params[k]) for k in ("quadratic", "weight", "bias")])


def gradient(theta, x, label, weight):
    """By hand, all from the same old parameters."""
    probability = 1 / (1 + np.exp(-(x @ theta[4:7] + theta[7])))
    slope = weight * (probability - label)
    return np.concatenate([HESSIAN @ (theta[:4] - CENTRE), x.T @ slope, [slope.sum()]])


def momentum(g, t, rate, memory, m=0.5):
    memory["v"] = m * memory.get("v", 0) - rate * g
    return memory["v"]


def nesterov(g, t, rate, memory, m=0.5):
    memory["v"] = m * memory.get("v", 0) - rate * g
    return m * memory["v"] - rate * g


def adagrad(g, t, rate, memory):
    memory["s"] = memory.get("s", 0) + g**2
    return -rate * g / (np.sqrt(memory["s"]) + 1e-7)


def rmsprop(g, t, rate, memory, decay=0.8):
    memory["s"] = decay * memory.get("s", 0) + (1 - decay) * g**2
    return -rate * g / (np.sqrt(memory["s"]) + 1e-8)


def adam(g, t, rate, memory, b1=0.8, b2=0.9):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["s"] = b2 * memory.get("s", 0) + (1 - b2) * g**2
    root = np.sqrt(memory["s"] / (1 - b2 ** (t + 1)))
    return -rate * memory["m"] / (1 - b1 ** (t + 1)) / (root + 1e-8)


def sgd(g, t, rate, memory):
    return -rate * g


LOOPS = {f"{f.__name__} schedule": f for f in (sgd, momentum, nesterov, adagrad, rmsprop, adam)}


def path(rule, steps=STEPS, dtype=jnp.float64):
    """The parameters after each step, the batches, and the rates told by `Info`."""
    params, data = problem(dtype)
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), rule)
    state = solver.init(params, data, key=jax.random.key(0))
    sampler = solver.sampler_for(data)
    record = lambda state, info: (  # noqa: E731
        state.params,
        sampler.batch(state.sampler.key, info.step),
        info.learning_rate,
    )
    _, (params, batches, rates) = jaxsgd.run(solver, state, data, steps, record)
    path = np.concatenate(
        [np.reshape(params[k], (steps, -1)) for k in ("quadratic", "weight", "bias")], axis=1
    )
    return path, batches, rates


@pytest.mark.parametrize("name", LOOPS)
def test_fifty_steps_with_a_changing_rate_are_those_of_a_plain_loop(name):
    with jax.enable_x64(True):
        ours, batches, rates = path(table.RULES[name](RATE))
        x, label = (np.asarray(a, np.float64) for a in problem(jnp.float64)[1])
        start = problem(jnp.float64)[0]
    expected = RATE / (1 + DECAY * np.arange(STEPS))
    np.testing.assert_allclose(rates, expected, rtol=1e-14)
    theta, memory, steps = flat(start), {}, []
    for t, (rows, weight) in enumerate(zip(*map(np.asarray, batches), strict=True)):
        g = gradient(theta, x[rows], label[rows], weight)
        theta = theta + LOOPS[name](g, t, expected[t], memory)
        steps.append(theta)
    np.testing.assert_allclose(ours, steps, rtol=1e-12)


SAME = {
    "sgd": (jaxsgd.SGD(0.1), optax.sgd(0.1)),
    "sgd schedule": (
        jaxsgd.SGD(jaxsgd.CosineDecay(0.1, 0.01, 30)),
        optax.sgd(optax.cosine_decay_schedule(0.1, 30, alpha=0.1)),
    ),
    "momentum": (jaxsgd.Momentum(0.1, 0.8), optax.sgd(0.1, momentum=0.8)),
    "nesterov": (jaxsgd.Nesterov(0.1, 0.8), optax.sgd(0.1, momentum=0.8, nesterov=True)),
    "adagrad": (jaxsgd.AdaGrad(0.1, eps=0), optax.adagrad(0.1, 0.0, eps=0.0)),
    "rmsprop": (jaxsgd.RMSProp(0.1), optax.rmsprop(0.1, eps_in_sqrt=False)),
    "adam schedule": (
        jaxsgd.Adam(jaxsgd.LinearDecay(0.1, 0.01, 30)),
        optax.adam(optax.linear_schedule(0.1, 0.01, 30)),
    ),
}
GRADS = {"a": jnp.asarray(RNG.normal(size=(50, 3))), "b": jnp.asarray(RNG.normal(size=50))}


def updates(rule, grads=GRADS):
    """The updates of given gradients: the rules alone, at the cost of a small program each."""
    params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)
    rule = optax.with_extra_args_support(rule) if isinstance(rule, tuple) else rule

    def step(state, grads):
        update, state = rule.update(grads, state, params)
        return state, update

    return jax.jit(lambda g: jax.lax.scan(step, rule.init(params), g)[1])(grads)


@pytest.mark.parametrize("name", SAME)
def test_the_rules_are_optaxs_where_the_definitions_coincide(name):
    ours, theirs = map(updates, SAME[name])
    for key in GRADS:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=2e-4, atol=1e-6)


def test_optax_has_the_rate_outside_the_velocity():
    """The two differ as soon as the rate changes; a test that cannot tell them is none."""
    schedule = jaxsgd.StepDecay(0.1, 0.5, 5)
    ours = updates(jaxsgd.Momentum(schedule, 0.9))["b"]
    theirs = updates(optax.sgd(schedule, momentum=0.9))["b"]
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=1e-5)
    assert abs(ours[5] - theirs[5]) > 0.01


def test_nesterovs_state_tells_the_textbooks_parameters():
    """theta' = theta + v', with the gradient taken at theta + momentum v."""
    centre, m, rate = jnp.array([1.0, -2.0]), 0.8, 0.1
    rule = jaxsgd.Nesterov(rate, m)
    ahead, theta, velocity = jnp.zeros(2), np.zeros(2), np.zeros(2)
    state = rule.init(ahead)
    for _ in range(10):
        velocity = m * velocity - rate * (theta + m * velocity - centre)
        theta = theta + velocity
        update, state = rule.update(ahead - centre, state)
        ahead = ahead + update
        np.testing.assert_allclose(ahead - m * state.velocity, theta, rtol=1e-5)


def test_adaptive_rules_leave_alone_what_never_had_a_gradient():
    grads = {"a": jnp.zeros((5, 2))}
    for rule in (jaxsgd.AdaGrad(0.1, eps=0), jaxsgd.RMSProp(0.1, eps=0), jaxsgd.Adam(0.1, eps=0)):
        assert not updates(rule, grads)["a"].any()
        slope = jax.grad(lambda g, rule=rule: updates(rule, {"a": g})["a"].sum())(grads["a"])
        assert np.isfinite(slope).all()


def test_a_nan_stays_one():
    """Else the step after it would be a thousand times too long, and finite."""
    grads = {"a": jnp.array([1.0, jnp.nan, 1.0])}
    for rule in (
        jaxsgd.AdaGrad(0.1),
        jaxsgd.RMSProp(0.1),
        jaxsgd.Adam(0.1),
        jaxsgd.RMSProp(0.1, eps=0),
    ):
        assert np.isnan(updates(rule, grads)["a"][1:]).all()


def test_the_defaults_are_the_fields():
    assert jax.tree.leaves(jaxsgd.Adam()) == [0.001, 0.9, 0.999, 1e-8]
    assert jax.tree.leaves(jaxsgd.AdaGrad()) == [0.01, 1e-7]
    assert jax.tree.leaves(jaxsgd.RMSProp()) == [0.001, 0.9, 1e-8]
    assert jaxsgd.Momentum(0.1).momentum == jaxsgd.Nesterov(0.1).momentum == 0.9


def test_wrapped_by_optax_a_rule_does_what_it_does_alone():
    rate = jaxsgd.InverseTimeDecay(0.1, 0.1)
    for rule in (jaxsgd.SGD(rate), jaxsgd.Nesterov(rate), jaxsgd.AdaGrad(rate), jaxsgd.RMSProp(rate),
                 jaxsgd.Momentum(rate), jaxsgd.Adam(rate)):  # fmt: skip
        alone = updates(rule)
        masked = updates(optax.chain(optax.masked(rule, {"a": True, "b": False}), optax.identity()))
        np.testing.assert_allclose(masked["a"], alone["a"], rtol=1e-6)
        np.testing.assert_array_equal(masked["b"], GRADS["b"])  # as masked leaves them
        frozen = updates(
            optax.partition({"x": rule, "0": optax.set_to_zero()}, {"a": "x", "b": "0"})
        )
        np.testing.assert_allclose(frozen["a"], alone["a"], rtol=1e-6)
        assert not frozen["b"].any()
        pairs = jax.tree.map(lambda g: jnp.repeat(g[:25], 2, axis=0), GRADS)
        every_second = updates(optax.MultiSteps(rule, 2).gradient_transformation(), pairs)
        assert not every_second["a"][::2].any()
        halved = jax.tree.map(lambda g: g[:25], alone)
        np.testing.assert_allclose(every_second["a"][1::2], halved["a"], rtol=1e-5)
