"""From measurements to tables, pictures and the README's table."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.works import WORKS

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
MARKS = "<!-- from benchmarks/results, by python -m benchmarks --readme -->", "<!-- end -->"
INTRODUCTION = """Made by `python -m benchmarks`. Contenders of a case take turns; times are medians
over the rounds, ratios medians of the rounds' ratios to the first contender. A first call prepares,
traces, compiles and runs. The limit is what a step must move and multiply over what this machine
copies and multiplies; where data stay in a cache it can be passed. The bare scan takes the steps
alone, over batches gathered beforehand, each operation a task of XLA's: a run that is compiled as
one kernel can pass it."""
HIGHLIGHTS = (
    ("seed", ""), ("airfoil-like", "1"), ("airfoil-like", "100"), ("two-class", "1"),
    ("two-class", "8"), ("softmax", "64"), ("softmax", "60000"), ("mlp", ""), ("sweep-lines", ""),
    ("sweep-softmax", ""), ("shuffle", "1e6"), ("start", ""),
)  # fmt: skip
COLUMNS = (
    ("JAX by hand", "scan"), ("JAX by hand", "Optax"), ("JAX by hand", "jax.random"),
    ("NumPy", "NumPy"), ("PyTorch", "PyTorch"), ("PyTorch", "torch."),
)  # fmt: skip
BRIEF = {
    "Optax in a hand-written scan": "Optax in a scan",
    "jitted Optax step fed from NumPy": "Optax step",
    "hand-written scan under `jax.vmap`": "scan under `vmap`",
    "permutation": "",
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
    """The seconds that a step cannot go below, and what holds it: bytes or operations."""
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


def table(work: str, case: str, found: dict[str, Any], machine: dict[str, float]) -> str:
    heads = WORKS[work].unit, "ratio", "compile, s", "first call, s", "peak MiB", "objective"
    lines = [f"| contender | {' | '.join(heads)} |", "|---|---|---|---|---|---|---|"]
    for name, told in found.items():
        if "cannot" in told or "seconds" not in told:
            why = told.get("cannot") or f"failed: {told['failed']}"
            lines.append(f"| {name} | {why} | | | | | |")
            continue
        cells = [
            short(steady(work, case, told)),
            short(told["ratio"]) if "ratio" in told else "",
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


def markdown(results: dict[str, Any], stem: str) -> str:
    parts = ["# Benchmarks", INTRODUCTION]
    for work, entry in results.items():
        machine = entry["machine"]
        told = ", ".join(f"{k} {v}" for k, v in entry["about"].items())
        parts += [
            f"## {work}: {WORKS[work].title}",
            f"{told}; {machine['bandwidth'] / 1e9:.1f} GB/s, {machine['rate'] / 1e9:,.0f} GFLOP/s",
            f"![{work}]({stem}-{work}.png)",
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


def save(results: dict[str, Any], stem: str, works: list[str]) -> None:
    """All measurements as JSON and Markdown, and the pictures of some works."""
    RESULTS.mkdir(exist_ok=True)
    results = {work: results[work] for work in WORKS if work in results}
    (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{stem}.md").write_text(markdown(results, stem))
    for work in works:
        picture(work, results[work], RESULTS / f"{stem}-{work}.png")


def load(stem: str) -> dict[str, Any]:
    path = RESULTS / f"{stem}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def readme_table(results: dict[str, Any]) -> str:
    """What the README tells: jaxsgd's figure, and how many times as long others take."""
    heads = "work", "jaxsgd", "JAX by hand", "NumPy", "PyTorch", "others"
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---|---|---|"]
    for work, case in HIGHLIGHTS:
        found = results[work]["cases"][case]
        first, *others = found
        this = WORKS[work]
        columns: dict[str, list[str]] = {head: [] for head in heads[2:]}
        for name in others:
            if not is_fine(found[name]):
                continue
            place = next((head for head, words in COLUMNS if words in name), heads[-1])
            columns[place].append(f"{short(found[name]['ratio'])} x {brief(name)}".strip())
        title = this.title + (f", {this.axis} {case}" if case else "")
        value = f"{short(steady(work, case, found[first]))} {this.unit}"
        cells = title, value, *(", ".join(told) for told in columns.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def brief(name: str) -> str:
    """A contender's name in the column of its library."""
    if name in BRIEF:
        return BRIEF[name]
    for words in ("PyTorch, ", "PyTorch ", ", cold", "NumPy loop", "NumPy, ", "NumPy "):
        name = name.replace(words, "")
    return BRIEF.get(name, name)


def write_readme(stem: str = "cpu") -> None:
    text = README.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    body = readme_table(load(stem))
    README.write_text(f"{before}{MARKS[0]}\n\n{body}\n\n{MARKS[1]}{after}")
