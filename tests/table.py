"""The table of parts: a new sampler, gradient, rule or loss joins it and inherits the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsgd

N, D = 20, 3  # 20 = 4 x 5 needs no walk, which is slow to compile; batches are 8, 8, 4


def problem(dtype=jnp.float32, n=N):
    """A small least-squares problem: params, data."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, D))
    y = x @ np.arange(1.0, D + 1) + 0.5 + 0.1 * rng.normal(size=n)
    params = {"bias": jnp.zeros((), dtype), "weight": jnp.full(D, 0.1, dtype)}
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    return params, (jnp.asarray(x, wide), jnp.asarray(y, wide))


def residual(params, row):
    x, y = row
    return x @ params["weight"].astype(x.dtype) + params["bias"].astype(x.dtype) - y


def loss(params, row):
    return residual(params, row) ** 2 / 2


def noisy(params, row, key):
    return loss(params, row) * (1 + 0.1 * jax.random.normal(key))


def counted(params, rows, model_state):
    return residual(params, rows) ** 2 / 2, 0.9 * model_state + 0.1 * jnp.mean(rows[1])


def with_aux(params, row):
    return loss(params, row), {"error": residual(params, row)}


def weighted(params, rows, weight):
    return jnp.sum(weight * residual(params, rows) ** 2) / 2


def clipped(learning_rate, decay, max_norm):
    """A user's own factory."""
    return optax.chain(
        optax.clip_by_global_norm(max_norm), optax.adamw(learning_rate, weight_decay=decay)
    )


BATCH = 8
# arrays of samplers, made once: `all_solvers` shares them
PROBABILITIES = np.arange(1.0, N + 1)
LABELS = np.arange(N) * 7 % 10 // 6 + (np.arange(N) == 4)  # 12, 7 and 1 of them in 3 steps an epoch
INDEX = np.arange(4 * BATCH).reshape(4, BATCH) * 3 % N


def labels(n):
    """Three of four rows are of class 0; of a few rows, class 1 has fewer than an epoch steps."""
    return np.arange(n) % 4 // 3


