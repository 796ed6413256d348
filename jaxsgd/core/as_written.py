"""Float arithmetic that XLA computes as it is written.

XLA rewrites arithmetic: `x / s` becomes `x * (1 / s)`, or `x / s / t` becomes `x / (s * t)`, which
changes the last bits. Which of them it applies first depends on earlier passes, which differ
between one device and several. XLA does not rewrite across an `optimization_barrier`. It removes
the barriers before it fuses operations, so they cost little: a step of a perceptron takes as long
as before.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import DropVar, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun, new_jaxpr_eqn
from jax.extend.core.primitives import broadcast_in_dim_p
from jaxtyping import PyTree

from jaxsgd.core import programs
from jaxsgd.core.jaxprs import with_inner

T = TypeVar("T")

ARITHMETIC = frozenset(
    "abs add add_any atan2 broadcast_in_dim cbrt clamp convert_element_type cos cumsum div erf "
    "erf_inv exp exp2 expm1 integer_pow log log1p logistic max min mul neg pow reduce_sum rem "
    "rsqrt select_n sign sin sqrt square sub tanh".split()
)
BROADCASTS = frozenset("add add_any atan2 clamp div max min mul pow rem select_n sub".split())


def as_written(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn` of pytrees of arrays, with its float arithmetic computed as it is written."""

    def call(*args: PyTree) -> T:
        leaves, structure, _ = programs.flatten(args)
        traced = jax.jit(programs.of_leaves(fn, structure, {})).trace(*leaves)
        closed = traced.jaxpr.replace(jaxpr=_behind_barriers(traced.jaxpr.jaxpr))
        results = map(jnp.asarray, jaxpr_as_fun(closed)(*leaves))  # some are literals
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), results)

    return call


def _behind_barriers(jaxpr: Jaxpr) -> Jaxpr:
    equations: list[JaxprEqn] = []
    for equation in jaxpr.eqns:
        equation = equation.replace(params=with_inner(equation.params, _behind_barriers))
        is_float = all(map(_is_float, equation.outvars))
        if equation.primitive.name in ARITHMETIC and is_float:
            equations += _behind_barrier(equation)
        else:
            equations.append(equation)
    return jaxpr.replace(eqns=equations)


def _behind_barrier(equation: JaxprEqn) -> list[JaxprEqn]:
    """An equation with a barrier after its result and after each operand that it broadcasts.

    An operand of shape () or (6, 1) beside one of (6, 19) is broadcast where the program is
    lowered, where XLA would see it.
    """
    made = equation.outvars[0]
    if isinstance(made, DropVar):
        return []
    shape = _shape(made)
    before: list[JaxprEqn] = []
    given = []
    for x in equation.invars:
        is_narrow = _is_float(x) and _shape(x) != shape and not isinstance(x, Literal)
        if is_narrow and equation.primitive.name in BROADCASTS:
            wide = Var(made.aval)
            axes = tuple(range(len(_shape(x))))
            params = {"shape": shape, "broadcast_dimensions": axes, "sharding": None}
            broadcast = new_jaxpr_eqn([x], [wide], broadcast_in_dim_p, params, set())
            before += _behind_barrier(broadcast)
            x = wide
        given.append(x)
    open_ = Var(made.aval)
    barrier = new_jaxpr_eqn([open_], [made], lax.optimization_barrier_p, {}, set())
    return [*before, equation.replace(invars=given, outvars=[open_]), barrier]


def _shape(x: Any) -> tuple[int, ...]:
    return x.aval.shape


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.aval.dtype, jnp.floating)
