"""Calls that are wrong in one argument: for each public name, and each kind of wrong value.

`GOOD` has a right call of each name, and says of what kind each argument is; `WRONG` has the values
that no argument of a kind may have. `tests/test_bad_calls.py` tries all of them.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsgd
from tests import table

PARAMS, DATA = table.problem(n=12)
KEY = jax.random.key(0)
SOLVER = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), jaxsgd.SGD(0.1))
MASKED = np.ma.masked_array(np.ones(12, np.float32), np.arange(12) == 3)


DELETED = jnp.ones(12)
DELETED.delete()


class Tensor:
    """What stands for an array of a library that JAX does not know."""

    shape, dtype, ndim = (12, 3), np.dtype(np.float32), 2


def partial_loss(scale: float, params: Any, row: Any) -> Any:
    return scale * table.loss(params, row)


NOT_NUMBERS = {
    "text": "fast",
    "nan": np.nan,
    "complex": 1j,
    "object": object(),
    "text array": np.array(["a"]),
}
NOT_REAL = NOT_NUMBERS | {"negative": -0.5, "masked": MASKED, "infinite": np.inf}
NOT_WHOLE = {
    "float": 1.5,
    "text": "3",
    "negative": -1,
    "bool": True,
    "array": jnp.ones(2),
    "nan": np.nan,
}
NOT_A_FUNCTION = {
    "number": 3,
    "text": "mse",
    "partial": functools.partial(partial_loss, 2.0),
    "array": jnp.ones(3),
}
ROWS = {
    "text array": np.array(["a", "b"]),
    "scalar": jnp.float32(1),
    "iterator": iter([1]),
    "list of numbers": [1.0, 2.0],
    "no rows": np.zeros((0, 3), np.float32),
    "nothing": (),
    "lengths": (np.zeros((3, 3), np.float32), np.zeros(4, np.float32)),
    "objects": np.array([None, 1]),
    "dates": np.array(["2020-01-01"], "datetime64[D]"),
    "foreign": Tensor(),
    "masked": MASKED,
    "deleted": DELETED,
    "other byte order": np.ones(12, ">f4"),
    "128 bits": np.ones(12, np.longdouble),
}
WRONG: dict[str, dict[str, Any]] = {
    "count": NOT_WHOLE | {"zero": 0, "None": None},
    "optional count": NOT_WHOLE | {"zero": 0},
    "steps": NOT_WHOLE | {"None": None},
    # None is allowed: the `in_axes` tree of a vmap
    "rate": NOT_REAL | {"class": jaxsgd.CosineDecay},
    "number": NOT_REAL,
    "up to 1": NOT_REAL | {"two": 2.0},
    "count or array": {"float": 1.5, "text": "3", "negative": -1, "nan": np.nan, "zero": 0},
    "below 1": NOT_REAL | {"one": 1.0},
    "activation": {"number": 3, "text": "relux", "partial": functools.partial(jnp.tanh),
                   "array": jnp.ones(3), "class": dict},
    "flag": {"number": 1, "text": "yes", "None": None, "array": jnp.ones(2, bool)},
    "function": NOT_A_FUNCTION | {"None": None},
    "optional function": NOT_A_FUNCTION,
    "loss": NOT_A_FUNCTION | {"None": None, "no arguments": lambda: 0.0, "three": lambda params, x, y: y},
    "gradient": NOT_A_FUNCTION | {"class": jaxsgd.SAGA, "None": None, "rule": jaxsgd.SGD(0.1)},
    "sampler": {"number": 64, "class": jaxsgd.Shuffled, "text": "shuffled", "None": None, "rule": jaxsgd.SGD(0.1)},
    "rule": {"number": 0.1, "class": jaxsgd.SGD, "text": "sgd", "None": None, "factory": optax.sgd, "sampler": jaxsgd.FullBatch()},
    "stop": {"number": 3, "class": jaxsgd.Converged, "text": "converged", "None": None, "rule": jaxsgd.SGD(0.1)},
    "solver": {"None": None, "rule": jaxsgd.SGD(0.1), "class": jaxsgd.Solver, "text": "solver"},
    "state": {"None": None, "params": PARAMS, "number": 3, "text": "state"},
    "params": {
        "ints": {"weight": jnp.zeros(3, int), "bias": jnp.zeros(())},
        "text": {"weight": "x", "bias": jnp.zeros(())},
        "function": {"weight": jnp.zeros(3), "bias": jax.nn.relu},
        "float": {"weight": jnp.zeros(3), "bias": 0.5},
        "nothing": {},
        "masked": {"weight": np.ma.masked_array(np.ones(3, np.float32)), "bias": np.zeros((), np.float32)},
        "complex": {"weight": jnp.zeros(3, complex), "bias": jnp.zeros(())},
        "other byte order": {"weight": np.zeros(3, ">f4"), "bias": jnp.zeros(())},
        "deleted": {"weight": DELETED, "bias": jnp.zeros(())},
        "None": None,
    },
    "data": ROWS,
    "any params": {
        "text": {"weight": "x", "bias": jnp.zeros(())},
        "function": {"weight": jnp.zeros(3), "bias": jax.nn.relu},
        "masked": {"weight": np.ma.masked_array(np.ones(3, np.float32)), "bias": np.zeros((), np.float32)},
    },
    "metric": NOT_A_FUNCTION | {"None": None, "of text": lambda params, row: "a", "complex": lambda params, row: 1j},
    "optional step": NOT_WHOLE,
    "step": {"float": 1.5, "text": "3", "negative": -1, "bool": True, "floats": jnp.ones(()), "array": jnp.ones(2, int), "beyond 32 bits": 2**31},
    "pairs": {"text": "x", "floats": np.zeros((2, 3)), "one axis": np.zeros(3, int), "negative": np.full((2, 3), -1), "None": None,
              "masked": np.ma.masked_array(np.zeros((2, 3), int)), "nothing": []},
    "like": {"other shape": {"weight": jnp.zeros(4), "bias": jnp.zeros(())}, "other structure": {"weight": jnp.zeros(3)},
             "other dtype": {"weight": jnp.zeros(3, int), "bias": jnp.zeros(())}},
    "mesh": {"number": 3, "None": None, "other axis": jax.make_mesh((1,), ("rows",)), "text": "data"},
    "factory": {"number": 0.1, "transformation": optax.sgd(0.1), "None": None, "text": "adam"},
    "key": {"number": 0, "None": None, "text": "key", "array": jnp.ones(2), "keys": jax.random.split(KEY, 3)},
    "weights": {
        "text": "x",
        "negative": np.array([-1.0, *np.ones(11)]),
        "nan": np.array([np.nan, *np.ones(11)]),
        "infinite": np.array([np.inf, *np.ones(11)]),
        "zeros": np.zeros(12),
        "length": np.ones(5),
        "complex": np.ones(12, complex),
        "text array": np.array(["a"] * 12),
        "dates": np.array(["2020-01-01"] * 12, "datetime64[D]"),
        "masked": MASKED,
        "scalar": 1.0,
        "list": [1.0] * 12,
    },
    "path": {"number": 3, "None": None, "nothing": "", "url": "gs://bucket/run"},
    "tag": {"number": 3, "bytes": b"x", "list": ["v2"]},
    "name": {"number": 3, "text": "no such name", "None": None},
    "sizes": {"text": "3", "float": (3.5, 1), "negative": (3, -1), "one": (3,), "bool": (True, 1), "None": None},
    "over": {"text": "rate", "number": 3, "nothing": {}, "scalar": {"learning_rate": 0.1}, "text values": {"learning_rate": ["a"]},
             "masked": {"learning_rate": MASKED}, "None": None},
}  # fmt: skip


WRONG["optional key"] = {what: value for what, value in WRONG["key"].items() if what != "None"}
WRONG["unsized weights"] = {
    what: value for what, value in WRONG["weights"].items() if what != "length"
}
WRONG["probabilities"] = {
    what: value for what, value in WRONG["unsized weights"].items() if what != "list"
}
WRONG["schedule"] = {
    "negative": lambda step: -0.1,
    "nan": lambda step: np.nan,
    "complex": lambda step: 0.1j,
    "text": lambda step: "fast",
    "None": lambda step: None,
    "several": lambda step: jnp.ones(2),
}
WRONG["factor"] = WRONG["count"] | {"one": 1}
# how a message calls an argument, where it is not by its name
ALIASES = {
    "stops": "AnyOf's stop",
    "gradient": "RowLoss's fn",
    "loss": "RowLoss's fn",
    "loss_or_gradient": "Solver's gradient|RowLoss's fn",
    "metrics": "the metric",
    "arrays": "data",
    "like": "saved by another run: state",
    "metric": "the metric",
}


class Good(NamedTuple):
    """A call that is right, and the kinds of its arguments."""

    fn: Callable[..., Any]
    arguments: dict[str, Any]
    kinds: dict[str, str]


def good(fn: Callable[..., Any], /, **arguments: tuple[str, Any]) -> Good:
    return Good(
        fn,
        {name: value for name, (_, value) in arguments.items()},
        {name: kind for name, (kind, _) in arguments.items() if kind},
    )


def state() -> jaxsgd.State:
    return SOLVER.init(PARAMS, DATA, key=KEY)


def trained(data: Any, params: Any, learning_rate: Any) -> Any:
    start = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), jaxsgd.SGD(learning_rate)).init(
        params, data, key=KEY
    )
    return jaxsgd.run(SOLVER, start, data, 1)[0].params


LOSS, RULE, RATE, COUNT = (
    ("loss", table.loss),
    ("rule", jaxsgd.SGD(0.1)),
    ("rate", 0.1),
    ("count", 4),
)
SIZE, FLAG, NUMBER = ("optional count", 12), ("flag", False), ("number", 0.5)
STEPS_FROM = {"solver": ("solver", SOLVER), "state": ("state", state()), "data": ("data", DATA)}


SAMPLERS = [
    jaxsgd.Shuffled(4, size=12),
    jaxsgd.WithReplacement(4, size=12),
    jaxsgd.ImportanceSampled(np.full(12, 1 / 12), 4),
    jaxsgd.Poisson(0.5, 8, size=12),
    jaxsgd.Sharded(4, 2, size=12),
    jaxsgd.PerShard(jaxsgd.WithReplacement(4), 2, size=12),
    jaxsgd.Stratified(np.arange(12) % 2, 4),
    jaxsgd.DynamicBatch(jaxsgd.Shuffled(4, size=12), 2),
]


def _restored(path: Any, like: Any, tag: Any) -> Any:
    if path == "kept" and not Path(path).exists():
        jaxsgd.save(path, PARAMS)
    return jaxsgd.restore(path, like, tag=tag)


def calls() -> dict[str, Good]:
    """A right call of each public name that takes arguments of a user."""
    averaged_rule = jaxsgd.Solver(table.loss, jaxsgd.Shuffled(4), jaxsgd.EMA(jaxsgd.SGD(0.1), 0.9))
    with_average = averaged_rule.init(PARAMS, DATA, key=KEY)
    mask = ("optional function", None)
    return {
        "SGD": good(jaxsgd.SGD, learning_rate=RATE),
        "Momentum": good(jaxsgd.Momentum, learning_rate=RATE, momentum=("up to 1", 0.9)),
        "Nesterov": good(jaxsgd.Nesterov, learning_rate=RATE, momentum=("up to 1", 0.9)),
        "AdaGrad": good(jaxsgd.AdaGrad, learning_rate=RATE),
        "RMSProp": good(jaxsgd.RMSProp, learning_rate=RATE, decay=("up to 1", 0.9), eps=NUMBER),
        "Adam": good(jaxsgd.Adam, learning_rate=RATE, b1=("up to 1", 0.9), b2=("up to 1", 0.99), eps=NUMBER),
        "LineSearch": good(jaxsgd.LineSearch, slope=("number", 0.1), max_steps=("count", 20)),
        "Proximal": good(jaxsgd.Proximal, rule=("rule", jaxsgd.SGD(0.1)), penalty=("function", jaxsgd.L1(0.1))),
        "EMA": good(jaxsgd.EMA, rule=RULE, decay=("up to 1", 0.9)),
        "TailAverage": good(jaxsgd.TailAverage, rule=RULE, start=("number", 3)),
        "L1": good(jaxsgd.L1, strength=NUMBER, mask=mask),
        "L2": good(jaxsgd.L2, strength=NUMBER, mask=mask),
        "ElasticNet": good(jaxsgd.ElasticNet, l1=NUMBER, l2=NUMBER, mask=mask),
        "Shuffled": good(jaxsgd.Shuffled, batch_size=COUNT, size=SIZE, drop_last=FLAG),
        "Sequential": good(jaxsgd.Sequential, batch_size=COUNT, size=SIZE, drop_last=FLAG),
        "Blocks": good(jaxsgd.Blocks, batch_size=COUNT, block=("count", 2), window=("count", 2), size=SIZE, drop_last=FLAG),
        "PerShard": good(jaxsgd.PerShard, sampler=("sampler", jaxsgd.WithReplacement(4)), shards=("count", 2), size=SIZE),
        "Sharded": good(jaxsgd.Sharded, batch_size=COUNT, shards=("count", 2), size=SIZE),
        "WithReplacement": good(jaxsgd.WithReplacement, batch_size=COUNT, size=SIZE),
        "FixedBatches": good(jaxsgd.FixedBatches, index=("pairs", np.zeros((2, 3), int)), size=SIZE),
        "FullBatch": good(jaxsgd.FullBatch, size=SIZE),
        "DynamicBatch": good(jaxsgd.DynamicBatch, sampler=("sampler", jaxsgd.Shuffled(4)), batch_size=("count or array", 2)),
        "ImportanceSampled": good(jaxsgd.ImportanceSampled, probabilities=("probabilities", np.full(12, 1 / 12)), batch_size=COUNT),
        "Poisson": good(jaxsgd.Poisson, rate=("up to 1", 0.5), capacity=("count", 8), size=SIZE),
        "Stratified": good(jaxsgd.Stratified, labels=("", np.arange(12) % 2), batch_size=COUNT),
        "CosineDecay": good(jaxsgd.CosineDecay, initial=NUMBER, final=NUMBER, steps=("number", 10)),
        "LinearDecay": good(jaxsgd.LinearDecay, initial=NUMBER, final=NUMBER, steps=("number", 10)),
        "InverseTimeDecay": good(jaxsgd.InverseTimeDecay, initial=NUMBER, decay=NUMBER),
        "CompoundDecay": good(jaxsgd.CompoundDecay, initial=NUMBER, decay=NUMBER),
        "ExponentialDecay": good(jaxsgd.ExponentialDecay, initial=NUMBER, decay=NUMBER),
        "StepDecay": good(jaxsgd.StepDecay, initial=NUMBER, factor=NUMBER, period=("number", 3)),
        "Warmup": good(jaxsgd.Warmup, schedule=RATE, steps=("number", 10)),
        "WarmRestarts": good(jaxsgd.WarmRestarts, initial=NUMBER, final=NUMBER, steps=("number", 10)),
        "Converged": good(jaxsgd.Converged, atol=NUMBER, rtol=NUMBER),
        "SmallGradient": good(jaxsgd.SmallGradient, atol=NUMBER),
        "SmallStep": good(jaxsgd.SmallStep, atol=NUMBER),
        "EarlyStopping": good(jaxsgd.EarlyStopping, patience=("number", 5), min_delta=NUMBER),
        "Diverged": good(jaxsgd.Diverged, factor=("number", 10.0)),
        "AnyOf": good(lambda stops: jaxsgd.AnyOf(jaxsgd.Converged(), stops), stops=("stop", jaxsgd.SmallStep())),
        "RowLoss": good(jaxsgd.RowLoss, fn=("loss", table.loss), has_aux=FLAG, keyed=FLAG, has_model_state=FLAG),
        "RowsLoss": good(jaxsgd.RowsLoss, fn=("loss", table.loss), has_aux=FLAG, keyed=FLAG, has_model_state=FLAG),
        "BatchLoss": good(jaxsgd.BatchLoss, fn=("function", lambda params, rows, weight: 0.0), has_aux=FLAG, keyed=FLAG),
        "as_loss": good(jaxsgd.as_loss, loss=LOSS),
        "MinibatchGradient": good(jaxsgd.MinibatchGradient, loss=LOSS),
        "SAGA": good(jaxsgd.SAGA, loss=LOSS),
        "SVRG": good(jaxsgd.SVRG, loss=LOSS, period=("count", 3)),
        "Accumulated": good(jaxsgd.Accumulated, gradient=("gradient", table.loss), chunks=("count", 2)),
        "PerExampleClipped": good(jaxsgd.PerExampleClipped, loss=LOSS, max_norm=NUMBER, noise=NUMBER, row_scale=NUMBER),
        "NoiseScaleGradient": good(jaxsgd.NoiseScaleGradient, gradient=("gradient", table.loss), decay=("up to 1", 0.9)),
        "Objective": good(lambda **named: jaxsgd.Objective(**named)(state()), metric=("metric", table.loss), data=("data", DATA), penalty=mask, sample_weight=("weights", np.ones(12))),
        "HostRows": good(jaxsgd.HostRows, arrays=("", DATA), prefetch=("count", 2), chunk_bytes=("count", 64)),
        "BatchOrder": good(jaxsgd.BatchOrder, sampler=("sampler", jaxsgd.Shuffled(4)), size=("count", 12), key=("key", KEY), start=("step", 0),
                           stop=("optional step", 3), steps_at_once=("count", 8)),
        "Solver": good(jaxsgd.Solver, gradient=("gradient", table.loss), sampler=("sampler", jaxsgd.Shuffled(4)), rule=RULE,
                       penalty=mask, sample_weight=("unsized weights", np.ones(12))),
        "Solver.init": good(SOLVER.init, params=("params", PARAMS), data=("data", DATA), key=("key", KEY)),
        "Solver.batches": good(SOLVER.batches, **{n: STEPS_FROM[n] for n in ("state", "data")}, steps=("count", 3)),
        "check": good(jaxsgd.check, solver=("solver", SOLVER), params=("params", PARAMS), data=("data", DATA)),
        "run": good(jaxsgd.run, **STEPS_FROM, steps=("steps", 3), record=mask, record_every=("count", 1)),
        "run_until": good(jaxsgd.run_until, **STEPS_FROM, stop=("stop", jaxsgd.Converged()), max_steps=("count", 4),
                          check_every=("count", 2), monitor=mask),
        "chunks": good(lambda **named: next(iter(jaxsgd.chunks(**named))), **STEPS_FROM, steps=("count", 3), record=mask),
        "evaluate": good(jaxsgd.evaluate, metrics=("metric", table.loss), params=("any params", PARAMS), data=("data", DATA),
                         sample_weight=("weights", np.ones(12)), batch_size=("count", 4)),
        "fit": good(jaxsgd.fit, loss_or_gradient=LOSS, params=("params", PARAMS), data=("data", DATA), key=("key", KEY),
                    epochs=("steps", 1), batch_size=("optional count", 4), learning_rate=("rate", 0.1), penalty=mask,
                    sample_weight=("weights", np.ones(12)), validation=("data", DATA),
                    validation_sample_weight=("weights", np.ones(12)), restore_best=FLAG, progress=("", False)),
        "rate_at": good(lambda schedule: jaxsgd.rate_at(schedule, jnp.int32(3)), schedule=("schedule", lambda step: 0.1)),
        "FromOptax": good(jaxsgd.FromOptax, factory=("factory", optax.adam), learning_rate=("rate", 0.1)),
        "halving": good(jaxsgd.halving, init=("function", lambda learning_rate: learning_rate),
                        run=("function", lambda state, steps, learning_rate: (state, state)), over=("over", {"learning_rate": np.ones(4)}),
                        steps=("count", 4), factor=("factor", 2), chunk=("optional count", 1)),
        "Sweep.ranked": good(jaxsgd.sweep(lambda learning_rate: learning_rate, over={"learning_rate": np.ones(2)}, progress=False).ranked,
                             most=("optional count", 1)),
        "process_rows": good(jaxsgd.process_rows, size=("count", 12), mesh=("mesh", jax.make_mesh((1,), ("data",))), shards=("count", 2)),
        "MeshRows": good(jaxsgd.MeshRows, arrays=("data", DATA), mesh=("mesh", jax.make_mesh((1,), ("data",))), shards=("count", 2),
                         reproducible=("flag", False)),
        "restore": good(_restored, path=("path", "kept"), like=("like", PARAMS), tag=("tag", None)),
        **{f"{type(s).__name__}.batch": good(s.batch, key=("key", KEY), step=("step", 1)) for s in SAMPLERS},
        "averaged": good(jaxsgd.averaged, state=("state", with_average)),
        "as_rows": good(jaxsgd.as_rows, data=("data", DATA)),
        "permute": good(jaxsgd.permute, key=("key", KEY), positions=("", np.arange(3)), size=("count", 5)),
        "sweep": good(jaxsgd.sweep, fn=("function", lambda learning_rate: learning_rate), over=("over", {"learning_rate": np.ones(2)}),
                      chunk=("optional count", 1), gather=("flag", True)),
        "save": good(lambda path, tag=None: jaxsgd.save(path, PARAMS, tag=tag), path=("path", "saved"), tag=("tag", None)),
        "models.Linear": good(jaxsgd.models.Linear, features=("count", 3), outputs=("optional count", 2), initialise=("name", "zeros")),
        "models.MLP": good(jaxsgd.models.MLP, sizes=("sizes", (3, 2, 1)), initialise=("name", "lecun"),
                           activation=("activation", jnp.tanh), dropout=("below 1", 0.1)),
        "diagnostics.estimate_smoothness": good(jaxsgd.diagnostics.estimate_smoothness, loss=LOSS, params=("params", PARAMS),
                                                data=("data", DATA), key=("key", KEY), iterations=("count", 2)),
        "diagnostics.noise_scale": good(jaxsgd.diagnostics.noise_scale, loss=LOSS, params=("params", PARAMS), data=("data", DATA),
                                        key=("optional key", KEY)),
    }  # fmt: skip


def bad_calls() -> Iterator[tuple[str, str, str, Callable[[], Any]]]:
    """Each call: the name, the argument, the kind of wrong value, and what calls it."""
    for name, (fn, arguments, kinds) in calls().items():
        for argument, kind in kinds.items():
            for what, value in WRONG[kind].items():
                yield name, argument, what, functools.partial(fn, **{**arguments, argument: value})
