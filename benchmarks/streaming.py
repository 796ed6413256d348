"""Rows on disk: softmax regression on a memory map, compared with resident data and PyTorch.

    python -m benchmarks.streaming                  # a file of 4 GB in the temporary folder
    python -m benchmarks.streaming --rows 200000    # a smaller one

Every contender is a separate process and does the same work: batches of 256 rows of 784 float32,
shuffled without replacement from the same file, which is in the page cache, one SGD step each. They
take turns; the table has medians over the rounds, and ratios taken per round. Memory is the
process's private memory (RssAnon), without the file's cached pages.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WIDTH, CLASSES, BATCH, STEPS, RATE = 784, 10, 256, 1000, 0.01


def memory() -> float:
    """MiB that this process holds of its own."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def arrays(path: Path) -> tuple[np.memmap, np.ndarray]:
    rows = np.memmap(path, np.float32, "r").reshape(-1, WIDTH)
    return rows, (np.arange(len(rows)) * 7 % CLASSES).astype(np.int32)


def jaxsgd_steps(path: Path, where: str, epochs: int) -> dict[str, object]:
    import jax
    import jax.numpy as jnp
    import optax

    import jaxsgd

    def loss(params, rows):
        logits = rows[0] @ params["weight"] + params["bias"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, rows[1])

    rows = arrays(path)
    before = memory()
    data = {
        "resident": lambda: jax.tree.map(jnp.array, rows),
        "in place": lambda: jax.device_put(rows, may_alias=True),
        "streamed": lambda: jaxsgd.HostRows(rows),
    }[where]()
    params = {"weight": jnp.zeros((WIDTH, CLASSES)), "bias": jnp.zeros(CLASSES)}
    solver = jaxsgd.Solver(jaxsgd.RowsLoss(loss), jaxsgd.Shuffled(BATCH), jaxsgd.SGD(RATE))
    state = solver.init(params, data, key=jax.random.key(0))
    every = STEPS if not epochs else -(-len(rows[1]) // BATCH)
    turns = jaxsgd.chunks(solver, state, data, every)
    for _ in range(5):  # compiles, fills the buffers, and maps the pages of the file
        state, _ = jax.block_until_ready(next(turns))
    told, held = [], []
    for _ in range(epochs or 3):
        start = time.perf_counter()
        state, trace = jax.block_until_ready(next(turns))
        told.append((time.perf_counter() - start) / every)
        held.append(memory() - before)
    turns.close()
    return {"step": told, "memory": held, "loss": float(trace.loss[-100:].mean())}


def torch_steps(path: Path, workers: int) -> dict[str, object]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    rows, labels = arrays(path)

    class Rows(Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, i):
            return torch.from_numpy(np.array(rows[i])), int(labels[i])

    model = torch.nn.Linear(WIDTH, CLASSES)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    rule = torch.optim.SGD(model.parameters(), RATE)
    loader = DataLoader(Rows(), BATCH, shuffle=True, num_workers=workers)
    before, losses, start, warm = memory(), [], 0.0, 50
    for i, (x, y) in enumerate(loader):
        if i == warm:  # the workers have started
            start = time.perf_counter()
        if i == warm + STEPS // 2:
            break
        rule.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        rule.step()
        losses.append(loss.item())
    step = (time.perf_counter() - start) / (STEPS // 2)
    return {"step": [step], "memory": [memory() - before], "loss": float(np.mean(losses[-100:]))}


CONTENDERS = {
    "HostRows": lambda path: jaxsgd_steps(path, "streamed", 0),
    "resident": lambda path: jaxsgd_steps(path, "resident", 0),
    "the map in place": lambda path: jaxsgd_steps(path, "in place", 0),
    "DataLoader, 0 workers": lambda path: torch_steps(path, 0),
    "DataLoader, 2 workers": lambda path: torch_steps(path, 2),
    "HostRows, ten epochs": lambda path: jaxsgd_steps(path, "streamed", 10),
}


def make(path: Path, rows: int) -> None:
    if path.exists() and path.stat().st_size == rows * WIDTH * 4:
        return
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for begin in range(0, rows, 10_000):
            count = min(10_000, rows - begin)
            rng.standard_normal((count, WIDTH), np.float32).tofile(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_370_000, help="of the file (default: 4.3 GB)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = options.folder / f"jaxsgd-rows-{options.rows}.f32"
    if options.contender:
        print(json.dumps(CONTENDERS[options.contender](path)))
        return
    make(path, options.rows)
    with open(path, "rb") as file:  # into the page cache
        while file.read(2**26):
            pass

    def contend(name: str) -> dict[str, list[float]]:
        command = [sys.executable, __file__, "--contender", name, "--rows", str(options.rows)]
        command += ["--folder", str(options.folder)]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(told.stdout.splitlines()[-1])

    names = list(CONTENDERS)[:-1]
    rounds = [{name: contend(name) for name in names} for _ in range(options.rounds)]
    times = {name: [np.median(turn[name]["step"]) for turn in rounds] for name in names}
    print(f"{path.stat().st_size / 1e9:.1f} GB, batches of {BATCH}, {os.cpu_count()} cores\n")
    print("| contender | us a step | as fast as resident | memory, MiB | loss |")
    print("|---|---|---|---|---|")
    for name in names:
        ratio = np.median(np.divide(times["resident"], times[name]))
        held = max(max(turn[name]["memory"]) for turn in rounds)
        step, loss = np.median(times[name]) * 1e6, rounds[-1][name]["loss"]
        print(f"| {name} | {step:.0f} | {ratio:.2f} | {held:.0f} | {loss:.4f} |")
    for name in names[3:]:
        ratios = np.divide(times[name], times["HostRows"])
        print(f"\nHostRows is {np.median(ratios):.1f} x as fast as {name}", end="")
    held = contend("HostRows, ten epochs")["memory"]
    print("\n\nmemory after each of ten epochs, MiB:", *(f"{x:.0f}" for x in held))


if __name__ == "__main__":
    main()
