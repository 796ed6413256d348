"""Fingerprints: equal in every process, different for every change that they hold."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd.checkpoints.fingerprint import Fingerprint, difference, fingerprint
from tests import table

HERE = "tests.checkpoints.test_fingerprint"


def text(value):
    """The description of a leaf or static value."""
    return fingerprint(value, "it")["it"]


def qualified(fn):
    return f"{fn.__module__}.{fn.__qualname__}"


class Callable:
    """An object with an address in its repr."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, params, row):
        return self.scale * table.loss(params, row)


@jaxsgd.part
class Scaled:
    """A callable pytree with a leaf and static fields."""

    scale: float = jaxsgd.number()
    frozen: frozenset[str] = jaxsgd.static(default=frozenset())
    fn: object = jaxsgd.static(default=table.loss)

    def __call__(self, params, row):
        return self.scale * self.fn(params, row)


@jax.tree_util.register_static
class Config:
    def __init__(self, width):
        self.width = width

    def __repr__(self):
        return f"Config(width={self.width})"


def flax_layer(width):
    from flax import nnx  # of the extra test-all

    return nnx.split(nnx.Linear(width, 3, rngs=nnx.Rngs(0)))


def everything():
    """A tree of all that a fingerprint describes."""
    solvers = {name: solver for name, (solver, _) in table.all_solvers().items()}
    return {
        "solvers": solvers,
        "scaled": Scaled(0.5, frozenset(f"layer {i}" for i in range(20))),
        "object": Callable(1.0),
        "method": Callable(1.0).__call__,
        "lambda": lambda x: x,
        "jit": jax.jit(table.loss),
        "partial": functools.partial(optax.adam, b1=0.8),
        "custom": jax.nn.relu,
        "optax": jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), optax.adam(0.1)),
        "equinox": eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0)),
        "flax": flax_layer(2),
        "config": Config(3),
        "key": jax.random.key(7, impl="rbg"),
        "array": np.arange(300.0),
        "string": "x" * 300,
    }


@pytest.mark.slow
def test_it_is_the_same_in_another_process():
    here = fingerprint(everything(), "all")
    program = (
        f"import json, {HERE} as test\n"
        "print(json.dumps(test.fingerprint(test.everything(), 'all')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    there = json.loads(done.stdout)
    assert difference(there, here) is None
    assert not any(" at 0x" in text for text in here.values())


@pytest.mark.parametrize("names", [table.SAMPLERS, table.GRADIENTS, table.RULES])
def test_every_part_of_the_table_has_another(names):
    solvers = table.all_solvers()
    prints = {name: fingerprint(solvers[name][0], "solver") for name in names}
    assert len({tuple(x.items()) for x in prints.values()}) == len(names)
    slower = table.all_solvers(0.05)
    for name, saved in prints.items():
        assert difference(saved, fingerprint(solvers[name][0], "solver")) is None
        assert "0.05" in difference(saved, fingerprint(slower[name][0], "solver"))


@pytest.mark.parametrize(
    ("saved", "given", "message"),
    [
        (0.1, 0.2, "it: expected 0.1, got 0.2"),
        (1, True, "it: expected 1, got True"),
        (jnp.ones(3), jnp.ones(3, int), r"it: expected float32\[3\] with checksum \w{8}, got int32\[3\]"),
        (jnp.ones(3), jnp.ones(4), r"it: expected float32\[3\] .*, got float32\[4\]"),
        (jnp.arange(3.0), jnp.arange(3.0).at[1].set(2), r"it: expected float32\[3\] with checksum"),
        (np.float32(0.1), np.float32(0.1) * 2, r"it: expected float32\[\] 0.1, got float32\[\] 0.2"),
        (jax.random.key(0), jax.random.key(1), r"it: expected key<fry>\[\] with checksum"),
        (jax.random.key(0), jax.random.key(0, impl="rbg"), r", got key<rbg>\[\]"),
        ([1, 2], (1, 2), "it: expected list, got tuple"),
        ({"a": 1}, {"a": 1, "b": None}, r"it\['b'\]: expected nothing, got None"),
        ({"a": 1, "b": {"c": 2.5}}, {"a": 1}, r"it\['b'\]: expected dict, got nothing"),
        (jaxsgd.Momentum(0.1), jaxsgd.SGD(0.1), r"it: expected Momentum\(\), got SGD\(\)"),
        (jaxsgd.Momentum(0.1), jaxsgd.Momentum(0.2), "it.learning_rate: expected 0.1, got 0.2"),
        (jaxsgd.Shuffled(4), jaxsgd.Shuffled(8), r"it: expected Shuffled\(batch_size=4, .*, got Shuffled\(batch_size=8"),
        (Scaled(1.0, frozenset("ab")), Scaled(1.0, frozenset("ac")), r"frozen=\{'a', 'b'\}, .* got .*frozen=\{'a', 'c'\}"),
        (jax.tree_util.Partial(table.loss, 1.0), jax.tree_util.Partial(table.loss, 2.0), "expected 1.0, got 2.0"),
        (jax.tree_util.Partial(table.loss), jax.tree_util.Partial(table.noisy), r"expected Partial\(tests.table.loss\), got Partial\(tests.table.noisy\)"),
        (Config(3), Config(4), r"it: expected Config\(width=3\), got Config\(width=4\)"),
        ("x" * 300 + "a", "x" * 300 + "b", r"expected 'x{199}\.\.\. \w{8}, got 'x{199}\.\.\. \w{8}"),
        (table.loss, table.noisy, "it: expected tests.table.loss, got tests.table.noisy"),
        (jnp.float32, jnp.bfloat16, "it: expected jax.numpy.float32, got jax.numpy.bfloat16"),
        (Scaled(1.0), Scaled(1.0, fn=table.noisy), r"fn=tests.table.loss\), got .*fn=tests.table.noisy\)"),
    ],
)  # fmt: skip
def test_a_difference_is_named(saved, given, message):
    saved, given = fingerprint(saved, "it"), fingerprint(given, "it")
    assert difference(saved, saved) is None
    with pytest.raises(ValueError, match=message):
        raise ValueError(difference(saved, given))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda width: flax_layer(width)[0], marks=pytest.mark.slow),
        lambda width: eqx.nn.Linear(3, 3, use_bias=width == 2, key=jax.random.key(0)),
        lambda width: (lambda x: x) if width == 2 else Scaled,
    ],
)
def test_static_data_of_other_libraries_is_compared(make):
    same, other = fingerprint(make(2), "it"), fingerprint(make(4), "it")
    assert difference(fingerprint(make(2), "it"), same) is None
    assert difference(same, other) is not None


