"""The annotations of jaxsgd's functions, held against what they are called with and return.

jaxtyping's import hook decorates every function and constructor as jaxsgd is imported, and beartype
checks each call, shapes included. It does so after the call: a wrong argument first meets the
sentence that jaxsgd raises, and where none is raised, the annotation is wrong or a check is missing.
"""

from pathlib import Path
from typing import Any, Self

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

ROOT = Path(__file__).parent.parent
LEFT_OUT = {  # they are called for each equation of a program, or each time a part is flattened
    "jaxsgd.core.jaxprs",
    "jaxsgd.core.part",
    "jaxsgd.loops.cpu_fusion",
}
checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is meant


def install():
    """Check all calls of jaxsgd, which is not imported yet, in this process."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("jaxsgd/**/*.py")]
    modules = {".".join(path.parts) for path in paths if path.name != "__init__"}
    install_import_hook(sorted(modules - LEFT_OUT), f"{__name__}.check")


def check(fn):
    """`fn`, a function without a body of the signature to be checked, which beartype decorates.

    Of each function of jaxsgd jaxtyping makes two: one to be called before it, and one after it,
    which takes the result as the keyword `ret0`. Nested functions are not checked: each execution
    would decorate them anew.
    """
    code = fn.__code__
    keywords = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
    if "ret0" not in keywords or "<locals>" in fn.__qualname__:
        return fn
    for name, annotation in fn.__annotations__.items():
        if annotation is Self:  # which beartype takes in whole classes only
            fn.__annotations__[name] = Any
    checked = None

    def on_first_call(*args, **kwargs):  # half of the functions are never called by a worker
        nonlocal checked
        checked = checked or checker(fn)
        return checked(*args, **kwargs)

    return on_first_call
