"""Law 11: a room imports only from the rooms above it."""

import ast
from pathlib import Path

import jaxsgd

ROOMS = [
    "pairs", "checks", "permutation", "draws", "samplers", "dynamic", "shards", "losses", "models", "gradients", "accumulation", "clipping", "variance", "smoothness", "noise", "importance", "strata", "poisson", "fixed", "streaming", "meshes", "evaluation",
    "schedules", "penalties", "rules", "adaptive", "proximal", "transformations", "averaging",
    "line_search", "stopping", "solver", "memory", "kernels", "loops", "chunks", "outlines", "checkpoints", "epochs", "progress",
    "points", "lanes", "swept", "sweeps", "halving", "fit", "problems", "plots.curves", "plots.surfaces", "plots.sweeps", "plots",
    "tables", "tasks", "recipes", "searches", "cli",
]  # fmt: skip


FOLDER = Path(jaxsgd.__path__[0])


def room(path):
    """A room's name; one that is a folder has rooms inside, which its __init__ hands on."""
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxsgd"):
            inner = node.module.removeprefix("jaxsgd").lstrip(".")
            yield from [inner] if inner else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            yield from [a.name.removeprefix("jaxsgd.") for a in node.names if "jaxsgd" in a.name]


def test_rooms_import_only_upward():
    files = {room(path): path for path in FOLDER.rglob("*.py")}
    del files[""]
    assert sorted(files) == sorted(ROOMS)
    for name, path in files.items():
        for other in imported(path):
            assert ROOMS.index(other) < ROOMS.index(name), f"{name} imports {other}"


def test_init_only_hands_names_on():
    for path in FOLDER.rglob("__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign}
    for package in (jaxsgd, jaxsgd.plots):
        assert sorted(package.__all__) == sorted(set(package.__all__))
        assert all(hasattr(package, name) for name in package.__all__)
