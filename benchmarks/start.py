"""A new process for each run: imports, compilation, 20 epochs of the work "seed", printing."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.tasks import Start


def cold(task: Start, data: Any, contender: str, cache: str | None = None) -> Callable[[int], Any]:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    command = [sys.executable, "-m", "benchmarks.start", contender]

    def run(seed: int) -> Any:
        told = subprocess.run(
            [*command, str(seed)], check=True, capture_output=True, text=True, env=environment
        )
        layers = json.loads(told.stdout.splitlines()[-1])
        return [(np.array(w), np.array(b)) for w, b in layers]

    return lambda seed: partial(run, seed)


def cached(task: Start, data: Any, contender: str) -> Callable[[int], Any]:
    """With JAX's persistent compilation cache, filled by the first run."""
    folder = tempfile.TemporaryDirectory()
    prepare = cold(task, data, contender, folder.name)
    prepare.folder = folder  # lives as long as the contender
    return prepare


jaxsgd = partial(cold, contender="ours:shuffled")
jaxsgd_cached = partial(cached, contender="ours:shuffled")
optax_scan = partial(cold, contender="handwritten:optax_scan")
optax_scan_cached = partial(cached, contender="handwritten:optax_scan")
tuned_scan = partial(cold, contender="tuned:scan")
loader = partial(cold, contender="pytorch:loader")
tuned = partial(cold, contender="pytorch:one_thread")
numpy_loop = partial(cold, contender="handwritten:numpy_loop")


def main() -> None:
    contender, seed = sys.argv[1:]
    module, function = contender.split(":")
    task = Start().training
    make = getattr(import_module(f"benchmarks.{module}"), function)
    layers = make(task, task.data())(int(seed))()
    print(json.dumps([(np.asarray(w).tolist(), np.asarray(b).tolist()) for w, b in layers]))


if __name__ == "__main__":
    main()
