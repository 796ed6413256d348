"""Numbers that depend on the step.

Wherever a rule takes a rate, it takes a number or a schedule: any callable of the step (int32[],
0 at the first step) that returns a number. A plain function, such as Optax's schedules, is static:
another one compiles again. A callable pytree keeps its constants as leaves: another constant
compiles nothing, and they can be swept and differentiated.

>>> @jaxsgd.part
... class Inverse:
...     initial: float = jaxsgd.number()
...     decay: float = jaxsgd.number()
...     def __call__(self, step):
...         return self.initial / (1 + self.decay * step)
>>> rule = jaxsgd.SGD(Inverse(0.1, 0.01))
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsgd import checks
from jaxsgd.pairs import as_callable


def as_rate(rate: Any, name: str) -> Any:
    """A checked number, at least 0, or a schedule."""
    if callable(rate):
        return as_callable(rate, name)
    checks.number(rate, name)
    return rate


def init_count(rate: Any) -> jax.Array | None:
    """The step counter that a rate needs: None for a number."""
    return jnp.zeros((), jnp.int32) if callable(rate) else None


def rate_at(rate: Any, count: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    """The rate in use at a count, and the count after it."""
    if not callable(rate):
        return scalar(rate, "learning_rate"), None
    assert count is not None
    return scalar(rate(count), "the schedule's rate"), count + 1


def scalar(value: Any, name: str) -> jax.Array:
    """A number at its use, where stacked ones have been vmapped."""
    value = jnp.asarray(value)
    if value.ndim:
        raise ValueError(
            f"{name} has shape {value.shape}, expected one number; stacked numbers wait for a vmap"
        )
    return value
