"""What checkpoints cost a fit: a state of 100 MB, saved every 100 steps.

    python -m benchmarks.saving [--rounds 5]

Contenders take turns; each is a fit of 400 steps. Ratios are to the fit without checkpoints, round
by round. Prints Markdown.
"""

import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

import jaxsgd
from benchmarks.turns import rounds_asked

NUMBERS, STEPS, EVERY = 25_000_000, 400, 100


def fit(folder: str | None) -> float:
    """Seconds of a fit after its compilation."""

    def loss(params: Any, row: Any) -> Any:
        return jnp.mean((params - row) ** 2)

    started: list[float] = []
    jaxsgd.fit(
        loss,
        jnp.zeros(NUMBERS),
        jnp.ones(EVERY),
        key=jax.random.key(0),
        epochs=1 + STEPS // EVERY,
        batch_size=1,
        learning_rate=0.1,
        progress=False,
        log=lambda record: started.append(time.perf_counter()),
        checkpoint=folder,
    )
    return started[-1] - started[0]


def main() -> None:
    rounds = rounds_asked(__doc__, 5)
    times: dict[str, list[float]] = {"no checkpoints": [], "every 100 steps": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            times["no checkpoints"].append(fit(None))
            times["every 100 steps"].append(fit(folder))
    plain = times["no checkpoints"]
    print("\n| | ms a step | ratio |\n|---|---|---|")
    for name, found in times.items():
        ratio = statistics.median(b / a for a, b in zip(plain, found, strict=True))
        print(f"| {name} | {1e3 * statistics.median(found) / STEPS:.3g} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
