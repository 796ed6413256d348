"""How the suite compiles, and in which order its files run."""

import os
import shutil
import tempfile

import jax
import jaxlib
import matplotlib
import pytest

from tests import runtime_types

matplotlib.use("Agg")
jax.config.update("jax_debug_key_reuse", True)  # law 7
jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for meshes; the first is used elsewhere

# the files of few, slow tests first, so that no worker is left with one of them at the end
SLOW_FILES = ["test_examples", "test_notebooks", "test_orbax", "test_main"]
# what they hold true bit for bit is held by the compiler's own choices
BITS = {
    "tests/test_laws.py",
    "tests/data/test_host.py",
    "tests/loops/test_run.py",
    "tests/loops/test_same_bits.py",
}
# half the time to compile; an unknown flag would end the process, so only where they are known
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
KNOWS_QUICK = tuple(map(int, jaxlib.__version__.split(".")[:2])) <= (0, 10)


def pytest_addoption(parser):
    parser.addoption(
        "--quick",
        action="store_true",
        help="compile with less effort, and leave out the files that compare bits",
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
    if config.option.quick:  # kernels are tested by their own file and by those of BITS
        os.environ.setdefault("JAXSGD_CPU_FUSION", "0")
    if config.option.quick and KNOWS_QUICK:  # workers and the processes of tests inherit it
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()


def pytest_unconfigure(config):
    if hasattr(config, "jax_cache"):
        shutil.rmtree(config.jax_cache, ignore_errors=True)


def pytest_runtest_setup(item):
    if item.get_closest_marker("accelerator") and jax.default_backend() == "cpu":
        pytest.skip("needs a GPU or TPU")


def _name(item):
    return item.path.relative_to(item.config.rootpath).as_posix()


def pytest_collection_modifyitems(config, items):
    place = {name: i for i, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    if config.option.quick:
        left_out = [item for item in items if _name(item) in BITS]
        items[:] = [item for item in items if _name(item) not in BITS]
        config.hook.pytest_deselected(items=left_out)
