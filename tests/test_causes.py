"""What is wrong only together, or only in a run: each is named by its cause."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas
import pytest

import jaxsgd
from jaxsgd.training.divergence import _in_rows
from tests import table

PARAMS, DATA = table.problem(n=12)
KEY = jax.random.key(0)
SOLVER = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), jaxsgd.SGD(0.1))
STATE = SOLVER.init(PARAMS, DATA, key=KEY)
LASSO = jaxsgd.Proximal(jaxsgd.SGD(0.1), jaxsgd.L1(0.1))


def fit(**options):
    given = {"key": KEY, "epochs": 3, "batch_size": 4, "learning_rate": 0.05, "progress": False}
    data = options.pop("data", DATA)
    return jaxsgd.fit(table.loss, PARAMS, data, **{**given, **options})


def of_rule(rule, **options):
    return lambda: jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), rule, **options)


def masked(mask):
    return lambda: jaxsgd.L2(0.1, mask=mask)(PARAMS)


class Ones(jaxsgd.StreamedRows):
    shapes = jax.ShapeDtypeStruct((12,), jnp.float32)

    def read(self, index, out):
        return {"rows": out}


@jaxsgd.part
class Branching(jaxsgd.Stop):
    def init(self):
        return ()

    def update(self, check, state):
        return 1 if check.monitor < 0.1 else 0, state


@jaxsgd.part
class Descent:  # the tests' check of types would refuse SGD's keyword before jaxsgd does
    _elsewhere: ClassVar[dict[str, str]] = jaxsgd.SGD._elsewhere
    learning_rate: float = jaxsgd.number()


@jaxsgd.part
class Counting(jaxsgd.CounterSampler):
    """Weights of 1, not of 1 / B."""

    batch_size: int = jaxsgd.static()
    size: int | None = jaxsgd.static(default=None)

    def batch(self, key, step):
        return jaxsgd.Batch(jnp.arange(self.batch_size), jnp.ones(self.batch_size))


@jaxsgd.part
class Unsized(jaxsgd.CounterSampler):
    """A batch size that is a leaf."""

    batch_size: int
    size: int | None = jaxsgd.static(default=None)

    def batch(self, key, step):
        return jaxsgd.Batch(jnp.arange(self.batch_size), jnp.ones(self.batch_size))


@jaxsgd.part
class OneRow(jaxsgd.Rows):
    shapes = jax.ShapeDtypeStruct((12, 3), jnp.float32)

    def take(self, index):
        return jnp.ones(3)


def donated(part):
    """A run whose state was donated, or a part of it."""

    def call():
        state = SOLVER.init(PARAMS, DATA, key=KEY)
        jax.tree.map(lambda x: x.delete(), part(state))
        jaxsgd.run(SOLVER, state, DATA, 3)

    return call


swept = jaxsgd.sweep(
    lambda learning_rate: 2 * learning_rate,
    over={"learning_rate": np.array([0.1, 0.2])},
    progress=False,
)
WRONG = {
    "a keyword of another rule": (
        lambda: Descent(0.1, momentum=0.9),
        r"Descent takes no 'momentum', expected learning_rate; see jaxsgd.Momentum",
    ),
    "line search and corners": (
        of_rule(jaxsgd.LineSearch(), penalty=jaxsgd.L1(0.1)),
        r"L1.*LineSearch.*expected the rule Proximal",
    ),
    "a penalty twice": (of_rule(LASSO, penalty=jaxsgd.ElasticNet(0.1, 0.1)), "count twice"),
    "a penalty twice, averaged": (
        of_rule(jaxsgd.EMA(LASSO, 0.9), penalty=jaxsgd.L1(0.2)),
        "count twice",
    ),
    "a mask of numbers": (masked(lambda p: {"weight": 1.0, "bias": 0.0}), "expected True or False"),
    "a mask of another structure": (masked(lambda p: {"w": True}), "expected a prefix"),
    "a schedule that branches": (
        lambda: fit(learning_rate=lambda step: 0.1 if step < 10 else 0.01),
        r"the schedule .* needs the value of the step or .* write jnp.where",
    ),
    "a stop that branches": (
        lambda: jaxsgd.run_until(SOLVER, STATE, DATA, Branching(), max_steps=4, check_every=2),
        r"Branching.update needs the value of an array .* write jnp.where",
    ),
    "a step that is a float": (
        lambda: jaxsgd.run(SOLVER, STATE._replace(step=jnp.zeros(())), DATA, 3),
        r"state.step is of float32, expected an int32",
    ),
    "a state that was donated": (
        donated(lambda state: state),
        "state was deleted: an earlier call",
    ),
    "params that were donated": (donated(lambda state: state.params), "state was deleted"),
    "a Series on the host": (
        lambda: jaxsgd.HostRows((np.ones((3, 2)), pandas.Series([1.0, 2.0, 3.0]))),
        r"data\[1\] is a Series, expected an array; convert it with its method to_numpy\(\)",
    ),
    "a penalty that is a class": (
        of_rule(jaxsgd.SGD(0.1), penalty=jaxsgd.L2),
        "is the class L2, expected a function; did you forget to call it",
    ),
    "an optimizer as a rate": (
        lambda: fit(learning_rate=optax.adam(0.1)),
        "is an optimizer, expected a number or a schedule; give it as the rule",
    ),
    "an optimizer that is not called": (
        of_rule(optax.adam),
        "rule is the function adam, .* did you forget to call it",
    ),
    "a log that is a file": (
        lambda: fit(log="log.csv"),
        "log is 'log.csv' of type str, expected a fu",
    ),
    "a log of two arguments": (
        lambda: fit(log=lambda step, record: None),
        r"log takes the arguments \(step, record\), but is called as log\(record\)",
    ),
    "a record of one argument": (
        lambda: jaxsgd.run(SOLVER, STATE, DATA, 3, lambda state: state),
        r"record takes the arguments \(state\), but is called as record\(state, info\)",
    ),
    "rows on the host of 128 bits": (
        lambda: jaxsgd.HostRows(np.ones(12, np.longdouble)),
        "data is an array of float128, expected at most 64 bits",
    ),
    "a sweep over other values": (
        lambda: jaxsgd.sweep(lambda a, learning_rate: a, swept, over={"learning_rate": [0.1, 0.3]}),
        "a Sweep over other values of 'learning_rate'",
    ),
    "a negative rate in a sweep": (
        lambda: jaxsgd.sweep(lambda learning_rate: 0.0, over={"learning_rate": [0.1, -0.1]}),
        "over's 'learning_rate' is .* expected at least 0",
    ),
    "rows of another structure": (
        lambda: jaxsgd.evaluate(lambda p, row: row, jnp.zeros(()), Ones()),
        "Ones.read returned .* expected the structure of its shapes",
    ),
    "weights that are counts": (
        lambda: fit(sampler=Counting(4), batch_size=None),
        r"Counting\(batch_size=4.* gave each of 4 rows the weight 1, expected 1/4",
    ),
    "a size that is a leaf": (
        lambda: fit(sampler=Unsized(4), batch_size=None),
        r"Unsized.* needs the value of an array .* is to be jaxsgd.static",
    ),
    "rows that are one row": (
        lambda: SOLVER.init(PARAMS, OneRow(), key=KEY),
        r"OneRow.take of 2 rows returned float32\[3\], expected float32\[2, 3\]",
    ),
    "a metric without a mode": (
        lambda: fit(
            metrics={"accuracy": lambda params, row: row[1] > 0},
            monitor="accuracy",
            restore_best=True,
        ),
        "monitor='accuracy' was given without a mode, expected mode='max'",
    ),
    "an axis that is no argument": (
        lambda: jaxsgd.sweep(lambda lr: lr, over={"rate": [0.1]}),
        r"takes \(lr\), but is called with 0 arguments and, by name, over's rate",
    ),
    "a state for its params": (
        lambda: jaxsgd.evaluate(table.loss, STATE, DATA),
        "params is a State, perhaps its attribute `params` was meant",
    ),
    "a path for an array": (lambda: jaxsgd.HostRows("x.npy"), r"data is the path 'x.npy'.*np.load"),
    "a rate of Optax's that is text": (
        lambda: jaxsgd.FromOptax(optax.adam, learning_rate="x"),
        "adam's learning_rate is 'x'",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_combination_is_refused(what):
    call, message = WRONG[what]
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        call()


def test_what_is_right_beside_them_is_taken():
    only = lambda name: lambda params: {"weight": name == "weight", "bias": name == "bias"}  # noqa: E731
    lasso = jaxsgd.Proximal(jaxsgd.SGD(0.1), jaxsgd.L1(0.1, mask=only("weight")))
    of_rule(lasso, penalty=jaxsgd.L1(0.1, mask=only("bias")))()
    of_rule(jaxsgd.LineSearch(), penalty=jaxsgd.ElasticNet(0.0, 0.1))()
    ridge = jaxsgd.Proximal(jaxsgd.SGD(0.1), jaxsgd.L2(0.1))
    with pytest.raises(ValueError, match="count twice"):
        of_rule(ridge, penalty=jaxsgd.L2(0.1))()
    with pytest.raises(ValueError, match="LineSearch"):
        of_rule(jaxsgd.EMA(jaxsgd.LineSearch(), 0.9), penalty=jaxsgd.L1(0.1))()
    nan = {"rate": np.array([np.nan, 0.1])}
    double = jaxsgd.sweep(lambda rate: 2 * rate, over=nan, progress=False)
    jaxsgd.sweep(lambda a, rate: a, double, over={"rate": jnp.array([jnp.nan, 0.1])})
    of_rule(LASSO, penalty=jaxsgd.L2(0.1))()
    of_rule(jaxsgd.LineSearch(), penalty=jaxsgd.L2(0.1))()
    of_rule(jaxsgd.SGD(0.1), penalty=jaxsgd.L1(0.1))()
    jaxsgd.sweep(lambda a, learning_rate: a, swept, over={"learning_rate": np.array([0.1, 0.2])})
    fit(batch_size=None)  # 64, but there are 12 rows
    assert jaxsgd.L2(0.1, mask=lambda p: np.True_)(PARAMS) == jaxsgd.L2(0.1)(PARAMS)


def with_nan(place=jnp.asarray):
    x, y = (np.array(leaf) for leaf in DATA)
    x[7, 1] = np.nan
    return place((x, y)) if place is not jnp.asarray else (jnp.asarray(x), jnp.asarray(y))


@pytest.mark.parametrize("place", [jnp.asarray, jaxsgd.HostRows], ids=["device", "host"])
def test_a_diverged_fit_names_the_row(place):
    result = fit(data=with_nan(place))
    assert result.reason == jaxsgd.Reason.DIVERGED
    step = int(result.state.step)
    assert result.message.endswith(
        f"diverged in step {step} (counted from 0): the loss of the batch is nan; row 7 of data[0] holds nan"
    )
    assert 7 in SOLVER.batches(result.state, DATA, 1).index[0]
    assert result.message in repr(result)


def test_a_diverged_fit_names_the_rate_the_loss_or_the_penalty():
    late = fit(learning_rate=lambda step: jnp.where(step == 4, jnp.nan, 0.05))
    assert late.message.endswith("diverged in step 4 (counted from 0): the learning rate is nan")
    assert "the loss of the batch is inf" in fit(epochs=60, learning_rate=50.0).message
    infinite = lambda params: jnp.sum(params["weight"]) * jnp.inf  # noqa: E731
    assert "the penalty is inf" in fit(penalty=infinite).message
    mesh = jax.make_mesh((1,), ("data",))
    spread = fit(data=jaxsgd.MeshRows(with_nan(), mesh, shards=2))
    assert "diverged in step" in spread.message
    assert "the loss of the batch is nan" in spread.message


def test_a_search_for_the_cause_that_fails_loses_nothing(monkeypatch):
    def fail(*args):
        raise OSError("no disk")

    monkeypatch.setattr("jaxsgd.training.trainer.cause_of", fail)
    result = fit(data=with_nan())
    assert result.message.endswith(str(jaxsgd.Reason.DIVERGED))


def test_a_stopped_fit_names_the_value_and_the_best_epoch():
    result = fit(epochs=50, validation=DATA, stop=jaxsgd.Converged(atol=10.0))
    value = result.history["validation_loss"]
    assert f"validation_loss {value[-1]:.6g}, best {value.min():.6g}" in result.message
    assert "in epoch 2)" in result.message
    largest = {"n": lambda params, row: params["bias"]}
    best = fit(metrics=largest, monitor="n", mode="max", restore_best=True)
    assert f"best {best.history['n'].max():.6g}" in best.message
    assert fit().message == "ended in epoch 3, after 9 steps: all epochs were run"


def test_only_rows_that_count_are_named():
    rows = np.array([[1.0, 2.0], [1.0, np.inf]])
    index = jnp.array([3, 7])
    counted, left_out = jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])
    assert _in_rows(rows, jaxsgd.Batch(index, left_out)) is None
    assert _in_rows({"x": rows}, jaxsgd.Batch(index, counted)) == "row 7 of data['x'] holds inf"
    assert _in_rows(rows + 0j, jaxsgd.Batch(index, counted)) == "row 7 of data holds (inf+0j)"
    assert _in_rows(rows > 0, jaxsgd.Batch(index, counted)) is None
