"""Optax's transformations as rules: from a factory, with numbers as leaves, or ready-made.

Params and grads are cast to the accumulator's dtype before a transformation gets them, so that its
accumulators and numbers are float32 (float64 where the parameter is float64).
"""

import inspect
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import DictKey
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxsgd.core import validation
from jaxsgd.core.part import NumberKey, as_callable, as_contract, no_class, part, set_fields, static
from jaxsgd.core.trees import accumulate, accumulator_of, strong
from jaxsgd.rules.base import Rule
from jaxsgd.schedules import Rate, rate_at

Factory = Callable[..., optax.GradientTransformation]
# of `FromOptax`: its factory, the names of its numbers, and its options with their types
Aux = tuple[Factory, tuple[str, ...], tuple[tuple[str, type, Hashable], ...]]


@jax.tree_util.register_pytree_with_keys_class
class FromOptax(Rule):
    """Any Optax factory as a rule whose numbers are leaves: another number compiles nothing.

    `FromOptax(optax.adamw, learning_rate=1e-3, weight_decay=1e-4)` builds the transformation inside
    the compiled run. The factory may be a custom function that returns a chain. Floats, float
    arrays and schedules that are pytrees are leaves; an int is a leaf where the parameter's name or
    annotation makes it a rate; every other int, flag, string and function is static.

    Args:
      factory: a function of keywords that returns a `GradientTransformation`; static.
      static: the names of numbers that are static, for a factory that needs their values.
      hyperparameters: the factory's keywords.

    Raises:
      TypeError: a keyword that the factory does not take, or a traced number whose value the
        factory needs.
      ValueError: a learning rate that is negative or not finite.

    >>> rule = jaxsgd.FromOptax(optax.adamw, learning_rate=1e-3, nesterov=True)
    >>> jax.tree.leaves(rule)
    [0.001]
    """

    factory: Factory
    numbers: dict[str, PyTree]
    options: dict[str, Hashable]

    def __init__(
        self, factory: Factory, *, static: Collection[str] = (), **hyperparameters: PyTree
    ):
        if not callable(factory):
            raise TypeError(
                f"FromOptax was given a {type(factory).__name__}, expected a factory with its "
                "numbers as keywords, such as FromOptax(optax.adam, learning_rate=1e-3)"
            )
        name = getattr(factory, "__name__", repr(factory))
        parameters = _parameters(factory, name, hyperparameters, static)
        numbers = {
            key: value
            for key, value in hyperparameters.items()
            if key not in static and _is_number(value, parameters.get(key))
        }
        rate = hyperparameters.get("learning_rate")
        no_class(rate, f"{name}'s learning_rate")
        is_own = "learning_rate" in static or isinstance(rate, list | tuple | dict)
        if not callable(rate) and not is_own:  # what a custom factory understands
            validation.number(rate, f"{name}'s learning_rate")
        for key, value in hyperparameters.items():
            if callable(value):
                as_callable(value, f"{name}'s {key}")
        options = {k: v for k, v in hyperparameters.items() if k not in numbers}
        for key, value in options.items():
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{name}'s {key} is a {type(value).__name__}, expected a number, an array or "
                    "a hashable value; or close over it in a custom factory"
                ) from None
        set_fields(self, factory=factory, numbers=numbers, options=options)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"FromOptax is frozen; cannot set {name}")

    def __repr__(self) -> str:
        name = getattr(self.factory, "__name__", repr(self.factory))
        given = [f"{key}={value!r}" for key, value in (self.numbers | self.options).items()]
        return f"FromOptax({', '.join([name, *given])})"

    def init(self, params: PyTree) -> PyTree:
        """The transformation's state, its accumulators in the accumulator's dtype."""
        with self._traced_numbers():
            return _init(self._build(params), params)

    def update(
        self, grads: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        """The transformation's updates, and the state after them."""
        with self._traced_numbers():
            return _update(self._build(grads), grads, state, params, extra)

    def reported_learning_rate(self, before: PyTree, after: PyTree) -> Float[Array, ""] | None:
        """The learning rate that the state keeps, or that one of Optax's own factories was given.

        None for a custom factory, which may scale what it is given.
        """
        kept_rate = _rate_in_state(after)
        if kept_rate is not None:
            return kept_rate
        factory = getattr(self.factory, "func", self.factory)  # Optax's own may be partials
        if not (getattr(factory, "__module__", None) or "").startswith("optax."):
            return None
        rate = cast(Rate | None, (self.numbers | self.options).get("learning_rate"))
        is_count = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
        leaves = jax.tree.leaves(before, is_leaf=is_count)
        count = next((leaf.count for leaf in leaves if is_count(leaf)), None)
        if rate is None or (callable(rate) and count is None):
            return None
        return rate_at(rate, count)[0]

    def _build(self, tree: PyTree) -> optax.GradientTransformation:
        dtype = accumulator_of(tree)

        def as_dtype(value: ArrayLike) -> jax.Array:
            value = jnp.asarray(value)
            return value.astype(dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value

        numbers = {
            k: v if callable(v) else jax.tree.map(as_dtype, v) for k, v in self.numbers.items()
        }
        return self.factory(**numbers, **self.options)

    @contextmanager
    def _traced_numbers(self) -> Iterator[None]:
        """Turns JAX's error about the value of a traced number into a sentence."""
        what = f"{self!r} needs the value of one of its numbers ({', '.join(self.numbers)})"
        instead = "name that number in static=(...); each value then compiles anew"
        with validation.traced(what, instead):
            yield

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Hashable, PyTree]], Aux]:
        # sorted: the order of keywords does not matter; with types: 1 == True
        options = tuple((k, type(v), v) for k, v in sorted(self.options.items()))
        children = [(_path_key(k, v), v) for k, v in sorted(self.numbers.items())]
        return children, (self.factory, tuple(sorted(self.numbers)), options)

    @classmethod
    def tree_unflatten(cls, aux: Aux, children: Iterable[PyTree]) -> "FromOptax":
        rule = object.__new__(cls)
        factory, names, typed = aux
        numbers = dict(zip(names, children, strict=True))
        options = {name: value for name, _, value in typed}
        set_fields(rule, factory=factory, numbers=numbers, options=options)
        return rule


