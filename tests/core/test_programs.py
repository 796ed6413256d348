"""A compiled program does not keep the functions alive that it was made of, nor itself without them."""

import subprocess
import sys
import threading
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsgd
from jaxsgd.core import programs
from jaxsgd.core.part import Function
from jaxsgd.core.weak import functions_held_weakly
from jaxsgd.loops import cpu_fusion
from tests import table

PARAMS, DATA = table.problem()
KEY = jax.random.key(0)


def solver_of(loss, rule=None):
    solver = jaxsgd.Solver(loss, jaxsgd.Shuffled(8), rule or jaxsgd.SGD(0.1))
    return solver, solver.init(PARAMS, DATA, key=KEY), DATA


def trained(loss, data=DATA, **options):
    jaxsgd.fit(loss, PARAMS, data, key=KEY, epochs=1, learning_rate=0.1, progress=False, **options)


def swept(loss, **options):
    def final_loss(learning_rate):
        return jaxsgd.run(*solver_of(loss, jaxsgd.SGD(learning_rate)), 2)[1].loss[-1]

    over = {"learning_rate": np.array([0.1, 0.2])}
    jaxsgd.sweep(final_loss, over=over, progress=False, **options)


def until(loss):
    stop, monitor = jaxsgd.Converged(1e-6), jaxsgd.Objective(loss, DATA)
    jaxsgd.run_until(*solver_of(loss), stop, max_steps=4, check_every=2, monitor=monitor)


USES = {
    "run": lambda loss: jaxsgd.run(*solver_of(loss), 2, lambda state, info: info.loss),
    "run of an Optax rule": lambda loss: jaxsgd.run(*solver_of(loss, optax.adam(0.1)), 2),
    "run within a program": lambda loss: jax.jit(lambda: jaxsgd.run(*solver_of(loss), 2))(),
    "run_until": until,
    "chunks": lambda loss: next(jaxsgd.chunks(*solver_of(loss), 2)),
    "batches": lambda loss: solver_of(loss)[0].batches(*solver_of(loss)[1:], 2),
    "check": lambda loss: jaxsgd.check(solver_of(loss)[0], PARAMS, DATA),
    "evaluate": lambda loss: jaxsgd.evaluate(loss, PARAMS, DATA),
    "fit": lambda loss: trained(loss, validation=DATA, stop=jaxsgd.EarlyStopping(2)),
    "streamed fit": lambda loss: trained(loss, jaxsgd.HostRows(jax.tree.map(np.asarray, DATA))),
    "sweep": swept,
    "sweep in chunks": lambda loss: swept(loss, chunk=1),
    "noise scale": lambda loss: jaxsgd.diagnostics.noise_scale(loss, PARAMS, DATA),
    "smoothness": lambda loss: jaxsgd.diagnostics.estimate_smoothness(
        loss, PARAMS, DATA, key=KEY, iterations=2
    ),
}


@pytest.mark.parametrize("use", USES)
def test_a_loss_is_freed_with_its_last_use(use):
    loss = lambda params, row: table.loss(params, row)  # noqa: E731
    seen = weakref.ref(loss)
    USES[use](loss)
    del loss
    assert seen() is None


def test_the_program_of_a_freed_function_is_dropped_by_the_next():
    @programs.jit()
    def apply(fn, x):
        return fn(x)

    def call(factor):
        fn = Function(lambda x: factor * x)
        assert [float(apply(fn, x)) for x in (1.0, 2.0)] == [factor, 2 * factor]
        assert len(apply.programs) == 1

    call(2.0)
    call(3.0)
    kept = [Function(lambda x, i=i: i * x) for i in range(3)]
    assert [float(apply(fn, 2.0)) for fn in kept] == [0, 2, 4]
    assert len(apply.programs) == 3


def test_the_oldest_programs_are_dropped(monkeypatch):
    monkeypatch.setattr(programs, "MOST_PROGRAMS", 2)

    @programs.jit()
    def add(x, *, number):
        return x + number

    for number in (1, 2, 3):
        assert add(jnp.ones(()), number=number) == 1 + number
    assert [dict([key[-1]]) for key in add.programs] == [{"number": 2}, {"number": 3}]


def test_a_structure_with_weak_functions_is_the_part_again():
    rule = jaxsgd.solver.as_rule(optax.sgd(0.1))
    parts = rule, jaxsgd.Shuffled(8), Function(table.loss), Function(print)
    leaves, structure, functions = programs.flatten(parts)
    again = structure.unflatten(leaves)
    assert again[0].transformation == rule.transformation
    assert type(again[0].transformation) is type(rule.transformation)
    assert again[1].batch_size == 8
    assert (again[2].fn, again[3].fn) == (table.loss, print)
    assert len(functions) == 3  # init, update, loss; `print` is equal by value
    assert jax.tree.structure(again) == jax.tree.structure(parts) != structure
    with functions_held_weakly() as found:
        with functions_held_weakly():
            pass
        assert jax.tree.structure(parts) == structure
        assert len(found) == 3
        found.clear()
        other = threading.Thread(target=jax.tree.flatten, args=[parts])
        other.start()
        other.join()
    assert found == []


class Slots:
    """A function that no weak reference can refer to."""

    __slots__ = ()

    def __call__(self, params, row):
        return table.loss(params, row)


class Scaled(tuple):
    """A tuple that cannot be made again from its values."""

    def __new__(cls, fn, factor):
        return super().__new__(cls, (fn,))

    def __init__(self, fn, factor):
        self.factor = factor


def test_values_that_a_reference_cannot_stand_for_stay_as_they_are():
    seen = jaxsgd.evaluate(Slots(), PARAMS, DATA)
    np.testing.assert_allclose(seen, jaxsgd.evaluate(table.loss, PARAMS, DATA), rtol=1e-6)

    @jaxsgd.part
    class Odd:
        pair: tuple = jaxsgd.static()
        reference: weakref.ref = jaxsgd.static()
        fn: object = jaxsgd.static()

    part = Odd(Scaled(table.loss, 3), weakref.ref(table.loss), table.loss)
    leaves, structure, functions = programs.flatten(part)
    again = structure.unflatten(leaves)
    assert again.pair is part.pair
    assert again.reference is part.reference
    assert again.fn is table.loss
    assert len(functions) == 1


@pytest.mark.parametrize("jit", [programs.jit, cpu_fusion.jit])
def test_only_the_named_argument_is_donated(jit):
    @jit(donate="state")
    def step(scale, state, data, form="inlined"):
        return jax.tree.map(lambda x: scale * x + data, state)

    scale, state, data = jnp.ones(3), {"a": jnp.ones(3), "b": jnp.ones(3)}, jnp.ones(3)
    assert jnp.array_equal(step(scale, state, data)["b"], 2 * jnp.ones(3))
    assert [x.is_deleted() for x in (scale, state["a"], state["b"], data)] == [0, 1, 1, 0]


MANY = """
import sys, threading
from pathlib import Path
import jax, jax.numpy as jnp, jaxsgd

def megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024

def train():
    loss = lambda w, row: (row[0] @ w - row[1]) ** 2
    jaxsgd.fit(loss, jnp.zeros(3), (jnp.ones((100, 3)), jnp.ones(100)), key=jax.random.key(0),
               epochs=2, batch_size=10, learning_rate=0.01, progress=False)

for i in range(201):
    train()
    if i == 0:
        before = megabytes(), threading.active_count()
print(megabytes() - before[0], threading.active_count() - before[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the process's size is unknown")
def test_200_fits_of_different_losses_do_not_grow_the_process():
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True)
    grown, threads = map(float, done.stdout.split())
    assert grown < 100
    assert threads == 0
