"""The training loops of other JAX libraries, compared with jaxsgd's on the same losses.

    python -m benchmarks.libraries [--rounds 5]

A normalising flow trained by flowjax's `fit_to_data`, and a logistic regression's posterior by
NumPyro's `SVI.run`. Contenders take turns. Times are medians over rounds, ratios are per round.
Prints Markdown. Only the first call's time includes compilation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import paramax
from flowjax.distributions import Normal
from flowjax.flows import masked_autoregressive_flow
from flowjax.train import fit_to_data
from flowjax.train.losses import MaximumLikelihoodLoss
from numpyro import distributions, infer

import jaxsgd
from benchmarks.turns import report, rounds_asked

EPOCHS, BATCH, ROWS = 10, 100, 10_000  # of the flow; a tenth of the rows are for validation
STEPS = 2_000  # of the posterior, each over all rows


def flow() -> dict[str, Callable[[], Any]]:
    key = jax.random.key(0)
    x = jax.random.normal(key, (ROWS, 4))
    x = x + 0.3 * x[:, ::-1] ** 2
    base = Normal(jnp.zeros(4))
    model = masked_autoregressive_flow(key, base_dist=base, flow_layers=4, nn_width=32)
    is_fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
    params, static = eqx.partition(model, eqx.is_inexact_array, is_leaf=is_fixed)

    def losses(params: Any, rows: Any) -> Any:
        return -paramax.unwrap(eqx.combine(params, static)).log_prob(rows)

    ours = partial(
        jaxsgd.fit, jaxsgd.RowsLoss(losses), params, x[ROWS // 10 :], key=key, epochs=EPOCHS,
        batch_size=BATCH, rule=jaxsgd.Adam(5e-4), validation=x[: ROWS // 10], restore_best=True,
        progress=False,
    )  # fmt: skip
    theirs = partial(  # an optimiser and a loss of its own would be compiled in each call
        fit_to_data, key, model, x, max_epochs=EPOCHS, max_patience=EPOCHS, batch_size=BATCH,
        show_progress=False, optimizer=optax.adam(5e-4), loss_fn=MaximumLikelihoodLoss(),
    )  # fmt: skip
    return {
        "jaxsgd.fit": lambda: ours().history["validation_loss"],
        "flowjax.train.fit_to_data": lambda: np.asarray(theirs()[1]["val"]),
    }


def posterior() -> dict[str, Callable[[], Any]]:
    key = jax.random.key(0)
    x = jax.random.normal(key, (1_000, 10))
    y = (x @ jnp.arange(10.0) > 0).astype(jnp.float32)

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", distributions.Normal(jnp.zeros(10), 1).to_event(1))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", distributions.Bernoulli(logits=x @ w), obs=y)

    guide = infer.autoguide.AutoNormal(model)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(1e-3), infer.Trace_ELBO())
    params = svi.optim.get_params(svi.init(key, x, y).optim_state)

    def loss(params: Any, rows: Any, weight: Any, key: Any) -> Any:
        return svi.loss.loss(key, svi.constrain_fn(params), model, guide, *rows)

    gradient = jaxsgd.BatchLoss(loss, keyed=True)
    solver = jaxsgd.Solver(gradient, jaxsgd.FullBatch(), jaxsgd.Adam(1e-3))
    state = solver.init(params, (x, y), key=key)
    begun = svi.init(key, x, y)

    @jax.jit  # otherwise each call would compile
    def theirs(begun: Any, x: Any, y: Any) -> Any:
        return svi.run(key, STEPS, x, y, progress_bar=False, init_state=begun).losses

    return {
        "jaxsgd.run": lambda: jaxsgd.run(solver, state, (x, y), STEPS)[1].loss,
        "numpyro.infer.SVI.run": lambda: theirs(begun, x, y),
    }


def compared(contenders: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """The contenders again, once it is seen that they end at the same loss."""
    ends = {name: float(np.mean(np.asarray(fn())[-5:])) for name, fn in contenders.items()}
    first = next(iter(ends.values()))
    if any(abs(end - first) > 0.05 * abs(first) for end in ends.values()):
        raise ValueError(f"the losses differ at the end: {ends}")
    return contenders


def main() -> None:
    rounds = rounds_asked(__doc__, 5)
    steps = EPOCHS * (ROWS - ROWS // 10) // BATCH
    title = "a masked autoregressive flow, 9,000 x 4, batch 100, 10 epochs"
    report(title, compared(flow()), steps, rounds)
    title = "the posterior of a logistic regression, 1,000 x 10, all rows"
    report(title, compared(posterior()), STEPS, rounds)


if __name__ == "__main__":
    main()
