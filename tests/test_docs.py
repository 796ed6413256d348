"""The documentation site lists every public name once, and every page. `make docs` builds it."""

import inspect
import re
from collections import Counter
from pathlib import Path

import jaxsgd

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def public_names():
    """The dotted names of the API; a module stands for its own public names."""
    for name in jaxsgd.__all__:
        value = getattr(jaxsgd, name)
        if inspect.ismodule(value):
            yield from (f"jaxsgd.{name}.{member}" for member in public_members(value))
        elif name != "__version__":
            yield f"jaxsgd.{name}"


def public_members(module):
    defined_here = (
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )
    return getattr(module, "__all__", list(defined_here))


def test_every_public_name_is_on_one_reference_page():
    pages = (DOCS / "reference").glob("*.md")
    listed = [name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)]
    assert Counter(listed) == Counter(public_names())


def test_the_index_of_the_reference_links_every_public_name():
    index = (DOCS / "reference" / "index.md").read_text()
    linked = re.findall(r"\[`(\S+)`\]\[(\S+)\]", index)
    assert Counter(linked) == Counter(
        (name.removeprefix("jaxsgd."), name) for name in public_names()
    )


def test_every_page_is_in_the_navigation():
    navigation = re.search(r"^nav:\n((?:  .*\n)+)", (ROOT / "mkdocs.yml").read_text(), re.M)[1]
    listed = re.findall(r"\S+\.md$", navigation, re.M)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
