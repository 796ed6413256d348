"""A broken contract is refused in a sentence: the method, what it returned, what was expected."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.core.part import default_property
from tests import table

PARAMS, DATA = table.problem()


@jaxsgd.part
class Sampler(jaxsgd.CounterSampler):
    """Returns whatever a test chooses as its batch."""

    make: object = jaxsgd.static()
    batch_size: int = jaxsgd.static(default=4)
    size: int | None = jaxsgd.static(default=None)

    def batch(self, key, step):
        return self.make(jnp.arange(4, dtype=jnp.int32), jnp.full(4, 0.25))


@jaxsgd.part
class StateSampler(jaxsgd.Sampler):
    """Returns whatever a test chooses from `update`."""

    result: object = jaxsgd.static()
    batch_size: int = jaxsgd.static(default=4)
    size: int | None = jaxsgd.static(default=None)

    def batch(self, key, step):
        return jaxsgd.Batch(jnp.arange(4, dtype=jnp.int32), jnp.full(4, 0.25))

    def init(self, key):
        return jnp.zeros((), jnp.int32)

    def update(self, state):
        return self.result(self.batch(None, 0), state)


@jaxsgd.part
class Gradient(jaxsgd.Gradient):
    state: object = jaxsgd.static(default=jaxsgd.GradientState())
    result: object = jaxsgd.static(default=lambda estimate, state: (estimate, state))
    is_keyed: bool = jaxsgd.static(default=False)

    def init(self, params, data, key, model_state=None):
        return self.state

    def value(self, params, data, batch, state):
        return jaxsgd.MinibatchGradient(table.loss).value(
            params, data, batch, jaxsgd.GradientState()
        )

    def update(self, params, data, batch, state):
        loss, grads = jax.value_and_grad(self.value)(params, data, batch, state)
        return self.result(jaxsgd.Estimate(loss, grads), state)


@jaxsgd.part
class Rule(jaxsgd.Rule):
    """A rule with a learning rate and no state."""

    learning_rate: float = jaxsgd.number(default=0.1)
    result: object = jaxsgd.static(default=lambda updates, state: (updates, state))

    def init(self, params):
        return ()

    def update(self, grads, state, params=None, **extra):
        return self.result(jax.tree.map(lambda g: -self.learning_rate * g, grads), state)


def init(sampler=None, gradient=None, rule=None):
    solver = jaxsgd.Solver(
        table.loss if gradient is None else gradient,
        jaxsgd.Shuffled(4) if sampler is None else sampler,
        jaxsgd.SGD(0.1) if rule is None else rule,
    )
    return solver, solver.init(PARAMS, DATA, key=jax.random.key(0))


def same(tree):
    return jax.tree.map(lambda x: x, tree)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"sampler": StateSampler(lambda batch, state: batch)},
         r"StateSampler.update returned a Batch, expected the tuple \(Batch, state\)"),
        ({"sampler": StateSampler(lambda batch, state: (batch, state, 0))},
         r"StateSampler.update returned a tuple of 3, expected the tuple \(Batch, state\)"),
        ({"sampler": StateSampler(lambda batch, state: (tuple(batch), state))},
         r"StateSampler.update returned a tuple as its batch, expected jaxsgd.Batch"),
        ({"sampler": StateSampler(lambda batch, state: (batch, state + 0.5))},
         r"StateSampler.update returned the state float32\[\], expected one of the same structure, shapes and dtypes as before, int32\[\]"),
        ({"sampler": Sampler(lambda index, weight: jaxsgd.Batch(index, weight[:3]))},
         r"Sampler.update returned a batch whose weight is float32\[3\], expected float32\[4\]"),
        ({"sampler": Sampler(lambda index, weight: jaxsgd.Batch(index * 1.0, weight))},
         r"Sampler.update returned a batch whose index is float32\[4\], expected int32\[4\]"),
        ({"gradient": Gradient(state=())},
         r"Gradient.init returned a tuple without the field 'model_state', expected a NamedTuple .* jaxsgd.GradientState\(\)"),
        ({"gradient": Gradient(result=lambda estimate, state: estimate)},
         r"Gradient.update returned a Estimate, expected the tuple \(Estimate, state\)"),
        ({"gradient": Gradient(result=lambda estimate, state: (estimate.grads, state))},
         r"Gradient.update returned a dict as its estimate, expected jaxsgd.Estimate"),
        ({"gradient": Gradient(result=lambda estimate, state: (estimate._replace(loss=jnp.ones(2)), state))},
         r"Gradient.update returned a loss of shape \(2,\) and float32, expected a float scalar"),
        ({"gradient": Gradient(result=lambda estimate, state: (estimate._replace(grads=jnp.ones(2)), state))},
         r"Gradient.update returned grads of the structure .*, expected that of params"),
        ({"rule": Rule(result=lambda updates, state: updates)},
         r"Rule.update returned a dict, expected the tuple \(updates, state\)"),
        ({"rule": Rule(result=lambda updates, state: (jax.tree.map(lambda u: u[None], updates), state))},
         r"returned updates of shape .* for params\['bias'\].*expected the same shape"),
        ({"rule": Rule(result=lambda updates, state: (jax.tree.map(lambda u: u.astype(int), updates), state))},
         r"returned updates of int32 for params\['bias'\], expected floats"),
        ({"rule": Rule(result=lambda updates, state: (updates, 1.0))},
         r"Rule.update returned the state float32\[\], expected one of the same structure"),
    ],
)  # fmt: skip
def test_what_a_method_returned_and_what_was_expected(parts, message):
    with pytest.raises((TypeError, ValueError), match=message):
        init(**parts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: init(jaxsgd.Shuffled), "got the class Shuffled; did you forget to call it"),
        (lambda: init(rule=jaxsgd.SGD), "got the class SGD; did you forget to call it"),
        (lambda: init(gradient=jaxsgd.SAGA), r"got the class SAGA.*jaxsgd.SAGA\(loss\)"),
        (lambda: init(sampler=64), "sampler: expected a jaxsgd.Sampler, such as jaxsgd.Shuffled.64., got 64"),
        (lambda: init(rule=0.1), "rule: expected a jaxsgd.Rule, such as .* or optax.adam.1e-3., got 0.1"),
        (lambda: init(gradient=3), "gradient is 3 of type int, expected a loss"),
        (lambda: init(jaxsgd.SGD(0.1)), "sampler: .* got SGD.* a custom one subclasses jaxsgd.Sampler"),
        (lambda: init(rule=jaxsgd.Shuffled(4)), "rule: .* got Shuffled.* a custom one subclasses jaxsgd.Rule"),
        (lambda: init(type("Plain", (jaxsgd.CounterSampler,), {"batch": None, "size": None, "batch_size": 4})(3)),
         "Plain is not a part; did you forget @jaxsgd.part"),
        (lambda: jaxsgd.part(type("Empty", (jaxsgd.Rule,), {}))(), "abstract.*update"),
    ],
)  # fmt: skip
def test_what_is_no_part_is_refused_by_the_solver(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_rows_beyond_the_data_are_refused_by_fit_and_check():
    far = Sampler(lambda index, weight: jaxsgd.Batch(index + 17, weight))
    solver, _ = init(far)
    message = r"drew rows 17 to 20, expected them in 0\.\.19"
    with pytest.raises(IndexError, match=message):
        jaxsgd.check(solver, PARAMS, DATA)
    with pytest.raises(IndexError, match=message):
        jaxsgd.fit(
            table.loss,
            PARAMS,
            DATA,
            key=jax.random.key(0),
            epochs=1,
            sampler=far,
            learning_rate=0.1,
        )
    jaxsgd.check(init()[0], PARAMS, DATA)


def test_a_stop_that_returns_a_float_is_refused():
    @jaxsgd.part
    class Half(jaxsgd.Stop):
        result: object = jaxsgd.static()

        def init(self):
            return ()

        def update(self, check, state):
            return self.result(state)

    solver, state = init()
    for result, message in [
        (lambda state: (0.5, state), "returned a reason of float32 and shape .*expected an int32"),
        (
            lambda state: (jnp.zeros(2, int), state),
            r"shape \(2,\), expected an int32 or a bool scalar",
        ),
        (lambda state: True, r"Half.update returned bool, expected the tuple \(reason, state\)"),
    ]:
        with pytest.raises(TypeError, match=message):
            jaxsgd.run_until(solver, state, DATA, Half(result), max_steps=2, check_every=1)


def test_the_state_of_other_parts_is_refused():
    solver, state = init()
    for other, kind, name in [
        (init(gradient=jaxsgd.SAGA(table.loss)), "gradient", "SAGAState"),
        (init(jaxsgd.Poisson(0.2, capacity=8)), "sampler", "PoissonState"),
        (init(rule=jaxsgd.Momentum(0.1)), "rule", "MomentumState"),
    ]:
        message = f"made for another {kind}: its {kind} state is {name}.*, but a .* expects"
        with pytest.raises(ValueError, match=message):
            jaxsgd.run(solver, other[1], DATA, 1)
        with pytest.raises(ValueError, match=f"made for another {kind}"):
            jaxsgd.run(other[0], state, DATA, 1)


def test_a_rule_with_a_learning_rate_and_no_state_reports_none():
    solver, state = init(rule=Rule())
    _, info = jax.jit(solver.step)(state, DATA)
    assert info.learning_rate is None
    end, _ = jaxsgd.run(solver, state, DATA, 3)
    plain, start = init()
    chex_end, _ = jaxsgd.run(plain, start, DATA, 3)
    np.testing.assert_allclose(end.params["weight"], chex_end.params["weight"], rtol=1e-6)


def test_a_field_may_take_the_place_of_a_contracts_property():
    @jaxsgd.part
    class Fixed(jaxsgd.CounterSampler):
        batch_size: int = jaxsgd.static()
        steps_per_epoch: int = jaxsgd.static(default=7)
        size: int | None = jaxsgd.static(default=None)

        def batch(self, key, step):
            return jaxsgd.Batch(jnp.arange(2, dtype=jnp.int32), jnp.full(2, 0.5))

    assert Fixed(2).steps_per_epoch == 7
    assert jax.tree.map(lambda x: x, Fixed(2)).steps_per_epoch == 7


def subclasses(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_a_part_is_abstract_or_final_and_overrides_nothing_implemented():
    """But for the hooks that a contract declares with a default."""
    hooks = {"reported_learning_rate", "for_size", "for_shard"}
    contracts = (jaxsgd.Sampler, jaxsgd.Gradient, jaxsgd.Rule, jaxsgd.Stop, jaxsgd.Loss)
    for contract in contracts:
        for cls in subclasses(contract):
            if not cls.__module__.startswith("jaxsgd."):
                continue
            if not inspect.isabstract(cls):
                assert not [s for s in cls.__subclasses__() if s.__module__.startswith("jaxsgd.")]
            for name, own in vars(cls).items():
                if name.startswith("__") or name in hooks or not inspect.isfunction(own):
                    continue
                for base in cls.__mro__[1:]:
                    above = vars(base).get(name)
                    is_given = inspect.isfunction(above) and not getattr(
                        above, "__isabstractmethod__", False
                    )
                    assert not is_given or isinstance(above, default_property), (cls, name)


def test_a_wrapper_is_checked_from_the_inside_out():
    bad = Rule(result=lambda updates, state: updates)
    with pytest.raises(TypeError, match="Rule.update returned a dict, expected the tuple"):
        init(rule=jaxsgd.EMA(bad))
    linear = Gradient(result=lambda estimate, state: estimate)
    object.__setattr__(linear, "is_linear", True)
    with pytest.raises(TypeError, match="Gradient.update returned a Estimate, expected the tuple"):
        init(gradient=jaxsgd.Accumulated(linear, 2))

    @jaxsgd.part
    class Stateless(jaxsgd.Rule):
        rule: jaxsgd.Rule = jaxsgd.field(wraps=True)

        def init(self, params):
            return self.rule.init(params)

        def update(self, grads, state, params=None, **extra):
            return self.rule.update(grads, state, params)

    with pytest.raises(
        TypeError, match="Stateless.init returned a SGDState without the field 'rule'"
    ):
        init(rule=Stateless(jaxsgd.SGD(0.1)))


@pytest.mark.parametrize("kind", ["host", "shapes"])
def test_parts_are_checked_wherever_the_rows_lie(kind):
    rows = {
        "host": lambda: jaxsgd.HostRows(jax.tree.map(np.asarray, DATA)),
        "shapes": lambda: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), DATA),
    }[kind]()
    bad = Rule(result=lambda updates, state: updates)
    solver = jaxsgd.Solver(Gradient(), jaxsgd.Shuffled(4), Rule())
    solver.init(PARAMS, rows, key=jax.random.key(0))
    for solver, message in [
        (jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), bad), "Rule.update returned a dict"),
        (jaxsgd.Solver(Gradient(result=lambda e, s: e), jaxsgd.Shuffled(4), bad), "Gradient.update returned a Estimate"),
    ]:  # fmt: skip
        with pytest.raises(TypeError, match=message):
            solver.init(PARAMS, rows, key=jax.random.key(0))


def test_a_keyed_gradient_keeps_its_key():
    split = lambda estimate, state: (estimate, state._replace(key=jax.random.split(state.key)[0]))  # noqa: E731
    keyed = jaxsgd.GradientState(jax.random.key(3), jnp.zeros((), jnp.int32))
    init(gradient=Gradient(keyed, is_keyed=True))
    with pytest.raises(TypeError, match="Gradient.update returned another key, expected the key"):
        init(gradient=Gradient(keyed, split, is_keyed=True))


def test_fields_and_attributes_of_contracts():
    @jaxsgd.part
    class Own(jaxsgd.Gradient):
        loss: jaxsgd.Loss
        period: int = jaxsgd.static(converter=int)

        init = value = update = None

    with pytest.raises(TypeError, match="loss"):
        Own()  # no default is taken from the contract
    assert Own(jaxsgd.as_loss(table.loss), "3").period == 3
    with pytest.raises(TypeError, match="'reported_learning_rate' has the name of a method"):
        jaxsgd.part(
            type("R", (jaxsgd.Rule,), {"__annotations__": {"reported_learning_rate": float}})
        )
    with pytest.raises(TypeError, match="subclasses the part Shuffled, expected a contract"):
        jaxsgd.part(type("S", (jaxsgd.Shuffled,), {}))
    bare = jaxsgd.part(type("B", (jaxsgd.CounterSampler,), {"batch": lambda self, key, step: None}))
    with pytest.raises(TypeError, match="B has no 'size', expected the field or property"):
        init(bare())


class Fresh(jaxsgd.StreamedRows):
    """Returns arrays of its own, not views of `out`."""

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), DATA)

    def read(self, index, out):
        return jax.tree.map(lambda x: np.asarray(x)[index], DATA)


def test_a_source_may_return_arrays_of_its_own():
    options = {"key": jax.random.key(0), "epochs": 2, "learning_rate": 0.1, "progress": False}
    options |= {"batch_size": 8}
    resident = jaxsgd.fit(table.loss, PARAMS, DATA, **options)
    streamed = jaxsgd.fit(table.loss, PARAMS, Fresh(), **options)
    np.testing.assert_allclose(streamed.params["weight"], resident.params["weight"], rtol=1e-6)


def test_the_shapes_of_a_source_are_checked():
    for shapes, message in [
        ((jax.ShapeDtypeStruct((3,), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.float32)), "has 3, .* has 4"),
        (jax.ShapeDtypeStruct((3,), np.int64), "is of int64, expected int32: JAX would cast it"),
    ]:  # fmt: skip
        source = type("Source", (jaxsgd.StreamedRows,), {"shapes": shapes, "read": None})()
        with pytest.raises((TypeError, ValueError), match=message):
            init()[0].init(PARAMS, source, key=jax.random.key(0))


def test_a_state_of_a_custom_part_owns_its_buffers():
    @jaxsgd.part
    class Held(jaxsgd.Sampler):
        order: jax.Array
        batch_size: int = jaxsgd.static(default=4)
        size: int | None = jaxsgd.static(default=None)

        def init(self, key):
            return self.order, jnp.zeros((), jnp.int32)

        def batch(self, key, step):
            return jaxsgd.Batch(self.order[:4], jnp.full(4, 0.25))

        def update(self, state):
            return self.batch(None, state[1]), (state[0], state[1] + 1)

    sampler = Held(jnp.arange(20))
    for _ in range(2):
        jaxsgd.fit(
            table.loss, PARAMS, DATA, key=jax.random.key(0), epochs=1, sampler=sampler,
            learning_rate=0.1, progress=False,
        )  # fmt: skip
    assert not sampler.order.is_deleted()


@jaxsgd.part
class Halved(jaxsgd.Rows):
    """Rows that are computed from others as they are drawn."""

    rows: tuple
    scale: float = jaxsgd.number(default=0.5)

    @property
    def shapes(self):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.rows)

    def take(self, index):
        return jax.tree.map(lambda x: self.scale * x[index], self.rows)


def test_rows_that_are_computed_train_as_the_arrays_they_stand_for():
    rows = Halved(jax.tree.map(jnp.asarray, DATA))
    arrays = jax.tree.map(lambda x: 0.5 * x, rows.rows)
    options = {"key": jax.random.key(0), "batch_size": 4, "epochs": 2, "learning_rate": 0.1}
    ours, theirs = (
        jaxsgd.fit(table.loss, PARAMS, data, validation=data, progress=False, **options)
        for data in (rows, arrays)
    )
    chex.assert_trees_all_close(ours.params, theirs.params, rtol=1e-6)
    chex.assert_trees_all_close(ours.history["validation_loss"], theirs.history["validation_loss"])
    plain = type("Plain", (jaxsgd.Rows,), {"shapes": rows.shapes, "take": Halved.take})()
    with pytest.raises(TypeError, match="Plain is not a pytree; did you forget @jaxsgd.part"):
        jaxsgd.fit(table.loss, PARAMS, plain, progress=False, **options)


def test_a_rule_that_takes_no_extra_or_reports_no_number_is_refused():
    def rule(**methods):
        methods = {"init": lambda self, params: (), "__annotations__": {}} | methods
        return jaxsgd.part(type("Mine", (jaxsgd.Rule,), methods))()

    narrow = lambda self, grads, state, params=None: (grads, state)  # noqa: E731
    with pytest.raises(TypeError, match=r"Mine.update takes no \*\*extra"):
        init(rule=rule(update=narrow))
    wide = lambda self, grads, state, params=None, **extra: (grads, state)  # noqa: E731
    rate = lambda self, before, after: "fast"  # noqa: E731
    with pytest.raises(TypeError, match="reported_learning_rate returned a str, expected a scalar"):
        init(rule=rule(update=wide, reported_learning_rate=rate))


def test_text_in_the_place_of_a_number_and_a_custom_loss_are_refused():
    with pytest.raises(TypeError, match="Halved's scale: expected a number or a schedule, got 'h'"):
        Halved((), "h")
    with pytest.raises(TypeError, match="Mine subclasses jaxsgd.Loss, expected a function or a"):
        type("Mine", (jaxsgd.Loss,), {"__module__": "theirs"})


def test_a_stop_is_told_what_to_watch_where_there_is_no_validation_loss():
    noisy = jaxsgd.RowLoss(table.noisy, keyed=True)
    options = {"key": jax.random.key(0), "batch_size": 4, "epochs": 2, "learning_rate": 0.1}
    options |= {"validation": DATA, "metrics": {"mae": table.loss}, "progress": False}
    stop = jaxsgd.EarlyStopping(2)
    with pytest.raises(ValueError, match="monitor: expected one of validation_mae, loss, got None"):
        jaxsgd.fit(noisy, PARAMS, DATA, stop=stop, **options)
    assert jaxsgd.fit(
        noisy, PARAMS, DATA, stop=stop, monitor="validation_mae", mode="min", **options
    )
    assert jaxsgd.fit(noisy, PARAMS, DATA, stop=jaxsgd.SmallStep(1e-9), **options)