# name: a function that makes it, for some put arrays on the device: this is imported before a fork
SAMPLERS = {
    "full": lambda: jaxsgd.FullBatch(),
    "sequential": lambda: jaxsgd.Sequential(BATCH),
    "shuffled": lambda: jaxsgd.Shuffled(BATCH),
    "shuffled drop_last": lambda: jaxsgd.Shuffled(BATCH, drop_last=True),
    "with replacement": lambda: jaxsgd.WithReplacement(BATCH),
    "blocks": lambda: jaxsgd.Blocks(BATCH, block=5, window=2),
    "dynamic": lambda: jaxsgd.DynamicBatch(jaxsgd.Shuffled(BATCH), 5),
    "sharded": lambda: jaxsgd.Sharded(BATCH, shards=2),
    "per shard": lambda: jaxsgd.PerShard(jaxsgd.ImportanceSampled(PROBABILITIES, BATCH), shards=2),
    "importance": lambda: jaxsgd.ImportanceSampled(PROBABILITIES, BATCH),
    "stratified": lambda: jaxsgd.Stratified(LABELS, BATCH),
    "stratified, proportions": lambda: jaxsgd.Stratified(LABELS, BATCH, (1, 2, 1)),
    "poisson": lambda: jaxsgd.Poisson(0.3, capacity=BATCH),  # overflows in one of four batches
    "fixed": lambda: jaxsgd.FixedBatches(INDEX),
}
WITHOUT_REPLACEMENT = {
    "full": lambda b, n: jaxsgd.FullBatch(size=n),
    "sequential": lambda b, n: jaxsgd.Sequential(b, size=n),
    "shuffled": lambda b, n: jaxsgd.Shuffled(b, size=n),
    "blocks": lambda b, n: jaxsgd.Blocks(b, block=min(3, n), window=2, size=n),
    "dynamic": lambda b, n: jaxsgd.DynamicBatch(jaxsgd.Shuffled(min(b + 3, n), size=n), b),
    "sharded": lambda b, n: jaxsgd.Sharded(b, shards=2, size=n),
    "stratified": lambda b, n: jaxsgd.Stratified(labels(n), b),
}
RANDOM = {
    "shuffled": lambda b, n: jaxsgd.Shuffled(b, size=n),
    "with replacement": lambda b, n: jaxsgd.WithReplacement(b, size=n),
    "blocks": lambda b, n: jaxsgd.Blocks(b, block=2, window=2, size=n),
    "dynamic": lambda b, n: jaxsgd.DynamicBatch(jaxsgd.Shuffled(b + 1, size=n), b),
    "sharded": lambda b, n: jaxsgd.Sharded(b, shards=2, size=n),
    "per shard": lambda b, n: jaxsgd.PerShard(
        jaxsgd.ImportanceSampled(np.arange(1.0, n + 1), b), shards=2
    ),
    "importance": lambda b, n: jaxsgd.ImportanceSampled(np.arange(1.0, n + 1), b),
    "stratified": lambda b, n: jaxsgd.Stratified(labels(n), b),
    # places 2 and 3 of 5 in 3 steps: class 0 is in some steps only, class 1 begins anew
    "stratified, proportions": lambda b, n: jaxsgd.Stratified(labels(n), b, (2, 3)),
    "poisson": lambda b, n: jaxsgd.Poisson(b / n, capacity=n, size=n),
}
# name: (gradient, initial model_state)
GRADIENTS = {
    "row": (jaxsgd.MinibatchGradient(loss), None),
    "aux": (jaxsgd.MinibatchGradient(jaxsgd.RowLoss(with_aux, has_aux=True)), None),
    "keyed": (jaxsgd.MinibatchGradient(jaxsgd.RowLoss(noisy, keyed=True)), None),
    "stateful": (jaxsgd.MinibatchGradient(jaxsgd.RowsLoss(counted, has_model_state=True)), 0.0),
    "batch": (jaxsgd.MinibatchGradient(jaxsgd.BatchLoss(weighted)), None),
    "accumulated": (jaxsgd.Accumulated(jaxsgd.RowLoss(noisy, keyed=True), 3), None),
    "clipped": (jaxsgd.PerExampleClipped(loss, 1.0, noise=0.5, row_scale=1 / BATCH), None),
    "svrg": (jaxsgd.SVRG(loss, period=3), None),
    "saga": (jaxsgd.SAGA(loss), None),
    "saga linear": (
        jaxsgd.SAGA(jaxsgd.models.ModelLoss(jaxsgd.models.Linear(D), optax.l2_loss)),
        None,
    ),
    "noise scale": (jaxsgd.NoiseScaleGradient(jaxsgd.RowLoss(with_aux, has_aux=True)), None),
}
# name: a function of the learning rate
RULES = {
    "sgd": lambda a: jaxsgd.SGD(a),
    "sgd schedule": lambda a: jaxsgd.SGD(jaxsgd.InverseTimeDecay(a, 0.1)),
    "momentum": lambda a: jaxsgd.Momentum(a, 0.5),
    "momentum schedule": lambda a: jaxsgd.Momentum(jaxsgd.InverseTimeDecay(a, 0.1), 0.5),
    "nesterov schedule": lambda a: jaxsgd.Nesterov(jaxsgd.InverseTimeDecay(a, 0.1), 0.5),
    "adagrad schedule": lambda a: jaxsgd.AdaGrad(jaxsgd.InverseTimeDecay(a, 0.1)),
    "rmsprop schedule": lambda a: jaxsgd.RMSProp(jaxsgd.InverseTimeDecay(a, 0.1), 0.8),
    "adam schedule": lambda a: jaxsgd.Adam(jaxsgd.InverseTimeDecay(a, 0.1), 0.8, 0.9),
    "adamw": lambda a: jaxsgd.FromOptax(optax.adamw, learning_rate=a, weight_decay=0.01),
    "own factory": lambda a: jaxsgd.FromOptax(clipped, learning_rate=a, decay=0.01, max_norm=1.0),
    "average": lambda a: jaxsgd.TailAverage(jaxsgd.SGD(a), 2),
    "ema, proximal": lambda a: jaxsgd.EMA(
        jaxsgd.Proximal(jaxsgd.Momentum(a, 0.5), jaxsgd.L1(0.01)), 0.9
    ),
    "line search": lambda a: jaxsgd.LineSearch(a),
}


def solvers(learning_rate=0.1):
    """(name, solver, model_state): each sampler, gradient and rule once, beside plain others."""
    for name, sampler in SAMPLERS.items():
        yield name, jaxsgd.Solver(loss, sampler(), jaxsgd.SGD(learning_rate)), None
    for name, (gradient, model_state) in GRADIENTS.items():
        yield (
            name,
            jaxsgd.Solver(gradient, jaxsgd.Shuffled(BATCH), jaxsgd.SGD(learning_rate)),
            model_state,
        )
    for name, rule in RULES.items():
        penalty = jaxsgd.L2(0.01)
        solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(BATCH), rule(learning_rate), penalty)
        yield name, solver, None


def all_solvers(learning_rate=0.1):
    return {name: (solver, model_state) for name, solver, model_state in solvers(learning_rate)}


NAMES = [*SAMPLERS, *GRADIENTS, *RULES]


def start(solver, model_state, seed=0, dtype=jnp.float32):
    params, data = problem(dtype)
    model_state = None if model_state is None else jnp.asarray(model_state, jnp.float32)
    return solver.init(params, data, key=jax.random.key(seed), model_state=model_state), data


def key_data(tree):
    """Keys as their words, so that trees with keys can be compared."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
