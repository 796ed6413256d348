"""Parts: frozen dataclasses that are pytrees.

Every piece of a run (sampler, gradient, rule, stop, solver) is a class made by `part`. A field that
changes the compiled program is `static()`; every other field is a leaf. A part is therefore an
ordinary argument of a jitted function: a new learning rate compiles nothing, and any number can be
vmapped, moved to a device, saved and differentiated.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from functools import partial, wraps
from typing import Any, Generic, NamedTuple, TypeVar, dataclass_transform

import jax
from jax.tree_util import GetAttrKey

from jaxsgd.core import weak

T = TypeVar("T")


class NumberKey(NamedTuple):
    """The path entry of a `number()` field: an int found there is meant as a float."""

    name: str

    def __str__(self) -> str:
        return f".{self.name}"


class Contract:
    """What all contracts share: a subclass is instantiated only as a part."""

    def __init__(self, *_: object, **__: object) -> None:
        if not dataclasses.is_dataclass(self):
            raise TypeError(
                f"{type(self).__name__} is not a part; did you forget @jaxsgd.part above its class?"
            )


def static(*, converter: Callable[..., object] | None = None, **options: Any) -> Any:
    """A field that is a part of the compiled program, not one of its arguments.

    Args:
      converter: a function `value -> value` that checks and converts what the constructor is
        given. If it has an argument `name`, it is given the field's name for messages, such as
        `"Shuffled's batch_size"`.
      options: as `dataclasses.field` takes them.
    """
    return _field({"static": True}, converter, options)


def number(*, converter: Callable[..., object] | None = None, **options: Any) -> Any:
    """A field that holds a number or a schedule: a leaf, to be swept and differentiated.

    A schedule is kept as it is: `jaxsgd.rate_at(field, step)` evaluates either.

    Args: as `static`.
    """
    return _field({"number": True}, converter or _no_class_or_text, options)


def _no_class_or_text(value: object, name: str) -> object:
    no_class(value, name)
    if isinstance(value, str | bytes):
        raise TypeError(f"{name}: expected a number or a schedule, got {value!r}")
    return value


def no_class(value: object, name: str) -> None:
    """Refuse a class where a schedule, which is an instance of one, is meant."""
    if isinstance(value, type):
        raise TypeError(
            f"{name}: expected a number or a schedule, got the class {value.__name__}; did you "
            "forget to call it?"
        )


def field(
    *, converter: Callable[..., object] | None = None, wraps: bool = False, **options: Any
) -> Any:
    """A field that holds another part, arrays, or any pytree of them.

    Args:
      converter, options: as `static`.
      wraps: this part is a wrapper around the part of the same kind in this field, as
        `EMA(rule)` is around a rule. The state of a wrapper around a rule has a field of the same
        name, with the state of that rule.
    """
    return _field({"wraps": wraps}, converter, options)


def _field(
    metadata: dict[str, bool], converter: Callable[..., object] | None, options: dict[str, Any]
) -> Any:
    return dataclasses.field(metadata=metadata | {"converter": converter}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, number, field))
def part(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree whose leaves are its fields not `static()`.

    The constructor calls the converter of each field, then `__post_init__`. Unflattening calls
    neither, so checks see only values passed to the constructor: no tracers, placeholders of
    `in_axes`, or cotangents. Parts compare by identity, because a comparison of arrays has no
    single truth value. A part is final: a class subclasses contracts, not other parts.

    Raises:
      TypeError: the class subclasses a part, or a field has the name of a method of its contract.

    >>> @jaxsgd.part
    ... class Scale:
    ...     factor: float = jaxsgd.number()
    ...     def __call__(self, step):
    ...         return self.factor * step
    >>> jax.tree.leaves(Scale(2.0))
    [2.0]
    """
    _check_class(cls)
    check = cls.__dict__.get("__post_init__")

    def __post_init__(self: T, *init_only: object) -> None:
        for name, converter in converters.items():
            where = [f"{cls.__name__}'s {name}"] if _takes_name(converter) else []
            set_fields(self, **{name: converter(getattr(self, name), *where)})
        if check is not None:
            check(self, *init_only)

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    converters = {f.name: f.metadata["converter"] for f in fields if f.metadata.get("converter")}
    statics = [f.name for f in fields if f.metadata.get("static")]
    leaves = [f.name for f in fields if not f.metadata.get("static")]
    _annotate_with_converters(cls, converters)
    _name_unknown(cls)
    numbers = {f.name for f in fields if f.metadata.get("number")}
    keys = [NumberKey(name) if name in numbers else GetAttrKey(name) for name in leaves]

    def flatten(part: T) -> tuple[list[object], tuple[object, ...]]:
        values = tuple(getattr(part, name) for name in statics)
        return [getattr(part, name) for name in leaves], weak.referred_to(values)

    def flatten_with_keys(part: T) -> tuple[list[tuple[object, object]], tuple[object, ...]]:
        children, aux = flatten(part)
        return list(zip(keys, children, strict=True)), aux

    def unflatten(aux: tuple[object, ...], children: Iterable[object]) -> T:
        part = object.__new__(cls)
        values = weak.restored(aux)
        set_fields(part, **dict(zip(leaves + statics, (*children, *values), strict=True)))
        return part

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _check_class(cls: type) -> None:
    """Refuse a subclass of a part; keep a field from taking a contract's attribute as its default.

    A dataclass takes the inherited attribute of a field's name, such as `Gradient.loss`, as the
    field's default.
    """
    for base in cls.__mro__[1:]:
        if dataclasses.is_dataclass(base):
            raise TypeError(
                f"{cls.__name__} subclasses the part {base.__name__}, expected a contract: a part "
                "is final; hold it in a field instead"
            )
    for name in inspect.get_annotations(cls):
        if name in cls.__dict__ or not hasattr(cls, name):
            continue
        if inspect.isfunction(inspect.getattr_static(cls, name)):
            raise TypeError(
                f"{cls.__name__}'s field {name!r} has the name of a method of its contract, "
                "expected another name"
            )
        setattr(cls, name, dataclasses.field())


