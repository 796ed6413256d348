"""Checks of what the methods of a part return, by shapes and dtypes.

`Solver.init` traces one step if a part is custom, which takes about 0.1 s. jaxsgd's own parts are
covered by the tests; of them only the gradient's state, the updates and the state given to a run
are checked.
"""

import inspect
from collections.abc import Callable
from typing import TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jaxsgd.core import programs, validation
from jaxsgd.core.part import wrapped_name
from jaxsgd.core.records import Batch, Estimate, State
from jaxsgd.core.trees import accumulate, accumulator_of, as_arguments, squared_norm
from jaxsgd.data.arrays import BatchRows, as_rows
from jaxsgd.gradients.base import Gradient
from jaxsgd.rules.base import Rule
from jaxsgd.samplers.base import Sampler

P = TypeVar("P")


def is_custom(part: object) -> bool:
    """Whether a part, or one that it wraps, is of a class outside of jaxsgd."""
    if not type(part).__module__.startswith("jaxsgd."):
        return True
    name = wrapped_name(part)
    return name is not None and is_custom(getattr(part, name))


def check_custom_parts(
    gradient: Gradient, sampler: Sampler, rule: Rule, state: State, data: PyTree
) -> None:
    """`check_parts`, where any of the parts is custom."""
    if any(map(is_custom, (gradient, sampler, rule))):
        check_parts(gradient, sampler, rule, state, data)


def check_parts(
    gradient: Gradient, sampler: Sampler, rule: Rule, state: State, data: PyTree
) -> None:
    """Hold what one step returns, by shapes and dtypes alone, against the contracts.

    Numbers of the parts are strong-typed arrays, as they are in a run.

    Raises:
      TypeError, ValueError: a method returned what its contract does not allow; the message names
        it, what it returned, and what was expected.
    """
    custom = [repr(part) for part in (gradient, sampler, rule) if is_custom(part)]
    what = f"{' or '.join(custom) or 'a part'} needs the value of an array"
    with validation.traced(what, "a field that sizes arrays is to be jaxsgd.static()"):
        _trace_step((gradient, sampler, rule), state, data)


def _trace_step(parts: tuple[Gradient, Sampler, Rule], state: State, data: PyTree) -> None:
    rows, sampler = as_rows(data), parts[1]
    if not rows.is_resident:  # one batch of such rows
        length, size = sampler.batch_length, rows.size
        shape = lambda x: jax.ShapeDtypeStruct((length, *x.shape[1:]), x.dtype)  # noqa: E731
        arrays = jax.tree.map(shape, rows.shapes)
        step = lambda parts, state, arrays: _check_step(parts, state, BatchRows(arrays, size))  # noqa: E731
        programs.eval_shape(step, as_arguments(parts), state, arrays)
        return
    programs.eval_shape(_check_step, as_arguments(parts), state, data)