@part
class Transformation(Rule):
    """A ready-made Optax transformation as a static part.

    Its numbers are constants of the compiled run. Two transformations are the same only if their
    functions are the same objects, so each new one compiles again. A solver wraps
    `rule=optax.adam(1e-3)` in this class; `FromOptax(optax.adam, learning_rate=1e-3)` keeps the
    rate a leaf.

    >>> rule = jaxsgd.Solver(lambda p, row: p, jaxsgd.FullBatch(), optax.adam(1e-3)).rule
    >>> jax.tree.leaves(rule)
    []
    """

    transformation: optax.GradientTransformation = static()

    def init(self, params: PyTree) -> PyTree:
        """The transformation's state, its accumulators in the accumulator's dtype."""
        return _init(self.transformation, params)

    def update(
        self, grads: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        """The transformation's updates, and the state after them."""
        return _update(self.transformation, grads, state, params, extra)

    def reported_learning_rate(self, before: PyTree, after: PyTree) -> Float[Array, ""] | None:
        """The learning rate that the state keeps; None where it is a constant of a closure."""
        return _rate_in_state(after)


def as_rule(
    rule: Rule | optax.GradientTransformation | optax.MultiSteps, name: str = "rule"
) -> Rule:
    """A rule as it is; a ready-made Optax transformation as a static part.

    Raises:
      TypeError: it is neither.
    """
    if isinstance(rule, optax.MultiSteps):
        rule = rule.gradient_transformation()
    if isinstance(rule, optax.GradientTransformation):
        return Transformation(rule)
    if inspect.isfunction(rule):
        raise TypeError(
            f"{name} is the function {rule.__qualname__}, expected what it returns; did you forget "
            f"to call it, as in optax.adam(1e-3)?"
        )
    return as_contract(rule, Rule, name, "jaxsgd.SGD(0.1) or optax.adam(1e-3)")


def _rate_in_state(after: PyTree) -> Float[Array, ""] | None:
    """The learning rate that Optax keeps in a state: of `inject_hyperparams`, of a line search."""
    found = [leaf for leaf in jax.tree.leaves(after, is_leaf=_has_rate) if _has_rate(leaf)]
    if not found:
        return None
    state = found[-1]
    return state.hyperparams["learning_rate"] if _has_hyperparams(state) else state.learning_rate


def _has_rate(node: PyTree) -> bool:
    names = getattr(node, "_fields", ())
    return "learning_rate" in names or (
        _has_hyperparams(node) and "learning_rate" in node.hyperparams
    )


def _has_hyperparams(node: PyTree) -> bool:
    return "hyperparams" in getattr(node, "_fields", ())


def _init(transformation: optax.GradientTransformation, params: PyTree) -> PyTree:
    return _strong(transformation.init(accumulate(params)))


def _update(
    transformation: optax.GradientTransformation,
    grads: PyTree,
    state: PyTree,
    params: PyTree,
    extra: dict[str, PyTree],
) -> tuple[PyTree, PyTree]:
    transformation = optax.with_extra_args_support(transformation)
    updates, new = transformation.update(accumulate(grads), state, accumulate(params), **extra)
    return updates, _strong(new)


def _strong(state: PyTree) -> PyTree:
    return jax.tree.map(lambda x: strong(jnp.asarray(x)), state)


def _parameters(
    factory: Factory, name: str, given: Mapping[str, PyTree], static: Collection[str]
) -> dict[str, inspect.Parameter]:
    """The parameters of a factory, once the keywords that it is given are checked."""
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return {}
    required = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    for key in required:
        if key not in given:
            raise TypeError(f"{name} needs {key!r}; give it as a keyword of FromOptax")
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in given:
        if key not in parameters and not takes_any:
            raise TypeError(f"{name} takes no {key!r}; it takes {', '.join(parameters)}")
    for key in static:
        if key not in given:
            raise TypeError(
                f"static names {key!r}, which is not among the keywords given to {name}"
            )
    return parameters


def _path_key(name: str, value: PyTree) -> Hashable:
    """The path entry of a leaf: that of a number unless it is a key or an array of ints."""
    dtype, is_scalar = getattr(value, "dtype", np.dtype(float)), getattr(value, "ndim", 0) == 0
    is_int = jnp.issubdtype(dtype, jnp.integer) and is_scalar
    return NumberKey(name) if is_int or jnp.issubdtype(dtype, jnp.floating) else DictKey(name)


def _is_number(value: PyTree, parameter: inspect.Parameter | None) -> bool:
    """Whether a hyperparameter is a leaf."""
    if isinstance(value, bool | np.bool_ | str | None):
        return False
    if callable(value):
        return not jax.tree_util.all_leaves([value])  # a schedule that is a pytree
    if isinstance(value, int | np.integer):
        annotation = str(parameter.annotation) if parameter is not None else ""
        name = parameter.name if parameter is not None else ""
        return "learning_rate" in name or "float" in annotation or "ScalarOrSchedule" in annotation
    return isinstance(value, float | np.floating | np.ndarray | jax.Array)
