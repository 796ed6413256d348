"""Law 11: a file imports only what is above it, and `jaxsgd` shows its API and nothing else."""

import ast
import types
from pathlib import Path

import jaxsgd

# from the ground up: a folder's files in their order, then the next folder or file
LAYERS = """
    core          weak part programs jaxprs as_written records validation trees
    random        permutation bits
    schedules
    losses
    penalties
    models
    samplers      base epochs replacement importance stratified poisson fixed dynamic sharded per_shard
    rules         base descent adaptive line_search proximal from_optax averaging
    stopping      base criteria
    data          base arrays streamed host order tree_sum mesh
    gradients     base minibatch partial_sums accumulated clipped svrg saga noise_scale
    evaluation
    contracts
    solver
    loops         cpu_convolutions cpu_fusion base run run_until chunks
    checkpoints   fingerprint lock background orbax
    training      progress metrics divergence trainer fit
    sweeps        axes vmapped memory result sweep halving
    diagnostics   noise_scale smoothness
    problems
    plots         curves surfaces sweeps
    cli           options tables task sweep parser main
    about
"""
FOLDER = Path(jaxsgd.__path__[0])


def order():
    """Each module's place, by its dotted name; a folder's own name comes after its files."""
    names = []
    for line in LAYERS.split("\n"):
        name, *files = line.split() or [""]
        names += [f"{name}.{file}" for file in files] + [name] * bool(name)
    return {name: place for place, name in enumerate(names)}


def module(path):
    parts = path.relative_to(FOLDER).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("__init__", "__main__"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxsgd"):
            inner = node.module.removeprefix("jaxsgd").lstrip(".")
            for alias in node.names:
                within = f"{inner}.{alias.name}".lstrip(".")
                yield within if within in order() else inner
        if isinstance(node, ast.Import):
            yield from [a.name.removeprefix("jaxsgd.") for a in node.names if "jaxsgd" in a.name]


def test_a_file_imports_only_what_is_above_it():
    places = order()
    files = [path for path in FOLDER.rglob("*.py") if module(path)]
    assert {module(path) for path in files} == set(places)
    for path in files:
        for other in imported(path):
            if path.name == "__main__.py" and other.startswith(module(path)):
                continue
            assert places[other] < places[module(path)], f"{module(path)} imports {other}"


def test_an_init_only_exports_names():
    for path in FOLDER.rglob("__init__.py"):
        kinds = {type(node) for node in ast.parse(path.read_text()).body}
        allowed = {ast.Expr, ast.ImportFrom, ast.Assign}
        assert kinds <= (allowed | {ast.FunctionDef} if path.parent == FOLDER else allowed)
    for package in (jaxsgd, jaxsgd.plots, jaxsgd.diagnostics):
        assert sorted(package.__all__) == sorted(set(package.__all__))
        assert all(hasattr(package, name) for name in package.__all__)


def test_dir_is_the_api_and_no_function_has_a_modules_name():
    assert sorted(dir(jaxsgd)) == sorted(jaxsgd.__all__)
    modules = {path.stem for path in FOLDER.iterdir() if path.stem != "__init__"}
    for name in jaxsgd.__all__:
        is_module = isinstance(getattr(jaxsgd, name), types.ModuleType)
        assert is_module or name not in modules, name


def test_no_part_is_probed_and_fields_are_set_in_one_file():
    probes = ("self.", "solver", "sampler", "gradient", "rule", "stop", "data", "rows")
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called, text = ast.unparse(node.func), ast.unparse(node)
            if called == "object.__setattr__":
                assert module(path) == "core.part", text
            if called in ("getattr", "hasattr") and module(path) not in (
                "core.part",
                "rules.from_optax",
            ):
                is_constant = len(node.args) > 1 and isinstance(node.args[1], ast.Constant)
                assert not (is_constant and text.split("(")[1].startswith(probes)), text
            kinds = ast.unparse(node.args[1]) if called == "isinstance" else ""
            if "HostRows" in kinds or "MeshRows" in kinds or "StreamedRows" in kinds:
                assert module(path).startswith("data."), text