def _check_step(parts: tuple[Gradient, Sampler, Rule], state: State, data: PyTree) -> None:
    gradient, sampler, rule = parts
    for each, own in _levels(sampler, state.sampler):
        batch, after = _two(each, "update", each.update(own), "(Batch, state)")
        check_batch(each, batch, "update")
        _check_state(each, own, after)
        check_batch(each, each.batch(jax.random.key(0), jnp.zeros((), jnp.int32)), "batch")
    batch, _ = sampler.update(state.sampler)
    for each, own in _levels(gradient, state.gradient):
        result = each.update(state.params, data, batch, own)
        estimate, after = _two(each, "update", result, "(Estimate, state)")
        check_estimate(each, estimate, state.params)
        _check_state(each, own, after)
        if each.is_keyed and after.key is not own.key:
            raise TypeError(
                f"{type(each).__name__}.update returned another key, expected the key of its "
                "state: fold the step into it, and keep it"
            )
        _check_scalar(f"{type(each).__name__}.value", each.value(state.params, data, batch, own))
    loss = jnp.zeros((), accumulator_of(state.params))
    grads = accumulate(state.params)
    extra = {"value": loss, "grad": grads, "value_fn": _sum_of_squares}
    for each, own in _levels(rule, state.rule):
        kinds = [p.kind for p in inspect.signature(each.update).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            raise TypeError(
                f"{type(each).__name__}.update takes no **extra, expected "
                "update(self, grads, state, params, **extra)"
            )
        result = each.update(grads, own, state.params, **extra)
        updates, after = _two(each, "update", result, "(updates, state)")
        check_updates(each, updates, state.params)
        _check_state(each, own, after)
        rate = each.reported_learning_rate(own, after)
        if rate is not None and not (_is_array(rate) and rate.shape == ()):
            raise TypeError(
                f"{type(each).__name__}.reported_learning_rate returned {_described(rate)}, "
                "expected a scalar array or None"
            )


def _sum_of_squares(params: PyTree) -> Float[Array, ""]:
    return squared_norm(accumulate(params))


def _levels(part: P, state: PyTree) -> list[tuple[P, PyTree]]:
    """A part and all that it wraps with their states, the innermost first.

    Raises:
      TypeError: a rule's wrapper keeps the state of its rule under another name.
    """
    name = wrapped_name(part)
    if name is None:
        return [(part, state)]
    inner = getattr(state, name, state)
    if inner is state and isinstance(part, Rule):
        raise TypeError(
            f"{type(part).__name__}.init returned a {type(state).__name__} without the field "
            f"{name!r}, expected a NamedTuple with the state of its {name} in that field"
        )
    return [*_levels(getattr(part, name), inner), (part, state)]


def check_batch(sampler: Sampler, batch: object, method: str = "update") -> None:
    """Refuse what is not a `Batch` of int32[B] and float[B] with B the sampler's `batch_length`."""
    where, length = f"{type(sampler).__name__}.{method}", sampler.batch_length
    if not isinstance(batch, Batch):
        raise TypeError(
            f"{where} returned a {type(batch).__name__} as its batch, expected "
            "jaxsgd.Batch(index, weight)"
        )
    for name, x, kind, expected in [
        ("index", batch.index, jnp.integer, f"int32[{length}]"),
        ("weight", batch.weight, jnp.floating, f"float32[{length}]"),
    ]:
        if not isinstance(x, jax.Array | np.ndarray):
            raise TypeError(
                f"{where} returned a batch whose {name} is a {type(x).__name__}, expected "
                f"{expected}"
            )
        shape, dtype = jnp.shape(x), jnp.result_type(x)
        if shape != (length,) or not jnp.issubdtype(dtype, kind):
            raise TypeError(
                f"{where} returned a batch whose {name} is {dtype}{list(shape)}, expected "
                f"{expected}"
            )


def check_estimate(gradient: Gradient, estimate: object, params: PyTree) -> None:
    """Refuse what is not an `Estimate` with a scalar loss and gradients like params."""
    where = f"{type(gradient).__name__}.update"
    if not isinstance(estimate, Estimate):
        raise TypeError(
            f"{where} returned a {type(estimate).__name__} as its estimate, expected "
            "jaxsgd.Estimate(loss, grads)"
        )
    _check_scalar(where, estimate.loss)
    _check_like_params(f"{where} returned grads", estimate.grads, params)


def _check_scalar(where: str, loss: object) -> None:
    if not _is_array(loss):
        raise TypeError(f"{where} returned a loss that is {_described(loss)}, expected a scalar")
    if loss.shape != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"{where} returned a loss of shape {loss.shape} and {loss.dtype}, expected a float "
            "scalar"
        )


def check_updates(rule: Rule, updates: PyTree, params: PyTree) -> None:
    """Refuse updates that are not float arrays of the structure and shapes of params."""
    _check_like_params(f"the rule {rule!r} returned updates", updates, params)


def check_gradient_state(gradient: Gradient, state: PyTree) -> None:
    """Refuse a gradient's state without the fields that every such state has."""
    names = ["model_state", "key"] if gradient.is_keyed else ["model_state"]
    for name in names:
        if not hasattr(state, "_replace") or not hasattr(state, name):
            raise TypeError(
                f"{type(gradient).__name__}.init returned a {type(state).__name__} without the "
                f"field {name!r}, expected a NamedTuple that has it, such as "
                "jaxsgd.GradientState()"
            )


def check_states(
    gradient: Gradient, sampler: Sampler, rule: Rule, state: State, data: PyTree
) -> None:
    """Refuse the state of other parts: it is compared with what their `init` returns.

    Raises:
      ValueError: the state of a part has another structure.
    """
    key, model_state = jax.random.key(0), getattr(state.gradient, "model_state", None)
    parts: dict[str, tuple[object, Callable[[], PyTree], str]] = {
        "rule": (rule, lambda: rule.init(state.params), "rule.init(state.params)"),
        "sampler": (sampler, lambda: sampler.init(key), "sampler_for(data).init(key)"),
        "gradient": (
            gradient,
            lambda: gradient.init(state.params, data, key, model_state),
            "gradient.init(state.params, data, key)",
        ),
    }
    for kind, (part, init, again) in parts.items():
        given = getattr(state, kind)
        if kind != "rule" and is_custom(part):
            continue  # whose init need not be traceable
        try:
            expected = jax.eval_shape(init)
        except (TypeError, ValueError):
            if kind != "gradient":
                raise
            expected = None  # it cannot be made from this state's model state
        if jax.tree.structure(expected) != jax.tree.structure(given):
            continued = f"continue with state._replace({kind}=solver.{again})"
            continued += ", whose schedules start at step 0" if kind == "rule" else ""
            raise ValueError(
                f"the state was made for another {kind}: its {kind} state is {_named(given)}, but "
                f"a {type(part).__name__} like this expects {_named(expected)}; make one with "
                f"solver.init, or {continued}"
            )


