"""From measurements to tables, pictures and the README's table."""

import json
import os
import platform
import re
import statistics
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.works import WORKS

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
MARKS = "<!-- from benchmarks/results, by python -m benchmarks --readme -->", "<!-- end -->"
INTRODUCTION = """Made by `python -m benchmarks`. Contenders of a case take turns; times are medians
over the rounds, ratios medians of the rounds' ratios to the first contender, with their range where
it includes 1. A slow contender has fewer rounds, at least one. A first call prepares, traces,
compiles and runs; no time and no ratio includes it, except those of `start`, which are of whole
processes. The limit is what a step must move and multiply over what this machine moves (negating a
large array in place) and multiplies; where data stay in a cache it can be passed. The bare scan
takes the steps alone, over batches gathered beforehand, each operation a task of XLA's: a run that
is compiled as one kernel can pass it."""
HIGHLIGHTS = (
    ("seed", ""), ("airfoil-like", "1"), ("airfoil-like", "100"), ("two-class", "1"),
    ("two-class", "8"), ("softmax", "64"), ("softmax", "60000"), ("mlp", ""), ("sweep-lines", ""),
    ("sweep-softmax", ""), ("shuffle", "1e6"), ("start", ""),
)  # fmt: skip
# the README's columns: of these contenders, the fastest one
COLUMNS: dict[str, dict[str, str]] = {
    "your loop": {
        "Optax in a scan": "scan",
        "jitted Optax step": "step",
        "scan under `jax.vmap`": "`vmap`",
        "`jax.random.permutation`": "",
        "Optax in a scan, cold": "scan",
    },
    "your loop, tuned by an expert": {
        "Optax in a scan, tuned": "scan",
        "Optax in a scan, tuned, rows gathered before": "scan, rows gathered before",
        "jitted Optax step, tuned": "step",
        "jitted Optax step fed by grain": "grain",
        "scan under `jax.vmap`, tuned": "`vmap`",
        "Optax in a scan, tuned, cold": "scan",
    },
    "NumPy, Numba": {
        "NumPy loop": "NumPy",
        "Numba loop": "Numba",
        "NumPy, run after run": "NumPy",
        "NumPy permutation": "NumPy",
        "NumPy loop, cold": "NumPy",
    },
    "PyTorch": {
        "PyTorch DataLoader": "DataLoader",
        "PyTorch tuned, 1 thread": "tuned",
        "PyTorch tuned, all threads": "tuned",
        "PyTorch tuned, `torch.compile`": "compiled",
        "PyTorch, `torch.func`": "compiled",
        "`torch.randperm`": "",
        "PyTorch DataLoader, cold": "DataLoader",
        "PyTorch tuned, cold": "tuned",
    },
    "Keras": {"Keras 3 on JAX": ""},
    "scikit-learn": {"scikit-learn": ""},
}
SCALES = {"us": 1e6, "ms": 1e3, "ns": 1e9, "s": 1.0}


def units(work: str, case: str) -> float:
    """What a run's seconds are multiplied by."""
    task, unit = WORKS[work].cases[case], WORKS[work].unit
    per = {"an epoch": "epochs", "a row": "rows"}
    name = next((name for words, name in per.items() if words in unit), "steps")
    count = task.rows * task.epochs if name == "rows" else getattr(task, name)
    return SCALES[unit.split()[0]] / count


def limit(work: str, case: str, machine: dict[str, float]) -> tuple[float, str] | None:
    """The seconds of a step's bytes or operations on this machine, whichever takes longer."""
    counts = WORKS[work].cases[case].counts
    if counts is None:
        return None
    moved, multiplied = counts[0] / machine["bandwidth"], counts[1] / machine["rate"]
    return (moved, "bytes") if moved > multiplied else (multiplied, "operations")


def limit_in_units(work: str, case: str, machine: dict[str, float]) -> float | None:
    found = limit(work, case, machine)
    return found and found[0] * WORKS[work].cases[case].steps * units(work, case)


def steady(work: str, case: str, told: dict[str, Any]) -> float:
    return statistics.median(told["seconds"]) * units(work, case)


