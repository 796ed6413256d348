"""Small runs on a CPU, compiled as one kernel.

XLA runs each operation of a CPU program as a task of its own, and those of a loop with more than a
few by its thread pool: 2 to 5 us a turn, where the arithmetic of a small step takes 0.3. A call
marked as small it compiles as one function instead. XLA itself marks loops of up to a kilobyte;
here runs are marked whose operations are small, and of kinds that it can do within a function.
The operations are the same ones. Where XLA refuses, the run is compiled as ever. The environment
variable JAXSGD_CPU_FUSION=0 turns this off; `python -m jaxsgd.about` says whether it is on.
"""

import math
import os
from collections.abc import Callable, Hashable, Iterator
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Jaxpr
from jaxtyping import Array, Bool, PyTree

from jaxsgd.core.jaxprs import inner_jaxprs

TRIED = (0, 9), (0, 11)  # versions of JAX; another one might make other demands on a kernel
MARK = {"xla_cpu_small_call": "true", "inlineable": "false"}
OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}  # a library, which a kernel cannot call
MOST = 2**14  # numbers that an operation in a loop makes, or of a matrix times a vector
PRODUCTS = 2**12  # multiplications of a product of matrices; above it the library pays

LONGEST = 1500  # operations; XLA compiles a kernel of many more slowly than their tasks

# no sorting, scattering, convolution, factorisation, collective or callback
OPERATIONS = frozenset(
    "abs acos acosh add add_any and argmax argmin asin asinh atan atan2 atanh "
    "bitcast_convert_type broadcast_in_dim cbrt ceil clamp clz concatenate "
    "convert_element_type copy copy_p cos cosh cumlogsumexp cummax cummin cumprod cumsum "
    "digamma div dynamic_slice eq erf erf_inv erfc exp exp2 expand_dims expm1 floor gather ge "
    "gt integer_pow iota is_finite le le_to lgamma log log1p logistic lt lt_to max min mul ne neg "
    "nextafter not optimization_barrier or pad population_count pow random_bits "
    "random_fold_in random_seed random_split random_unwrap random_wrap reduce_and reduce_max "
    "reduce_min reduce_or reduce_precision reduce_prod reduce_sum rem reshape rev round rsqrt "
    "select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh slice split "
    "sqrt square squeeze stack stop_gradient sub tan tanh threefry2x32 transpose xor".split()
)
DTYPES = frozenset(
    "bool bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 "
    "uint64".split()
)
# what runs others, or writes in place
CALLS = frozenset(
    "checkpoint closed_call cond core_call custom_jvp_call custom_vjp_call jit pjit remat2 "
    "scan while dynamic_update_slice".split()
)


P = ParamSpec("P")
T = TypeVar("T")


def jit(**options: Any) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`jax.jit(fn, **options)`, whose program is one kernel where it is small and runs on a CPU.

    Only where it is called by itself: in a transformation or another program it cannot be known how
    large its operations become. Static arguments are given by name.
    """

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        plain = jax.jit(fn, **options)
        is_small: dict[Hashable, bool] = {}

        @partial(jax.jit, **options, compiler_options=OPTIONS)
        @wraps(fn)
        def marked(*args: P.args, **static: P.kwargs) -> tuple[T, PyTree]:
            whole = jax.jit(lambda *args: (plain(*args, **static), _read(args)))
            result, read = whole(*args)
            return result, set_xla_metadata(read, **MARK)  # of the call that it comes from

        @wraps(fn)
        def call(*args: P.args, **static: P.kwargs) -> T:
            leaves, tree = jax.tree.flatten(args)
            if jax.config.jax_disable_jit or not _stand_alone(leaves):  # pyright: ignore[reportAttributeAccessIssue]
                return plain(*args, **static)
            key = tree, *static.items(), *((x.shape, x.dtype) for x in leaves)
            small = is_small.get(key)
            if small is None:
                equations = list(_equations(plain.trace(*args, **static).jaxpr.jaxpr))
                small = len(equations) <= LONGEST and all(_is_small(*found) for found in equations)
                if len(is_small) >= 100:  # keys hold losses and models alive
                    is_small.clear()
                is_small[key] = small
            if small:
                try:
                    return marked(*args, **static)[0]
                except ValueError as error:
                    # within another program, none of whose arguments is among these
                    if "top-level" not in str(error):
                        raise
                except jax.errors.JaxRuntimeError:
                    if any(x.is_deleted() for x in leaves):  # donated: it was no refusal
                        raise
                    is_small[key] = False
            return plain(*args, **static)

        call.lower = plain.lower  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


def _read(args: PyTree) -> Bool[Array, ""]:
    """A number (bool[]) from all arguments: XLA aborts where a kernel leaves one unread."""
    read = jnp.zeros((), bool)
    for x in jax.tree.leaves(args):
        read = read ^ ((jax.random.key_data(x) if _is_key(x) else x).ravel()[0] != 0)
    return read


def why_off() -> str | None:
    """Why no program is marked in this process, or None where small ones are."""
    if os.environ.get("JAXSGD_CPU_FUSION") == "0":
        return "JAXSGD_CPU_FUSION is 0"
    if jax.default_backend() != "cpu":
        return f"the default backend is {jax.default_backend()}"
    if not TRIED[0] <= jax.__version_info__ < TRIED[1]:
        low, high = (".".join(map(str, version)) for version in TRIED)
        return f"it was tried on JAX {low} to below {high}"
    return None


def _stand_alone(leaves: list[Array]) -> bool:
    """Whether a program called with these is a program of its own, on one CPU."""
    if why_off() is not None:
        return False
    return all(
        not isinstance(x, Tracer)
        and x.size > 0
        and (
            _is_key(x) or (x.dtype.name in DTYPES and _is_on_a_cpu(x))
        )  # a key's place is slow to ask
        for x in leaves
    )


def _is_on_a_cpu(x: Array) -> bool:
    devices = x.sharding.device_set
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _equations(jaxpr: Jaxpr, in_loop: bool = False) -> Iterator[tuple[Any, bool]]:
    """The equations of a jaxpr and of all within it, and whether they are in a loop."""
    for equation in jaxpr.eqns:
        yield equation, in_loop
        for within in inner_jaxprs(equation.params):
            yield from _equations(within, in_loop or equation.primitive.name in ("scan", "while"))


def _is_small(equation: Any, in_loop: bool) -> bool:
    name = equation.primitive.name
    if name in CALLS:
        return True
    given = [math.prod(v.aval.shape) for v in equation.invars]
    if name == "dot_general":
        (left, _), (batch, _) = equation.params["dimension_numbers"]
        shared = math.prod(equation.invars[0].aval.shape[i] for i in (*left, *batch))
        with_vector = min(given) <= shared
        return max(given) * min(given) // max(shared, 1) <= (MOST if with_vector else PRODUCTS)
    made = [v.aval for v in equation.outvars]
    return (
        name in OPERATIONS
        and all(_is_key(x) or x.dtype.name in DTYPES for x in made)
        and (not in_loop or max((math.prod(x.shape) for x in made), default=0) <= MOST)
    )
