"""How XLA compiles a run on a CPU: its step alike in every loop, a small run as one kernel.

XLA runs each operation of a CPU program as a task of its own, and those of a loop by its thread
pool: 2 to 5 us per iteration, where the arithmetic of a small step takes 0.3. It compiles a call
marked `xla_cpu_small_call` as one function instead. XLA itself marks loops of up to a kilobyte;
here runs are marked whose operations are small, and of kinds that a kernel can do. Where XLA
refuses a kernel, the run is compiled without it.

JAXSGD_CPU_FUSION=0 in the environment turns this off; `python -m jaxsgd.about` says whether it is
on. All that is assumed of XLA is in the constants below and in `_read`; the canary in
`tests/loops/test_cpu_fusion.py` fails where XLA ignores the marks.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from functools import partial, wraps
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Jaxpr
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, PyTree

from jaxsgd.core import programs
from jaxsgd.core.jaxprs import inner_jaxprs
from jaxsgd.core.programs import Flat, Programs
from jaxsgd.loops import cpu_convolutions

TRIED = (0, 9), (0, 11)  # versions of JAX; another one might make other demands on a kernel
FUNCTION = {"inlineable": "false"}  # marks of a call
KERNEL = FUNCTION | {"xla_cpu_small_call": "true"}
OPTIONS = {  # of a program with a kernel
    "xla_cpu_experimental_ynn_fusion_type": "",  # a library, which a kernel cannot call
    # At level 3 LLVM forms other fused multiply-adds where it inlines a step in another loop. Level
    # 1 takes 0.6 to 1.03 of the time of level 3 (linear models and perceptrons).
    "xla_backend_optimization_level": 1,
}
# The default of an option: JAX refuses to call a program that has options within another program.
ALONE = {"xla_embed_ir_in_executable": False}
MOST = 2**14  # numbers that an operation in a loop makes, or of a matrix times a vector
PRODUCTS = 2**12  # multiplications of a product of matrices; above it the library pays
LONGEST = 1500  # operations; XLA compiles a kernel of many more slowly than their tasks
KEPT = 2**10  # numbers that a step returns although no loop may read them

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
    "sqrt square squeeze stack stop_gradient sub tan tanh threefry2x32 transpose "
    "xla_metadata_value xor".split()
)
DTYPES = frozenset(
    "bool bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 "
    "uint64".split()
)
# operations that call others, or that write in place
CALLS = frozenset(
    "checkpoint closed_call cond core_call custom_jvp_call custom_vjp_call jit pjit remat2 "
    "scan while dynamic_update_slice".split()
)


P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
Form = Literal["inlined", "function", "kernel"]  # how a loop's step is compiled


def compiled_as(form: Form, step: Callable[..., tuple[T, U]]) -> Callable[..., tuple[T, U]]:
    """A loop's step in a form. It takes all that it reads as arguments.

    The step returns two groups of results: those that every loop reads, and those that only some
    loops read. As a separate function it does the same arithmetic in every loop, provided that it
    computes the same results in each. Inlined, it would be fused with what a loop records:
    recording the update norm changed the last bit of Adam's parameters. The second group is left
    out where it is large and nothing reads it. (Returning the updates of a softmax model of 7,850
    parameters makes a step of Adam take 1.3 times as long; the rest is fused the same without it.)
    """
    if form == "inlined":
        return step

    def call(*args: PyTree) -> tuple[T, U]:
        leaves, structure, _ = programs.flatten(args)

        @jax.jit  # `_separate_steps` finds it by its name
        def separate_step(*leaves: Array) -> tuple[T, U]:
            return step(*structure.unflatten(leaves))

        if form == "kernel":
            read_step = jax.jit(lambda *leaves: (separate_step(*leaves), _read(leaves)))
            (always, perhaps), read = _marked(read_step(*leaves), KERNEL)
        else:
            (always, perhaps), read = _marked(separate_step(*leaves), FUNCTION), ()
        if sum(x.size for x in jax.tree.leaves(perhaps)) <= KEPT:
            return _computed((always, perhaps, read))[:2]
        return _computed((always, read))[0], perhaps

    return call


def jit(*, donate: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`core.programs.jit` for a loop, compiled as follows where it runs on one CPU.

    The loop has a static argument `form`, the form of its step. This wrapper sets it, from the step
    alone; callers do not.

        the run is small     the run is a kernel, its step a function in it
        the step is small    the step is a kernel (traced a second time); what is outside of it is
                             compiled by the kernel's options too, which can take 1.5 times as long
        otherwise            the step is a function; slow convolutions are reordered

    A run within a transformation or another program is compiled as usual, with its step inlined:
    the sizes of its operations are not known in advance.
    """

    def decorate(fn: Callable[P, T]) -> Callable[P, T]:
        plain: Any = programs.jit(donate=donate)(fn)
        kept: Programs[list[Callable[..., T]]] = Programs()  # ways to compile a run, the best first

        def ways_of(args: Any, static: dict[str, Any], flat: Flat) -> list[Callable[..., T]]:
            def run_with(form: Form) -> Any:
                return jax.jit(programs.of_leaves(fn, flat.structure, {**static, "form": form}))

            def program(run: Callable[..., T], options: dict[str, Any]) -> Callable[..., T]:
                call = programs.named(fn, lambda *leaves: run(*leaves))
                donated = programs.leaf_numbers(fn, donate, args)
                return jax.jit(call, donate_argnums=donated, compiler_options=options)

            if not all(map(_is_on_one_cpu, flat.leaves)):
                return [program(run_with("inlined"), {})]
            form: Form = "inlined" if why_off() else "function"
            run = run_with(form)
            jaxpr = run.trace(*flat.leaves).jaxpr.jaxpr
            is_slow = cpu_convolutions.are_slow_in(jaxpr)
            large = program(cpu_convolutions.reordered(run) if is_slow else run, ALONE)
            steps = _separate_steps(jaxpr)
            if form == "inlined" or not all(_is_small(step, in_loop=True) for step in steps):
                return [large]
            kernel = [program(_as_kernel(run), OPTIONS)] if _is_small(jaxpr) else []
            return [*kernel, program(run_with("kernel"), OPTIONS), large]

        @wraps(fn)
        def call(*args: P.args, **static: P.kwargs) -> T:
            flat = programs.flatten(args)
            leaves, structure, functions = flat
            if jax.config.jax_disable_jit or any(isinstance(x, Tracer) for x in leaves):  # pyright: ignore[reportAttributeAccessIssue]
                return plain(*args, **static, form="inlined")
            switches = why_off() is None, cpu_convolutions.why_off() is None
            key = switches, structure, *functions, *static.items(), *map(_kind, leaves)
            ways = kept.find(key) or kept.keep(key, ways_of(args, static, flat), functions)
            for i, way in enumerate(ways):
                try:
                    return way(*leaves)
                except ValueError as error:
                    # within another program, none of whose arguments is among these
                    if "top-level" not in str(error):
                        raise
                    return plain(*args, **static, form="inlined")
                except jax.errors.JaxRuntimeError as error:
                    is_donated = any(x.is_deleted() for x in leaves)
                    if way is ways[-1] or is_donated or not _is_refusal(error):
                        raise
                    kept.keep(key, ways[i + 1 :], functions)
            raise AssertionError("the last way returns or raises")

        call.trace = partial(plain.trace, form="inlined")  # pyright: ignore[reportAttributeAccessIssue]
        return call

    return decorate


