"""The command `python -m benchmarks`."""

import argparse
import json
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

from benchmarks import contest, report
from benchmarks.works import WORKS

PACKAGES = ("jax", "optax", "numpy", "numba", "torch", "keras", "scikit-learn", "grain")


def about(device: str) -> dict[str, str]:
    """The machine and the versions."""
    told = {"device": device, "processor": report.processor(), "system": platform.system(),
            "Python": platform.python_version()}  # fmt: skip
    for package in PACKAGES:
        try:
            told[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return told


def say(words: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="jaxsgd beside what a user would pick instead. Each contender is a process of\n"
        "its own; they take turns, do the same work, and must reach the same objective.\n"
        "Tables, pictures and all measurements are written to benchmarks/results, into a folder\n"
        "for each processor or accelerator.",
        epilog="works, each a few minutes:\n"
        + "\n".join(f"  {name:18}{work.title}" for name, work in WORKS.items())
        + "\n\nwhat holds a step: python -m benchmarks.limits"
        + "\nothers: python -m benchmarks.convolutions, .libraries, .steps, .gradients, .streaming,"
        + "\n.devices",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("works", nargs="*", metavar="WORK", help="which (all, if none is named)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (5)")
    parser.add_argument("--no-write", action="store_true", help="print, and write nothing")
    parser.add_argument("--readme", action="store_true", help="only write the README's table anew")
    options = parser.parse_args()
    if options.readme:
        if options.works or options.no_write:
            parser.error("--readme goes alone: it only writes the README's table anew")
        path = report.folder("cpu")
        missing = [name for name, _ in report.HIGHLIGHTS if name not in report.load(path)]
        if missing:
            parser.error(
                f"there are no results of {missing[0]} yet: python -m benchmarks {missing[0]}"
            )
        report.write_readme(path)
        return 0
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}, expected at least 1")
    unknown = [name for name in options.works if name not in WORKS]
    if unknown:
        parser.error(f"no work is named {unknown[0]!r}; there are {', '.join(WORKS)}")

    command = [sys.executable, "-m", "benchmarks.machine"]
    machine = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    device = machine.pop("device")
    is_fine = True
    for work in options.works or WORKS:
        cases: dict[str, Any] = {}
        for case in WORKS[work].cases:
            where = f"{work} {case}".strip()
            cases[case] = contest.contest(
                work, case, options.rounds, lambda words, at=where: say(f"{at}: {words}")
            )
            say("")
            print(f"\n### {where}: {WORKS[work].title}\n")
            print(report.table(work, case, cases[case], machine), flush=True)
            is_fine &= not any("failed" in told for told in cases[case].values())
        entry = {"about": about(device), "machine": machine, "cases": cases}
        if not options.no_write:
            path = report.folder(device)
            report.save(report.load(path) | {work: entry}, path, [work])
    print(f"\nMeasured on {device}. {report.INTRODUCTION}")
    return 0 if is_fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the works that had ended are written")
