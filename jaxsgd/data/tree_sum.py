r"""Sums whose bits do not depend on how many devices compute their parts.

A floating-point sum depends on the order of its terms, and how a compiler rounds an expression on
the code around it. So the
parts are added in one balanced binary tree, whichever device computes which part, and each part is
computed by the same compiled code: the body of a loop, in a branch that XLA cannot remove. (Where a
device had one part, XLA removed the loop and fused its body with the code around it, which changed
the last bit. `vmap` over the parts compiles to other code for each number of parts.)

    part     0   1   2   3   4   5   6   7
              \ /     \ /     \ /     \ /
    device     A       B       C       D         each adds its own parts
                \     /         \     /
                  A+B             C+D            then pairs of devices add their sums
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree


def sum_of_parts(
    compute: Callable[[Int[Array, ""], PyTree], tuple[PyTree, PyTree]], parts: int, state: PyTree
) -> tuple[PyTree, PyTree]:
    """Compute the terms of `parts` parts, a power of two, one after another, and add them up.

    Args:
      compute: `compute(number, state)` returns the term of a part, and a state.
      parts: the number of parts on this device.
      state: passed to every part; the state that the last part returns is returned.

    Memory: one term for each level of the tree.
    """
    levels = parts.bit_length()
    term, _ = jax.eval_shape(compute, jnp.zeros((), jnp.int32), state)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), term)

    def add_at(level: int) -> Callable[[list[PyTree], PyTree], list[PyTree]]:
        """Add a term to the sums of the lower levels, which it completes."""

        def add(sums: list[PyTree], term: PyTree) -> list[PyTree]:
            for below in sums[:level]:
                term = jax.tree.map(jnp.add, below, term)
            return [*sums[:level], term, *sums[level + 1 :]]

        return add

    def body(
        carry: tuple[list[PyTree], PyTree], number: Int[Array, ""]
    ) -> tuple[tuple[list[PyTree], PyTree], None]:
        sums, before = carry
        is_part = number < parts
        nothing = lambda: (zeros, before)  # noqa: E731
        term, after = lax.cond(is_part, lambda: compute(number, state), nothing)
        level = lax.population_count(number ^ (number + 1)) - 1  # subtrees that it completes
        branches = [*map(add_at, range(levels)), lambda sums, term: sums]
        return (lax.switch(jnp.where(is_part, level, levels), branches, sums, term), after), None

    numbers = jnp.arange(max(parts, 2), dtype=jnp.int32)
    (sums, state), _ = lax.scan(body, ([zeros] * levels, state), numbers)
    return sums[-1], state


def sum_over_devices(tree: PyTree, axis: str, devices: int) -> PyTree:
    """The sum of the devices' trees, the same bits on all; `devices` is a power of two.

    Each device exchanges its sum with one other in each of `log2(devices)` rounds.
    """
    distance = 1
    while distance < devices:
        pairs = [(device, device ^ distance) for device in range(devices)]
        others = jax.tree.map(lambda x: lax.ppermute(x, axis, pairs), tree)  # noqa: B023
        # in a branch, which is always taken but XLA cannot know that: otherwise the sum would
        # be fused with the code that reads it, for some numbers of devices only
        is_device = lax.axis_index(axis) >= 0
        tree = lax.cond(
            is_device, lambda a, b: jax.tree.map(jnp.add, a, b), lambda a, b: a, tree, others
        )
        distance *= 2
    return tree