def _takes_name(converter: Callable[..., object]) -> bool:
    """Whether a converter takes the field's name, for its messages."""
    try:
        return "name" in inspect.signature(converter).parameters
    except (TypeError, ValueError):
        return False


def _annotate_with_converters(cls: type, converters: dict[str, Callable[..., object]]) -> None:
    """Annotate the constructor, as `help` shows it, with what the converters of fields take."""
    for name, converter in converters.items():
        annotations = getattr(converter, "__annotations__", {})
        first = next(iter(annotations), "return")
        if first != "return":
            cls.__init__.__annotations__[name] = annotations[first]


def _name_unknown(cls: type) -> None:
    """Let the constructor refuse a keyword that it does not take by a list of those it takes.

    A class may say in `_elsewhere` which part has a field that users look for in it.
    """
    construct, elsewhere = cls.__init__, getattr(cls, "_elsewhere", {})
    parameters = list(inspect.signature(construct).parameters.values())[1:]
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
        return
    takes = [parameter.name for parameter in parameters]

    @wraps(construct)
    def __init__(self: object, *args: object, **named: object) -> None:
        for name in named:
            if name not in takes:
                hint = f"; see {elsewhere[name]}" if name in elsewhere else ""
                raise TypeError(
                    f"{cls.__name__} takes no {name!r}, expected {', '.join(takes)}{hint}"
                )
        construct(self, *args, **named)

    cls.__init__ = __init__