def _is_refusal(error: Exception) -> bool:
    """Whether XLA could not compile a kernel; otherwise a callback raised, or memory was short."""
    message = str(error)
    return "callback" not in message.lower() and not message.startswith("RESOURCE_EXHAUSTED")


def _as_kernel(run: Callable[..., T]) -> Callable[..., T]:
    program = jax.jit(lambda *args: (run(*args), _read(args)))
    return lambda *args: _computed(_marked(program(*args), KERNEL))[0]


def _marked(results: T, marks: dict[str, str]) -> T:
    """The results of a jitted call, which XLA compiles by `marks`."""
    leaves, tree = jax.tree.flatten(results)
    i = next(i for i, x in enumerate(leaves) if not _is_key(x))
    leaves[i] = set_xla_metadata(leaves[i], **marks)  # of the call that it comes from
    return tree.unflatten(leaves)


def _computed(results: T) -> T:
    """The results, none of which JAX leaves out where it is read nowhere."""
    leaves, tree = jax.tree.flatten(results)
    numbers = iter(lax.optimization_barrier([x for x in leaves if not _is_key(x)]))
    return tree.unflatten([x if _is_key(x) else next(numbers) for x in leaves])


def _read(args: PyTree) -> Bool[Array, ""]:
    """A number (bool[]) from all arguments: XLA aborts if a kernel does not read one of them."""
    read = jnp.zeros((), bool)
    for x in jax.tree.leaves(args):
        read = read ^ ((jax.random.key_data(x) if _is_key(x) else x).ravel()[0] != 0)
    return read


def why_off() -> str | None:
    """Why no program is marked in this process, or None where small ones are."""
    if (off := cpu_convolutions.off_by("JAXSGD_CPU_FUSION")) is not None:
        return off
    if not TRIED[0] <= jax.__version_info__ < TRIED[1]:
        low, high = (".".join(map(str, version)) for version in TRIED)
        return f"it was tried on JAX {low} to below {high}"
    return None


def _kind(x: Array) -> Hashable:
    """What a program is compiled for. The place of a key, which is slow to ask, is left out."""
    dtype = x.dtype
    return x.shape, dtype, x.sharding if isinstance(dtype, np.dtype) else None


def _is_on_one_cpu(x: Array) -> bool:
    """Whether an argument can be one of a kernel."""
    devices = x.devices()
    is_there = len(devices) == 1 and next(iter(devices)).platform == "cpu"
    if not _is_key(x) and isinstance(x.sharding, NamedSharding):
        return False  # on a mesh of one device, whose run is to be that of a larger mesh
    return is_there and x.size > 0 and (_is_key(x) or x.dtype.name in DTYPES)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


def _equations(jaxpr: Jaxpr, in_loop: bool = False) -> Iterator[tuple[Any, bool]]:
    """The equations of a jaxpr and of all within it, and whether they are in a loop."""
    for equation in jaxpr.eqns:
        yield equation, in_loop
        for within in inner_jaxprs(equation.params):
            yield from _equations(within, in_loop or equation.primitive.name in ("scan", "while"))


def _separate_steps(jaxpr: Jaxpr) -> list[Jaxpr]:
    """The steps of `compiled_as` in a program."""
    found = [equation.params for equation, _ in _equations(jaxpr)]
    return [p["jaxpr"].jaxpr for p in found if p.get("name") == "separate_step"]


def _is_small(jaxpr: Jaxpr, in_loop: bool = False) -> bool:
    equations = list(_equations(jaxpr, in_loop))
    return len(equations) <= LONGEST and all(_is_small_operation(*found) for found in equations)


def _is_small_operation(equation: Any, in_loop: bool) -> bool:
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