def is_fine(told: dict[str, Any]) -> bool:
    """Whether a contender did the work."""
    return "seconds" in told and "failed" not in told


def short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(measured: dict[str, Any]) -> str:
    """The median of the rounds' ratios, and where it is not sure which is faster, their range."""
    low, high = measured["range"]
    spread = f" ({short(low)} to {short(high)})" if low < 1 < high else ""
    return f"{short(measured['ratio'])}{spread}"


def table(work: str, case: str, found: dict[str, Any], machine: dict[str, float]) -> str:
    heads = WORKS[work].unit, "ratio", "XLA compile, s", "first call, s", "peak MiB", "objective"
    lines = [f"| contender | {' | '.join(heads)} |", "|---|---|---|---|---|---|---|"]
    for name, told in found.items():
        if "cannot" in told or "seconds" not in told:
            why = told.get("cannot") or f"failed: {told['failed']}"
            lines.append(f"| {name} | {why} | | | | | |")
            continue
        cells = [
            short(steady(work, case, told)),
            ratio(told) if "ratio" in told else "",
            f"{told['compile']:.2f}" if told["compile"] else "",
            f"{told['first']:.2f}",
            f"{told['memory']:,.0f}",
            f"failed: {told['failed']}" if "failed" in told
            else f"{statistics.median(told['objective']):.6g}",
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    least = limit(work, case, machine)
    if least:
        value = limit_in_units(work, case, machine)
        lines.append(f"| *limit, by {least[1]}* | {short(value or 0)} | | | | | |")
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    parts = ["# Benchmarks", INTRODUCTION, "What limits a step is in [limits.md](limits.md)."]
    for work, entry in results.items():
        machine = entry["machine"]
        told = ", ".join(f"{k} {v}" for k, v in entry["about"].items())
        parts += [
            f"## {work}: {WORKS[work].title}",
            f"{told}; {machine['bandwidth'] / 1e9:.1f} GB/s, {machine['rate'] / 1e9:,.0f} GFLOP/s",
            f"![{work}]({work}.png)",
        ]
        for case, found in entry["cases"].items():
            if case:
                parts.append(f"### {WORKS[work].axis} {case}")
            parts.append(table(work, case, found, machine))
    return "\n\n".join(parts) + "\n"


def picture(work: str, entry: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    this, cases = WORKS[work], entry["cases"]
    with_losses = this.axis == "batch" and "airfoil" in work
    fig, axes = plt.subplots(1, 1 + with_losses, figsize=(9 + 4 * with_losses, 4.5), squeeze=False)
    ax = axes[0, 0]
    if not this.axis:
        dots(ax, work, entry)
    else:
        lines(ax, work, entry)
    ax.set_title(this.title, fontsize=10)
    if with_losses:
        found = {float(case): found["jaxsgd"] for case, found in cases.items()}
        middle = [statistics.median(told["objective"]) for told in found.values()]
        axes[0, 1].plot(list(found), middle, "o-")
        axes[0, 1].set(xscale="log", ylim=(0, None), xlabel="batch", ylabel="objective")
        axes[0, 1].set_title("the objective after 10 epochs", fontsize=10)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def dots(ax: Any, work: str, entry: dict[str, Any]) -> None:
    found = {n: t for n, t in entry["cases"][""].items() if is_fine(t)}
    values = [steady(work, "", told) for told in found.values()]
    names = [name.replace("`", "") for name in found]
    colours = ["C0" if "jaxsgd" in name else "0.6" for name in names]
    ax.scatter(values, names, c=colours, s=60, zorder=2)
    for i, value in enumerate(values):
        ax.annotate(short(value), (value, i), (8, 0), textcoords="offset points", va="center")
    ax.grid(axis="y", color="0.9")
    least = limit_in_units(work, "", entry["machine"])
    if least:
        ax.axvline(least, color="C3", ls="--", lw=1, label="limit of bytes or operations")
        ax.legend(loc="upper right", fontsize=8)
    ax.set(xscale="log", xlabel=WORKS[work].unit)
    ax.set_xlim(right=max(values) * 4)
    ax.invert_yaxis()


def lines(ax: Any, work: str, entry: dict[str, Any]) -> None:
    this, cases = WORKS[work], entry["cases"]
    for i, name in enumerate(this.contenders):
        points = [
            (float(case), steady(work, case, found[name]))
            for case, found in cases.items()
            if is_fine(found.get(name, {}))
        ]
        if points:
            style = {"color": "C0", "lw": 2.5, "zorder": 9} if i == 0 else {"color": f"C{i % 10}"}
            if name == "bare scan":
                style = {"color": "k", "ls": ":"}
            marker = "o" if i < 8 else "s"
            ax.plot(
                *zip(*points, strict=True),
                marker=marker,
                ms=4,
                label=name.replace("`", ""),
                **style,
            )
    least = [(float(c), limit_in_units(work, c, entry["machine"])) for c in cases]
    if least[0][1]:
        ax.plot(
            *zip(*least, strict=True),
            color="C3",
            ls="--",
            lw=1,
            label="limit of bytes or operations",
        )
    ax.set(xscale="log", yscale="log", xlabel=this.axis, ylabel=this.unit)
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8, frameon=False)


def processor() -> str:
    """How many cores of which kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    # a virtual machine may hide the name, but not the model
    name = f"{facts['model name']}, model {facts['model']}" if "model name" in facts else ""
    name = name or platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}"


def folder(device: str) -> Path:
    """Where the results of this machine are: of its processor, or of its accelerator."""
    name = processor() if device.startswith("cpu") else device
    name = re.sub(r"\((r|tm)\)|@.*", "", name.lower())
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def save(results: dict[str, Any], path: Path, works: list[str]) -> None:
    """All measurements as JSON and Markdown, and the pictures of some works."""
    path.mkdir(parents=True, exist_ok=True)
    results = {work: results[work] for work in WORKS if work in results}
    (path / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (path / "README.md").write_text(markdown(results))
    for work in works:
        picture(work, results[work], path / f"{work}.png")


def load(path: Path) -> dict[str, Any]:
    file = path / "results.json"
    return json.loads(file.read_text()) if file.exists() else {}


def readme_text(path: Path) -> str:
    """The README's table: jaxsgd's time, and how many times as long the others take."""
    results = load(path)
    heads = "work", "jaxsgd", *COLUMNS
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    fastest: list[tuple[float, str, str]] = []  # the fastest peer of each row
    for work, case in HIGHLIGHTS:
        this = WORKS[work]
        found = {n: t for n, t in results[work]["cases"][case].items() if is_fine(t)}
        title = this.title + (f", {this.axis} {case}" if case else "")
        cells, peers = [], []
        for names in COLUMNS.values():
            here = [(found[n]["ratio"], n, label) for n, label in names.items() if n in found]
            fast, name, label = min(here, default=(0.0, "", ""))
            cells.append(f"{ratio(found[name])} x {label}".strip() if here else "")
            peers += [(fast, name, title)] * bool(here)
        value = f"{short(steady(work, case, found[this.contenders[0]]))} {this.unit}"
        lines.append(f"| {title} | {value} | {' | '.join(cells)} |")
        fastest.append(min(peers))
    (low, loser, where), (high, winner, there) = min(fastest), max(fastest)
    about = results[HIGHLIGHTS[0][0]]["about"]
    versions = f"{about['processor']}, float32, JAX {about['jax']}"
    words = f"""{versions}. The second column is jaxsgd's time. The others say how many times as
long each library takes in its fastest form: below 1 it is faster than jaxsgd, and a range of
ratios is given where rounds disagree on which is faster. Only the last row includes compilation.
Compared with the fastest peer of each row, jaxsgd is slowest in "{where}" ({loser}: {short(low)} x)
and fastest in "{there}" ({winner}: {short(high)} x). [All tables and
pictures](benchmarks/results/{path.name}/README.md), with compile times, first calls and memory;
[what limits each step](benchmarks/results/{path.name}/limits.md)."""
    paragraph = textwrap.fill(" ".join(words.split()), 100, break_on_hyphens=False)
    return "\n".join((paragraph, "", *lines))


def write_readme(path: Path) -> None:
    text = README.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    README.write_text(f"{before}{MARKS[0]}\n\n{readme_text(path)}\n\n{MARKS[1]}{after}")