def set_fields(part: object, /, **values: object) -> None:
    """Set fields of a frozen part that is being made: derived fields, in `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(part, name, value)


class default_property(Generic[T]):
    """A property of a contract that a field or a property of the same name may replace.

    A plain `property` cannot be replaced by a field: it would refuse that the field is set.
    """

    def __init__(self, get: Callable[[Any], T]):
        self.get = get
        self.__doc__ = get.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> T:
        return self.get(instance) if instance is not None else self  # pyright: ignore[reportReturnType]


def wrapped_name(part: object) -> str | None:
    """The name of the field that holds the part which `part` wraps, or None."""
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    return next((f.name for f in fields if f.metadata.get("wraps")), None)


def innermost(part: T) -> T:
    """The part that is inside all wrappers: `SGD(0.1)` of `EMA(Proximal(SGD(0.1), L1(1e-3)))`."""
    while (name := wrapped_name(part)) is not None:
        part = getattr(part, name)
    return part


@part
class Function(Generic[T]):
    """A plain function as a part: static, and equal only to the same function object."""

    fn: Callable[..., T] = static()

    def __call__(self, *args: object, **named: object) -> T:
        return self.fn(*args, **named)

    def __repr__(self) -> str:
        return getattr(self.fn, "__qualname__", repr(self.fn))


def as_callable(
    fn: Callable[..., T], name: str = "fn", arguments: tuple[str, ...] | None = None
) -> Callable[..., T]:
    """A callable pytree as it is; a plain function wrapped as a static part.

    Raises:
      TypeError: `fn` is not callable, is a `functools.partial`, has leaves that are not arrays, or
        does not take `arguments`, if they are given.
    """
    if isinstance(fn, partial) and not isinstance(fn, jax.tree_util.Partial):
        raise TypeError(
            f"{name} is a functools.partial, which would hide its arrays as constants and compile "
            "again for each new one; use jax.tree_util.Partial(fn, ...), whose arguments are leaves"
        )
    if isinstance(fn, type):
        raise TypeError(
            f"{name} is the class {fn.__name__}, expected a function; did you forget to call it?"
        )
    if not callable(fn):
        raise TypeError(f"{name} is {fn!r} of type {type(fn).__name__}, expected a function")
    if arguments is not None:
        check_call(fn, name, arguments)
    if is_leaf(fn):
        return Function(fn)
    for path, leaf in jax.tree_util.tree_leaves_with_path(fn):
        if callable(leaf) or isinstance(leaf, str):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {leaf!r}, which is no array: a callable "
                "pytree's leaves are arguments of the compiled run, so mark this field as static"
            )
    return fn


def as_optional_callable(
    fn: Callable[..., T] | None, name: str = "fn", arguments: tuple[str, ...] | None = None
) -> Callable[..., T] | None:
    """`as_callable`, where None stays None."""
    return None if fn is None else as_callable(fn, name, arguments)


def check_call(
    fn: object, name: str, arguments: tuple[str, ...], called: str | None = None, hint: str = ""
) -> None:
    """Refuse what is not callable with as many arguments.

    In the message it is `called` so, by default by its name, and `hint` comes at the end.
    """
    if not callable(fn):
        raise TypeError(f"{name} is {fn!r} of type {type(fn).__name__}, expected a function")
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # of a compiled function, say
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(
            f"{name} takes the arguments {signature}, but is called as "
            f"{called or name}({', '.join(arguments)}){hint}"
        ) from None


def is_leaf(value: object) -> bool:
    """Whether JAX takes a value for a leaf: an instance of a class without `@part`, a function."""
    return jax.tree_util.all_leaves([value])


def as_contract(value: object, contract: type[T], name: str, example: str) -> T:
    """A part that implements a contract, as it is; anything else is refused.

    Args:
      value: what the user gave.
      contract: `Sampler`, `Gradient`, `Rule` or `Stop`.
      name: the argument's name, for messages.
      example: an expression that makes such a part, for messages.

    Raises:
      TypeError: a class in the place of an instance, an instance of another class, or one whose
        class was not decorated with `@part`.
    """
    kind = contract.__name__
    if isinstance(value, type):
        raise TypeError(
            f"{name}: expected an instance of jaxsgd.{kind}, such as {example}, got the class "
            f"{value.__name__}; did you forget to call it?"
        )
    if not isinstance(value, contract):
        raise TypeError(
            f"{name}: expected a jaxsgd.{kind}, such as {example}, got {value!r} of type "
            f"{type(value).__name__}; a custom one subclasses jaxsgd.{kind}"
        )
    for attribute in inspect.get_annotations(contract):
        if not hasattr(type(value), attribute) and attribute not in vars(value):
            raise TypeError(
                f"{name}: {type(value).__name__} has no {attribute!r}, expected the field or "
                f"property {attribute!r} that every {kind} has"
            )
    if is_leaf(value):
        raise TypeError(
            f"{name}: {type(value).__name__} is not a pytree; did you forget @jaxsgd.part above "
            "its class?"
        )
    return value