def test_a_function_is_its_qualified_name():
    def loss(params, row):
        return table.loss(params, row)

    assert text(loss) == f"{HERE}.test_a_function_is_its_qualified_name.<locals>.loss"
    assert text(table.loss) == text(jax.jit(table.loss)) == "tests.table.loss"
    assert text(lambda x: x).endswith(".<lambda>")
    assert text(max) == "builtins.max"
    assert text(Callable(1.0).__call__) == f"{HERE}.Callable.__call__"
    assert text(Callable(1.0)) == f"<{HERE}.Callable object>"
    assert text(functools.partial(table.loss, 1.0)) == "functools.partial(<function loss>, 1.0)"


def test_functions_of_one_name_are_equal():
    def scaled(scale):
        def loss(params, row, again=scale):
            return scale * table.loss(params, row)

        return loss

    assert text(scaled(1.0)) == text(scaled(2.0))
    assert text(lambda x: x) == text(lambda x: 2 * x)
    assert text(Callable(1.0)) == text(Callable(2.0))


def test_a_callable_pytree_is_its_type_and_leaves():
    assert fingerprint(Scaled(0.5), "loss") == {
        "loss": "Scaled(frozen={}, fn=tests.table.loss)",
        "loss.scale": "0.5",
    }
    assert isinstance(fingerprint(Scaled(0.5), "loss"), Fingerprint)


def test_an_optax_transformation_is_the_names_of_its_functions():
    transformation = optax.adam(0.1)
    solver = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), transformation)
    name = fingerprint(solver, "solver")["solver.rule"]
    assert name.startswith("Transformation(")
    assert qualified(transformation.init) in name
    assert qualified(transformation.update) in name
    other = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(8), optax.trace(0.1))
    assert difference(fingerprint(solver, "it"), fingerprint(other, "it")).startswith("it.rule: ")


def test_without_values_a_numpy_array_may_have_any_length():
    shapes = functools.partial(fingerprint, name="state", with_values=False)
    first = {"history": np.zeros((3, 2)), "best": 0.5, "params": jnp.zeros(3), "step": np.int32(1)}
    later = {"history": np.ones((9, 2)), "best": 1.5, "params": jnp.ones(3), "step": np.int32(2)}
    struct = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert shapes(first) == shapes(later) == shapes(first | {"params": struct})
    assert shapes(first)["state['history']"] == "NumPy float64[n, 2]"
    assert shapes(first)["state['step']"] == "int32[]"
    message = difference(shapes(first), shapes(first | {"params": jnp.zeros(4)}))
    assert message == "state['params']: expected float32[3], got float32[4]"


def test_a_fingerprint_is_returned_as_it_is():
    done = fingerprint(Scaled(0.5), "loss")
    assert fingerprint(done, "of") is done
