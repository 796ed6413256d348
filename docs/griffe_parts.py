"""A Griffe extension that shows `@jaxsgd.part` classes and records as the reference needs them.

Griffe reads the source without importing it, so it does not know what `part` adds to a class.
"""

import re
from textwrap import indent
from typing import Any

import griffe

FIELDS = {f"jaxsgd.core.part.{name}" for name in ("static", "number", "field")}


class Parts(griffe.Extension):
    """Adds constructors to parts, field tables to records, and headings to examples."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        visit(pkg)


def visit(obj: Any) -> None:
    """Rewrite an object and, for a module or a class, all of its members."""
    for member in list(obj.members.values()):
        if member.is_alias:
            continue
        if member.is_class:
            if has_decorator(member, "jaxsgd.core.part.part") and "__init__" not in member.members:
                member.set_member("__init__", constructor(member))
            if "NamedTuple" in map(str, member.bases):
                add_field_table(member)
        if has_decorator(member, "jaxsgd.core.part.default_property"):
            obj.set_member(member.name, as_property(member))
        if member.docstring:
            member.docstring.value = as_google_style(member.docstring.value)
        if member.is_module or member.is_class:
            visit(member)


def has_decorator(obj: Any, path: str) -> bool:
    """Whether a class or function has the decorator with this path."""
    return any(decorator.callable_path == path for decorator in getattr(obj, "decorators", ()))


def constructor(cls: griffe.Class) -> griffe.Function:
    """The `__init__` that `part` makes from the fields of a class, as a dataclass has it."""
    positional = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    keyword_only = []
    for member in cls.members.values():
        if not member.is_attribute or member.annotation is None or "property" in member.labels:
            continue
        options, default = {}, member.value
        if isinstance(default, griffe.ExprCall) and default.canonical_path in FIELDS:
            keywords = [x for x in default.arguments if isinstance(x, griffe.ExprKeyword)]
            options = {x.name: x.value for x in keywords}
            default = options.get("default")
            if "default_factory" in options:
                default = griffe.ExprCall(options["default_factory"], [])
        if str(options.get("init")) == "False":
            continue
        is_keyword_only = str(options.get("kw_only")) == "True"
        kind = griffe.ParameterKind["keyword_only" if is_keyword_only else "positional_or_keyword"]
        parameter = griffe.Parameter(
            member.name, annotation=member.annotation, kind=kind, default=default
        )
        (keyword_only if is_keyword_only else positional).append(parameter)
    parameters = griffe.Parameters(*positional, *keyword_only)
    return griffe.Function(
        "__init__",
        lineno=cls.lineno,  # the source shown with the constructor is that of the class
        endlineno=cls.endlineno,
        parameters=parameters,
        returns="None",
        parent=cls,
    )


def add_field_table(record: griffe.Class) -> None:
    """Add an `Attributes` section, described by the comments after a record's fields."""
    if record.docstring is None or re.search("^Attributes:", record.docstring.value, re.M):
        return
    lines = []
    for member in record.members.values():
        if member.is_attribute and "property" not in member.labels:
            comments = member.source.rstrip().split("  # ")[1:]
            notes = [x for x in comments if not x.startswith(("type: ", "pyright: ", "noqa"))]
            lines.append(f"  {member.name}: {'; '.join(notes)}")
    head, *examples = re.split("^(?=>>> )", record.docstring.value, maxsplit=1, flags=re.M)
    record.docstring.value = "\n".join([head, "\nAttributes:", *lines, "", *examples])


def as_property(function: griffe.Function) -> griffe.Attribute:
    """A `default_property` as Griffe holds a property."""
    attribute = griffe.Attribute(
        function.name,
        lineno=function.lineno,
        endlineno=function.endlineno,
        annotation=function.returns,
        docstring=function.docstring,
    )
    attribute.labels |= {"property"}
    return attribute


def as_google_style(text: str) -> str:
    """A docstring with the sections that the Google style leaves implicit.

    The doctests at its end become an `Examples` section. A one-line `Args: as ...` becomes a
    paragraph, the items under `Attributes with defaults:` a list, and `a, b: text` two items.
    """
    text = re.sub(r"^(Args|Args, Raises|Params): (?=\S)", r"**\1:** ", text, flags=re.M)
    text = re.sub(r"^(Attributes [^\n]+:)\n((?:  [^\n]*\n?)+)", as_list, text, flags=re.M)
    text = re.sub(r"^  (\w+(?:, \w+)+)(:.*(?:\n    .*)*)", split_item, text, flags=re.M)
    start = re.search(r"^>>> ", text, re.M)
    if start is None:
        return text
    return text[: start.start()] + "Examples:\n" + indent(text[start.start() :], "  ")


def as_list(match: re.Match[str]) -> str:
    """A heading with `  name: text` items, as Markdown."""
    items = re.sub(r"^  (\w+): ", r"- `\1`: ", match[2], flags=re.M)
    return f"**{match[1]}**\n\n{items}"


def split_item(match: re.Match[str]) -> str:
    """An item `  a, b: text` as one item for each name."""
    return "\n".join(f"  {name}{match[2]}" for name in match[1].split(", "))