def check_drawn(sampler: Sampler, batch: Batch, size: int) -> None:
    """Refuse a concrete batch with rows outside 0..size-1, or whose weights are counts.

    Raises:
      IndexError: such rows.
      ValueError: the weights of several rows are 1 each.
    """
    index, weight = np.asarray(batch.index), np.asarray(batch.weight)
    if index.min() < 0 or index.max() >= size:
        raise IndexError(
            f"the sampler {sampler!r} drew rows {index.min()} to {index.max()}, expected them in "
            f"0..{size - 1}"
        )
    if len(weight) > 1 and np.all(weight == 1):
        raise ValueError(
            f"the sampler {sampler!r} gave each of {len(weight)} rows the weight 1, expected "
            f"1/{len(weight)}: the weights of a batch sum to 1, on average at least"
        )


def check_rows(data: PyTree) -> None:
    """Refuse custom rows on the device whose `take` does not return what their `shapes` say.

    Raises:
      TypeError: another structure, shape or dtype.
    """
    rows = as_rows(data)
    if not is_custom(rows) or rows.is_streamed:
        return
    index = jax.ShapeDtypeStruct((2,), jnp.int32)
    expected = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, *s.shape[1:]), s.dtype), rows.shapes)
    given = jax.eval_shape(lambda index: rows.take(index), index)
    if _form(given) != _form(expected):
        raise TypeError(
            f"{type(rows).__name__}.take of 2 rows returned {_shown(given)}, expected "
            f"{_shown(expected)}, by its shapes"
        )


def _is_array(x: object) -> TypeGuard[jax.Array | np.ndarray | np.generic]:
    """Whether `x` is an array, or stands for one in a trace."""
    return isinstance(x, jax.Array | np.ndarray | np.generic)


def _described(x: object) -> str:
    return f"an array {x.dtype}{list(x.shape)}" if _is_array(x) else f"a {type(x).__name__}"


def _two(part: object, method: str, result: object, expected: str) -> tuple[PyTree, PyTree]:
    if not isinstance(result, tuple) or len(result) != 2 or isinstance(result, Batch | Estimate):
        size = f" of {len(result)}" if type(result) is tuple else ""
        raise TypeError(
            f"{type(part).__name__}.{method} returned {_described(result)}{size}, expected "
            f"the tuple {expected}"
        )
    return result


def _check_state(part: object, before: PyTree, after: PyTree) -> None:
    """A state keeps its structure, shapes and dtypes, or no loop can carry it."""
    if _form(before) != _form(after):
        raise TypeError(
            f"{type(part).__name__}.update returned the state {_shown(after)}, expected one of the "
            f"same structure, shapes and dtypes as before, {_shown(before)}"
        )


def _form(tree: PyTree) -> tuple[object, list[object]]:
    """The structure, shapes and dtypes of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(jnp.shape(x), jnp.result_type(x)) for x in leaves]


def _shown(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)


def _check_like_params(what: str, tree: PyTree, params: PyTree) -> None:
    if jax.tree.structure(tree) != jax.tree.structure(params):
        raise TypeError(
            f"{what} of the structure {jax.tree.structure(tree)}, expected that of params, "
            f"{jax.tree.structure(params)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, param), x in zip(leaves, jax.tree.leaves(tree), strict=True):
        name = f" for params{jax.tree_util.keystr(path)}" if path else ""
        if jnp.shape(x) != jnp.shape(param):
            raise ValueError(
                f"{what} of shape {jnp.shape(x)}{name}, a parameter of shape {jnp.shape(param)}, "
                "expected the same shape"
            )
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"{what} of {jnp.result_type(x)}{name}, expected floats")


def _named(state: PyTree) -> str:
    """A state by its type, and the fields it leaves out."""
    if state is None:
        return "another"
    names = [n for n in getattr(state, "_fields", ()) if getattr(state, n) is None]
    return type(state).__name__ + (f" without {', '.join(names)}" if names else "")
