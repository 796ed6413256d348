"""What a type checker says of a user's code, and that the suite checks types as it runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import jaxsgd
from jaxsgd.core.trees import select
from jaxsgd.losses import weigh
from jaxsgd.sweeps.result import Sweep

ROOT = Path(__file__).parent.parent
MISTAKES = ROOT / "tests" / "typing" / "mistakes.py"


@pytest.fixture(scope="module")
def flagged(tmp_path_factory):
    """The lines that pyright flags, with its default rules, in the mistakes and in the README."""
    folder = tmp_path_factory.mktemp("typing")
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    sources = {"mistakes.py": MISTAKES.read_text(), "readme.py": "\n\n".join(blocks)}
    for name, source in sources.items():
        (folder / name).write_text(source)
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--project", str(folder)]
    command += ["--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(sources), done.stdout + done.stderr
    lines = {name: {} for name in sources}
    for found in report["generalDiagnostics"]:
        name, line = Path(found["file"]).name, found["range"]["start"]["line"]
        lines[name][line] = f"{sources[name].splitlines()[line]}: {found['message']}"
    return lines


def test_a_type_checker_flags_each_mistake_and_nothing_else(flagged):
    lines = MISTAKES.read_text().splitlines()
    expected = {i: line for i, line in enumerate(lines) if line.endswith("# error")}
    assert len(expected) > 30
    assert flagged["mistakes.py"].keys() == expected.keys(), flagged["mistakes.py"]


def test_a_type_checker_has_nothing_to_say_of_the_readme(flagged):
    assert flagged["readme.py"] == {}


def test_calls_are_checked_by_kind_and_by_shape(pytestconfig):
    if pytestconfig.option.unchecked:
        pytest.skip("run with --unchecked")
    tree = jnp.ones(3)
    assert weigh(jnp.ones(3), tree) == 3
    with pytest.raises(jaxtyping.TypeCheckError, match="chosen"):
        select(True, tree, tree)  # a bool, not an array
    with pytest.raises(jaxtyping.TypeCheckError, match="weight"):
        weigh(jnp.ones((1, 3)), tree)  # an axis too many
    with pytest.raises(jaxtyping.TypeCheckError, match="Sweep"):
        Sweep(jnp.ones(3), 2)


def test_a_sentence_of_jaxsgd_comes_before_that_of_the_check():
    with pytest.raises(TypeError, match="SGD's learning_rate is '0.1' of type str"):
        jaxsgd.SGD("0.1")


def test_parts_are_checked_when_made_and_not_when_unflattened():
    rule = jaxsgd.SGD(0.1)
    placeholders = jax.tree.map(lambda leaf: "any", rule)
    assert placeholders.learning_rate == "any"
    assert jax.tree.leaves(jax.tree.map(lambda leaf: None, rule)) == []
