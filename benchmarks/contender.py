"""One contender as a process: set up once, then one run for each seed read from stdin.

Prints one line of JSON for the start (what it cost), then one for each run.
"""

import json
import resource
import sys
import time
from importlib import import_module
from typing import Any

from benchmarks.tasks import Cannot
from benchmarks.works import CONTENDERS, WORKS


def clock(fn: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = fn()
    return time.perf_counter() - start, result


def compiling() -> list[float]:
    """A list that fills with the seconds XLA compiles, where JAX is loaded."""
    seconds: list[float] = []
    if "jax" in sys.modules:
        sys.modules["jax"].monitoring.register_event_duration_secs_listener(
            lambda name, value, **_: seconds.append(value) if "backend_compile" in name else None
        )
    return seconds


def peak_mib() -> float:
    """The most memory this process held, on the accelerator where there is one."""
    if "jax" in sys.modules:
        stats = sys.modules["jax"].local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return stats["peak_bytes_in_use"] / 2**20
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10
    used = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return used / unit


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    work, case, name = sys.argv[1:]
    task = WORKS[work].cases[case]
    module, function = CONTENDERS[name].split(":")
    try:
        make = getattr(import_module(f"benchmarks.{module}"), function)
        data = task.data()
        prepare = make(task, data)
        compile_seconds = compiling()
        first, _ = clock(lambda: prepare(0)())
    except Cannot as refusal:
        return tell(cannot=str(refusal))
    except ModuleNotFoundError as missing:
        return tell(cannot=f"{missing.name} is not installed; it comes with the extra bench")
    tell(first=first, compile=sum(compile_seconds), memory=peak_mib())
    for line in sys.stdin:
        run = prepare(int(line))
        seconds, result = clock(run)
        tell(seconds=seconds, objective=task.objective(result, data))


if __name__ == "__main__":
    main()
