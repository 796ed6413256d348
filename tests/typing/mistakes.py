"""A user's mistakes: a type checker flags the lines marked `error`, and no other line."""

import jax
import jax.numpy as jnp
import optax

import jaxsgd


def loss(params: jax.Array, row: jax.Array) -> jax.Array:
    return jnp.sum((params - row) ** 2)


key = jax.random.key(0)
params, data = jnp.zeros(3), jnp.ones((100, 3))
shuffled, sgd = jaxsgd.Shuffled(16), jaxsgd.SGD(0.1)

# what is right is not flagged
solver = jaxsgd.Solver(loss, shuffled, sgd, jaxsgd.L2(1e-3))
jaxsgd.Solver(jaxsgd.RowLoss(loss, has_aux=False), shuffled, optax.adam(1e-3))
jaxsgd.Solver(jaxsgd.Accumulated(loss, chunks=2), shuffled, jaxsgd.Momentum(jnp.float32(0.1)))
jaxsgd.Solver(loss, jaxsgd.FullBatch(), jaxsgd.FromOptax(optax.adamw, learning_rate=1e-3))
jaxsgd.SGD(optax.cosine_decay_schedule(0.1, 100))
jaxsgd.SGD(jaxsgd.Warmup(jaxsgd.StepDecay(0.1, 0.5, 30), 10))
jaxsgd.SGD(lambda step: 0.1 / (1 + step))
state = solver.init(params, data, key=key)
state, info = solver.step(state, data)
state, trace = jaxsgd.run(solver, state, data, 10)
state, grad_norms = jaxsgd.run(solver, state, data, 10, lambda state, info: info.grad_norm, 5)
result = jaxsgd.fit(loss, params, data, key=key, epochs=1, learning_rate=0.1, progress=False)
print(info.loss + trace.loss[-1], result.history["loss"], result.params)

# parts
jaxsgd.Solver(loss, 64, 0.1)  # error
jaxsgd.Solver(loss, 64, sgd)  # error
jaxsgd.Solver(loss, sgd, shuffled)  # error
jaxsgd.Solver(loss, shuffled)  # error
jaxsgd.Solver(loss, shuffled, "adam")  # error
jaxsgd.Solver(loss, shuffled, optax.adam)  # error
jaxsgd.Solver(loss, shuffled, jaxsgd.SGD)  # error
jaxsgd.Solver(loss, jaxsgd.Shuffled, sgd)  # error
jaxsgd.Solver("squared", shuffled, sgd)  # error
jaxsgd.Solver(loss, shuffled, sgd, penalty=1e-3)  # error
jaxsgd.Solver(loss, shuffled, sgd, momentum=0.9)  # error
jaxsgd.Solver(params, shuffled, sgd)  # error
solver.sampler = shuffled  # error

# numbers
jaxsgd.SGD("0.1")  # error
jaxsgd.SGD()  # error
jaxsgd.SGD([0.1, 0.2])  # error
jaxsgd.SGD(learning_rate=None)  # error
jaxsgd.Momentum(0.1, momentum="0.9")  # error
jaxsgd.Shuffled("64")  # error
jaxsgd.Shuffled(64.0)  # error
jaxsgd.Shuffled(64, drop_last="yes")  # error
jaxsgd.L2("1e-3")  # error
jaxsgd.CosineDecay(0.1, 0.0, "100")  # error
jaxsgd.EarlyStopping(patience="3")  # error
jaxsgd.Accumulated(loss, chunks=2.5)  # error

# functions
solver.init(params, data)  # error
solver.init(params, data, key=0)  # error
jaxsgd.run(solver, state, data, "10")  # error
jaxsgd.run(solver, data, state)  # error
jaxsgd.run(loss, state, data, 10)  # error
jaxsgd.run_until(solver, state, data, 5, max_steps=10)  # error
jaxsgd.fit(loss, params, data, key=key, epochs=1, rule="adam")  # error
jaxsgd.fit(loss, params, data, key=key, epochs=1, rule=sgd, stop=5)  # error
jaxsgd.fit(loss, params, data, key=key, epochs="10", learning_rate=0.1)  # error
jaxsgd.fit(loss, params, data, key=key, epochs=1, learning_rate=0.1, batch_size="64")  # error
jaxsgd.fit(loss, params, data, key=key, epochs=1, learning_rate=0.1, mode="maximum")  # error
jaxsgd.fit(loss, params, data, key=key, epochs=1, learning_rate="0.1")  # error
jaxsgd.fit(loss, params, data, key=key, epochs=1, lr=0.1)  # error
jaxsgd.evaluate("accuracy", params, data)  # error
