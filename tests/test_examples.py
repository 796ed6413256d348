"""Law 13: every code block of the README and every docstring's example runs."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsgd

ROOT = Path(__file__).parents[1]
README, PAGES = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))
MODULES = [
    m.name for m in pkgutil.walk_packages(jaxsgd.__path__, "jaxsgd.") if "__main__" not in m.name
]


class NearlyEqual(doctest.OutputChecker):
    """Compares the numbers of an example to five digits: the last ones differ between machines."""

    number = re.compile(r"-?\d+\.\d*(?:e-?\d+)?")

    def check_output(self, want, got, optionflags):
        numbers = [[float(x) for x in self.number.findall(text)] for text in (want, got)]
        texts = [" ".join(self.number.sub("#", text).split()) for text in (want, got)]
        return texts[0] == texts[1] and numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {"jax": jax, "jnp": jnp, "optax": optax, "jaxsgd": jaxsgd}
    runner = doctest.DocTestRunner(checker=NearlyEqual(), verbose=False)
    for test in doctest.DocTestFinder().find(module, extraglobs=names):
        runner.run(test)
    assert runner.failures == 0


def test_every_public_name_has_an_example():
    bare = [
        name
        for name in jaxsgd.__all__
        if callable(getattr(jaxsgd, name))
        and ">>>" not in (getattr(jaxsgd, name).__doc__ or "")
        # records and constructors of fields, shown where they are used
        and name
        not in {
            "Batch",
            "Check",
            "Ending",
            "Estimate",
            "CounterSampler",  # the example is Sampler's
            "GradientState",
            "HalvingResult",
            "Loss",
            "ProximalPenalty",
            "SamplerState",
            "Info",
            "Ranked",
            "Result",
            "Rows",  # the example is that of StreamedRows
            "Rung",
            "State",
            "field",
            "number",
            "static",
        }
    ]
    assert not bare


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "page",
    # the pages use libraries of the extra test-all
    [README, *(pytest.param(page, marks=pytest.mark.slow) for page in PAGES)],
    ids=lambda page: page.stem,
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of other libraries
def test_pages(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks(page)
    names: dict = {"__name__": page.stem}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_a_recipe_is_short():
    for page in PAGES[1:]:
        for block in blocks(page):
            assert sum(bool(line.strip()) for line in block.splitlines()) < 25, block
