"""Every example in a docstring runs, with these names at hand."""

import os

import jax
import matplotlib
import pytest

matplotlib.use("Agg")
jax.config.update("jax_debug_key_reuse", True)  # law 7

SLOW_FILES = ["test_notebooks", "test_checkpoints", "test_examples", "test_cli"]


def pytest_collection_modifyitems(items):
    """The files of few, slow tests first, so that no worker is left with one of them at the end."""
    place = {name: i for i, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture
def quick_programs(monkeypatch):
    """Processes started here compile with less effort: they show that things run, not how fast."""
    flags = os.environ.get("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_backend_optimization_level=0")
