"""How the suite compiles, and in which order its files run."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import jaxlib
import matplotlib
import pytest

from tests import runtime_types

ROOT = Path(__file__).parent
matplotlib.use("Agg")
jax.config.update("jax_debug_key_reuse", True)  # law 7
jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for meshes; the first is used elsewhere

# the files of few, slow tests first, so that no worker is left with one of them at the end
FIRST_FILES = ["test_examples", "test_notebooks", "test_orbax", "test_main"]
# what they hold true bit for bit is held by the compiler's own choices
BITS_FILES = [
    "data/test_host",
    "data/test_tree_sum",
    "loops/test_run",
    "loops/test_same_bits",
    "test_laws",
]
# slow as a whole, and of libraries that come with the extra test-all
SLOW_FILES = ["test_benchmarks", "test_notebooks"]
# half the time to compile; an unknown flag would end the process, so only where they are known
LESS_EFFORT = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
KNOWS_LESS_EFFORT = tuple(map(int, jaxlib.__version__.split(".")[:2])) <= (0, 10)


def pytest_addoption(parser):
    parser.addoption(
        "--group",
        choices=["quick", "slow", "bits"],
        help="which tests, all if not given: quick ones; slow ones (statistics, killed processes, "
        "other libraries); those that compare bits. The first two compile with less effort",
    )
    parser.addoption(
        "--unchecked",
        action="store_true",
        help="do not check the calls of jaxsgd's functions against their annotations",
    )


# a program that another worker, test or notebook compiled in this session is not compiled again
CACHE = {
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def pytest_configure(config):
    if not config.option.unchecked:
        runtime_types.install()
    if not hasattr(config, "workerinput"):
        config.jax_cache = tempfile.mkdtemp(prefix="jaxsgd-tests-")
        for name, value in (CACHE | {"jax_compilation_cache_dir": config.jax_cache}).items():
            os.environ[name.upper()] = str(value)  # for workers, processes and kernels
            jax.config.update(name, value)
    if config.option.group in ("quick", "slow"):
        # kernels are tested by their own file and by those that compare bits
        os.environ.setdefault("JAXSGD_CPU_FUSION", "0")
        if KNOWS_LESS_EFFORT:  # workers and the processes of tests inherit it
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {LESS_EFFORT}".strip()


def pytest_unconfigure(config):
    if hasattr(config, "jax_cache"):
        shutil.rmtree(config.jax_cache, ignore_errors=True)


def pytest_runtest_setup(item):
    if item.get_closest_marker("accelerator") and jax.default_backend() == "cpu":
        pytest.skip("needs a GPU or TPU")


def _group(path):
    """The group of all tests of a file, or None where their marks say it."""
    if not path.is_relative_to(ROOT):
        return None
    name = path.relative_to(ROOT).with_suffix("").as_posix()
    return "bits" if name in BITS_FILES else "slow" if name in SLOW_FILES else None


def pytest_ignore_collect(collection_path, config):
    """Files of other groups are not imported: they import libraries that may be missing."""
    group = _group(collection_path) if collection_path.suffix == ".py" else None
    return True if config.option.group and group not in (None, config.option.group) else None


def pytest_collection_modifyitems(config, items):
    place = {name: i for i, name in enumerate(FIRST_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    if config.option.group is None:
        return
    groups = {
        item: _group(item.path) or ("slow" if item.get_closest_marker("slow") else "quick")
        for item in items
    }
    left_out = [item for item in items if groups[item] != config.option.group]
    items[:] = [item for item in items if groups[item] == config.option.group]
    config.hook.pytest_deselected(items=left_out)
