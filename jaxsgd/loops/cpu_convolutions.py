"""Convolutions in the order of dimensions that XLA's CPU backend computes fast.

The derivatives of a convolution have another order of dimensions than the convolution itself
(`f01b_i01o->01bf`). Outside of a loop XLA brings them into the order of its fast routine; within a
loop it does not, and a step of a small network takes 5 to 15 times as long (JAX issue 12868). Here
each becomes a convolution `NHWC,HWIO->NHWC` between transposes: the same numbers, in the time that
a step takes by itself. Not on a mesh. JAXSGD_CPU_CONVOLUTIONS=0 in the environment turns this off,
for programs that are compiled after it; `python -m jaxsgd.about` says whether it is on.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array, PyTree

from jaxsgd.core.jaxprs import inner_jaxprs, with_inner


def why_off() -> str | None:
    """Why no convolution is reordered in this process, or None where they are."""
    return off_by("JAXSGD_CPU_CONVOLUTIONS")


def off_by(variable: str) -> str | None:
    """Why a CPU feature with a switch in the environment is off here, or None if it is on.

    Raises:
      ValueError: the switch is neither 0 nor 1.
    """
    switch = os.environ.get(variable, "1")
    if switch not in ("0", "1"):
        raise ValueError(f"{variable}: expected 0 or 1, got {switch!r}")
    if switch == "0":
        return f"{variable} is 0"
    backend = jax.default_backend()
    return None if backend == "cpu" else f"the default backend is {backend}"


def are_slow_in(jaxpr: Jaxpr) -> bool:
    """Whether a program has convolutions that are to be reordered."""
    return why_off() is None and _has_slow(jaxpr)


def reordered(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn` with its convolutions reordered, derivatives and batched ones included."""
    jitted = jax.jit(fn)

    def call(*args: PyTree) -> PyTree:
        if why_off() is not None:
            return fn(*args)
        traced = jitted.trace(*args)
        if not _has_slow(traced.jaxpr.jaxpr):
            return jitted(*args)  # which is not traced again
        closed = traced.jaxpr.replace(jaxpr=_rewritten(traced.jaxpr.jaxpr))
        results = jaxpr_as_fun(closed)(*jax.tree.leaves(args))
        results = map(jnp.asarray, results)  # some are literals
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), results)

    return call


def _has_slow(jaxpr: Jaxpr) -> bool:
    return any(
        _is_slow(equation) or any(map(_has_slow, _inner_jaxprs(equation)))
        for equation in jaxpr.eqns
    )


def _inner_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """What an equation runs; not a part of a mesh, whose arrays have types of their own."""
    return iter(()) if equation.primitive.name == "shard_map" else inner_jaxprs(equation.params)


def _is_slow(equation: JaxprEqn) -> bool:
    if equation.primitive is not lax.conv_general_dilated_p:
        return False
    order = equation.params["dimension_numbers"]
    return order != _fast_order(len(order.lhs_spec))


def _fast_order(rank: int) -> lax.ConvDimensionNumbers:
    """NHWC,HWIO->NHWC, with any number of spatial dimensions."""
    arrays = (0, rank - 1, *range(1, rank - 1))  # the places of N, C and the spatial dimensions
    return lax.ConvDimensionNumbers(arrays, (rank - 1, rank - 2, *range(rank - 2)), arrays)


def _rewritten(jaxpr: Jaxpr) -> Jaxpr:
    equations: list[JaxprEqn] = []
    for equation in jaxpr.eqns:
        if _is_slow(equation):
            equations += _fast_equations(equation)
        elif any(map(_has_slow, _inner_jaxprs(equation))):
            params = with_inner(equation.params, _rewritten)
            equations.append(equation.replace(params=params))
        else:
            equations.append(equation)
    return jaxpr.replace(eqns=equations)


def _fast_equations(equation: JaxprEqn) -> list[JaxprEqn]:
    """A slow convolution's replacement: transposes, a fast one, a transpose."""
    avals: list[Any] = [x.aval for x in equation.invars]
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in avals]
    fast = jax.make_jaxpr(partial(_convolved, equation.params))(*shapes).jaxpr
    names = dict(zip(fast.invars, equation.invars, strict=True))
    names |= zip(fast.outvars, equation.outvars, strict=True)
    renamed = lambda variables: [names.get(x, x) for x in variables]  # noqa: E731
    return [
        each.replace(invars=renamed(each.invars), outvars=renamed(each.outvars))
        for each in fast.eqns
    ]


def _convolved(params: dict[str, Any], inputs: Array, kernel: Array) -> Array:
    """A convolution of any order of dimensions, by one in the fast order."""
    fast = _fast_order(inputs.ndim)
    # a dimension of the fast order is found at these places of the given one
    places = [
        np.take(given, np.argsort(order))
        for given, order in zip(params["dimension_numbers"], fast, strict=True)
    ]
    result = lax.conv_general_dilated_p.bind(
        lax.transpose(inputs, places[0]),
        lax.transpose(kernel, places[1]),
        **(params | {"dimension_numbers": fast}),
    )
    return lax.transpose(result, np.argsort(places[2]))
