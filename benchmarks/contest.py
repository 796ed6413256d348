"""The contest: the contenders of a case as processes that take turns, and their comparison."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from benchmarks.works import WORKS

# many processes share an accelerator; none takes most of it ahead
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"},
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "JAX_TRACEBACK_FILTERING": "off",  # so that an error's last line tells it
}
SEEDS = 50  # at most, of the first contender, by whose spread all are judged
PATIENCE = 4.0  # seconds of rounds after which a contender has been heard


class Failed(Exception):
    """A contender that broke, with its last words."""


class Contender:
    """The process of one contender of one case; it starts, and waits."""

    def __init__(self, work: str, case: str, name: str):
        self.name = name
        # of its stderr: a pipe that nobody reads would fill up
        self.words = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contender", work, case, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.words, text=True,
            env=ENVIRONMENT,
        )  # fmt: skip
        try:
            self.about = self.hear()
        except Failed:
            self.close()
            raise
        self.runs: list[dict[str, float]] = []

    def hear(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("{"):  # a library may print too
                return json.loads(line)
        self.words.seek(0)
        raise Failed((self.words.read().splitlines() or ["it ended without a word"])[-1])

    def run(self, seed: int) -> None:
        if "cannot" in self.about or sum(run["seconds"] for run in self.runs) > PATIENCE:
            return
        self.runs.append(self.run_once(seed))

    def run_once(self, seed: int) -> dict[str, float]:
        with suppress(BrokenPipeError):  # then there are last words
            self.process.stdin.write(f"{seed}\n")
            self.process.stdin.flush()
        return self.hear()

    def close(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.words.close()


def contest(work: str, case: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What each contender of a case measured: `{name: {"cannot": ..} or {"seconds": [..], ..}}`."""
    contenders: list[Contender] = []
    broken: dict[str, Any] = {}
    try:
        for name in WORKS[work].contenders:
            say(name)
            try:
                contenders.append(Contender(work, case, name))
            except Failed as failure:
                broken[name] = {"failed": str(failure)}
        for seed in range(rounds):
            say(f"round {seed + 1} of {rounds}")
            for contender in [c for c in contenders if c.name not in broken]:
                try:
                    contender.run(seed)
                except Failed as failure:
                    broken[contender.name] = {"failed": str(failure)}
        spread, first = [], contenders[0] if contenders else None
        if first and first.runs and first.name == WORKS[work].contenders[0]:
            say("other seeds")
            start = time.monotonic()
            with suppress(Failed):
                for seed in range(rounds, SEEDS):
                    if time.monotonic() - start < PATIENCE:
                        spread.append(first.run_once(seed)["objective"])
    finally:
        for contender in contenders:
            contender.close()
    found = {c.name: measured(c) for c in contenders if c.name not in broken} | broken
    return judged({name: found[name] for name in WORKS[work].contenders}, spread)


def measured(contender: Contender) -> dict[str, Any]:
    if "cannot" in contender.about:
        return contender.about
    runs = {key: [run[key] for run in contender.runs] for key in ("seconds", "objective")}
    return contender.about | runs


def judged(found: dict[str, Any], others: list[float]) -> dict[str, Any]:
    """Each with its ratio to the first; one whose objective differs did other work, and failed.

    By more than the spread of the first one's objectives over seeds (those of its rounds, and
    others), and than float32 rounds.
    """
    reference = next(iter(found.values()))
    for told in found.values():
        if "seconds" not in told or "seconds" not in reference:
            continue
        pairs = zip(told["seconds"], reference["seconds"], strict=False)
        ratios = [mine / first for mine, first in pairs]
        told["ratio"], told["range"] = statistics.median(ratios), (min(ratios), max(ratios))
        seen = [*reference["objective"], *others]
        expected, spread = statistics.median(seen), max(seen) - min(seen)
        found_one = statistics.median(told["objective"])
        if not abs(found_one - expected) <= max(spread, 1e-4 * abs(expected)):
            told["failed"] = (
                f"its objective is {found_one:.6g}, jaxsgd's {expected:.6g} "
                f"with a spread of {spread:.2g} over seeds: it did other work"
            )
    return found
