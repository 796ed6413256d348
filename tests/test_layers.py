"""Law 11: a room imports only from the rooms above it."""

import ast
from pathlib import Path

import jaxsgd

ROOMS = [
    "pairs", "checks", "permutation", "samplers", "dynamic", "shards", "losses", "models", "gradients", "streaming", "meshes", "evaluation",
    "schedules", "penalties", "rules", "adaptive", "proximal", "transformations", "averaging",
    "line_search", "stopping", "solver", "loops", "chunks", "outlines", "checkpoints", "epochs", "progress",
    "memory", "lanes", "sweeps", "halving", "fit", "problems", "plots", "tables", "tasks", "recipes", "cli",
]  # fmt: skip


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxsgd"):
            inner = node.module.removeprefix("jaxsgd").lstrip(".")
            yield from [inner] if inner else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from [a.name.removeprefix("jaxsgd.") for a in node.names if "jaxsgd" in a.name]


def test_rooms_import_only_upward():
    folder = Path(jaxsgd.__path__[0])
    files = {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}
    assert sorted(files) == sorted(ROOMS)
    for name, path in files.items():
        for other in imported(path):
            assert ROOMS.index(other) < ROOMS.index(name), f"{name} imports {other}"


def test_init_only_hands_names_on():
    tree = ast.parse(Path(jaxsgd.__path__[0], "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    assert sorted(jaxsgd.__all__) == sorted(set(jaxsgd.__all__))
    assert all(hasattr(jaxsgd, name) for name in jaxsgd.__all__)
