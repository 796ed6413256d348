"""The command `jaxsgd`: train a small model on a table of rows, sweep its numbers, and predict."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

import jax
import numpy as np
from jaxtyping import PyTree

from jaxsgd import plots, problems
from jaxsgd.cli import options
from jaxsgd.cli.parser import make_parser, say
from jaxsgd.cli.sweep import search
from jaxsgd.cli.tables import Table, numbers, read
from jaxsgd.cli.task import (
    CLASSIFIERS,
    Accuracy,
    Rows,
    Task,
    lbfgs,
    load,
    prepare,
    save,
    standardise,
    task_for,
)
from jaxsgd.core import validation
from jaxsgd.diagnostics.smoothness import estimate_smoothness
from jaxsgd.evaluation import evaluate
from jaxsgd.models import Linear, weights_only
from jaxsgd.penalties import L2, ElasticNet
from jaxsgd.rules.base import Rule
from jaxsgd.samplers.epochs import FullBatch, Shuffled
from jaxsgd.stopping.base import Reason
from jaxsgd.training.fit import Result, fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SQUARES = {"squared_error": 1, "l2_loss": 2}  # times the loss: the mean square
EXITS = {Reason.DIVERGED: 1, Reason.INTERRUPTED: 130}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 diverged, 2 wrong input, 130 interrupted."""
    try:
        commands = {"fit": _fit, "sweep": _sweep, "predict": _predict}
        args = make_parser(commands).parse_args(argv)
        return args.run(args)
    except (ValueError, ImportError, OSError) as error:
        return say(str(error), 2)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # below a progress bar
        return say("interrupted; files that were not named above were not written", 130)


def prepared(args: argparse.Namespace) -> tuple[Task, Rows, str]:
    """The task, its rows, and the name of their table."""
    table, name = _table(args)
    assert table.target is not None
    target = table.target
    is_text = target.dtype.kind not in "iuf"
    default = "softmax" if name == "digits" or is_text else "squared_error"
    loss = args.loss or default
    if is_text and args.loss is None:
        print(
            f"note          the target is text, so its {len(np.unique(target.astype(str)))} values "
            "are classes: --loss softmax; --loss names another"
        )
    if loss not in CLASSIFIERS:
        target = numbers(Path(args.file), args.target or "target", target)
        count = len(np.unique(target))
        if args.loss is None and count <= 10:
            print(
                f"note          the target has {count} different numbers; if they are classes, "
                "give --loss softmax"
            )
    rows = prepare(table, target, loss, test_fraction=args.test_fraction, seed=args.seed)
    return task_for(args.model, loss, rows, args.init), rows, name


def _fit(args: argparse.Namespace) -> int:
    task, rows, name = prepared(args)
    metrics = {"accuracy": Accuracy(task)} if task.loss in CLASSIFIERS else {}
    init_key, fit_key = jax.random.split(jax.random.key(args.seed))
    out = Path(args.out or f"jaxsgd-{name}")
    sampler = _sampler(args, len(rows.train[0]))
    epochs = validation.integer(args.epochs, "--epochs", 1)
    steps = epochs * sampler.for_size(len(rows.train[0])).steps_per_epoch
    make_rule = _make_rule(args, args.rule, steps)
    rule = make_rule(learning_rate=args.learning_rate, momentum=args.momentum, l1=args.l1)
    stop = options.stop(args.stop)
    if args.l1 and any(spec.startswith("gradient") for spec in args.stop):
        raise ValueError("--l1 has no gradient at 0 for --stop gradient: use --stop step")
    out.mkdir(parents=True, exist_ok=True)
    start = task.model.init(init_key)
    result = fit(
        task,
        start,
        rows.train,
        key=fit_key,
        sampler=sampler,
        epochs=epochs,
        rule=rule,
        penalty=L2(args.l2, mask=weights_only),
        validation=rows.held_out,
        metrics=metrics,
        stop=stop,
    )
    if (reason := _divergence(task, start, result, rows)) is not None:
        return _diverged(args, task, start, result, rows, out, reason)
    files = _write(out, result, rows, task, args.model, f"{name}, {args.model}, {args.rule}")
    print(f"files         {', '.join(map(str, files))}")
    print("rule         ", re.sub(r"<function (\w+) at \w+>", r"\1", repr(rule)))
    _report(result, task, ElasticNet(args.l1, args.l2, weights_only), rows, metrics)
    if result.reason in EXITS:
        return say(f"{result.message}; kept in {out}", EXITS[result.reason])
    return 0


def _divergence(task: Task, start: PyTree, result: Result, rows: Rows) -> str | None:
    """How a run diverged, or None: a loss far above that of the start is divergence too."""
    after = float(evaluate(task, result.params, rows.train))
    if result.reason == Reason.DIVERGED:
        what = "gradient or the update" if np.isfinite(after) else "loss"
        return f"at step {int(result.state.step)} the {what} was not finite"
    before = float(evaluate(task, start, rows.train))
    if after <= 1e3 * (before + 1):
        return None
    return f"the train loss is {after:.3g}, {before:.3g} before the first step"


def _diverged(
    args: argparse.Namespace,
    task: Task,
    start: PyTree,
    result: Result,
    rows: Rows,
    out: Path,
    reason: str,
) -> int:
    """Write the history alone, under a name of its own; what an earlier run made stays."""
    path = out / "diverged-history.csv"
    with _renamed(out) as folder:
        _write_history(result, folder / path.name)
    message = f"diverged: {reason}. Only {path} was written"
    if args.learning_rate is not None:
        rate = args.learning_rate / 10
        if args.rule in ("sgd", "momentum", "nesterov"):
            key = jax.random.key(args.seed)
            curvature = float(estimate_smoothness(task, start, rows.train, key=key).row)
            rate = min(rate, 1 / curvature if curvature > 0 else rate)
        message += f"; try --learning-rate {rate:.1g}"
    return say(message, EXITS[Reason.DIVERGED])


@contextmanager
def _renamed(out: Path) -> Iterator[Path]:
    """A folder whose files are moved into `out` at the end, all or, if there is an error, none."""
    with TemporaryDirectory(prefix=".jaxsgd-", dir=out) as folder:
        yield Path(folder)
        for file in sorted(Path(folder).iterdir()):
            file.replace(out / file.name)


def _table(args: argparse.Namespace) -> tuple[Table, str]:
    if args.file == "digits":
        if args.target is not None:
            raise ValueError("digits is a data set with its own target; leave out --target")
        return _digits(), "digits"
    if args.target is None:
        raise ValueError(f"--target is missing: name the column of {args.file} to predict")
    return read(args.file, target=args.target), Path(args.file).stem


def _digits() -> Table:
    x, y = problems.digits()
    return Table([f"pixel_{i // 8}_{i % 8}" for i in range(64)], x, y)


def _sampler(args: argparse.Namespace, n: int) -> FullBatch | Shuffled:
    if args.rule == "line-search":  # on the full objective
        if args.batch_size is not None:
            raise ValueError(
                "--rule line-search takes all rows at each step: leave out --batch-size"
            )
        return FullBatch()
    return Shuffled(min(64, n) if args.batch_size is None else args.batch_size)


def _make_rule(args: argparse.Namespace, name: str, steps: int) -> Callable[..., Rule]:
    """A function of `learning_rate`, `momentum` and `l1` that returns the rule."""
    return partial(
        options.rule,
        name,
        schedule=args.schedule,
        warmup=args.warmup,
        average=args.average,
        mask=weights_only,
        steps=steps,
    )


def _label(task: Task, rows: Rows) -> str:
    unit = " (standardised target)" if rows.classes is None else ""
    return f"{task.loss.replace('_', ' ')} loss{unit}"


def _write(out: Path, result: Result, rows: Rows, task: Task, spec: str, title: str) -> list[Path]:
    """The model, the history and, if an epoch was run, its picture."""
    has_picture = len(result.history["epoch"]) > 0
    with _renamed(out) as folder:
        save(folder / "model.npz", result.params, rows, spec, task.loss)
        _write_history(result, folder / "history.csv")
        if has_picture:
            ax = plots.learning_curve(result.history, label=_label(task, rows))
            ax.set_title(title)
            _save_figure(ax, folder / "learning_curve.png")
    if not has_picture:
        (out / "learning_curve.png").unlink(missing_ok=True)  # an earlier run's
    names = ("model.npz", "history.csv", "learning_curve.png")
    return [out / name for name in names[: 2 + has_picture]]


def _write_history(result: Result, path: Path) -> None:
    import pandas

    pandas.DataFrame(result.history).to_csv(path, index=False)


def _save_figure(ax: "Axes", path: Path) -> None:
    cast("Figure", ax.figure).savefig(path, dpi=150)


def _report(
    result: Result,
    task: Task,
    penalty: ElasticNet,
    rows: Rows,
    metrics: Mapping[str, Accuracy],
) -> None:
    _report_data(rows)
    n = len(rows.train[0])
    if result.reason not in (Reason.EPOCHS, *EXITS):
        print(f"stopped       {result.message}")
    history = result.history
    if len(history["step"]) > 1:
        steady, steps = float(np.median(history["seconds"][1:])), history["step"][0]
        print(f"compile       {max(history['seconds'][0] - steady, 0):.2f} s")
        print(f"steady        {1e6 * steady / steps:.1f} us/step, {n / steady:,.0f} rows/s")
    for name, data in [("train", rows.train), ("held out", rows.held_out)]:
        if data is not None:
            values = evaluate({f"{task.loss} loss": task, **metrics}, result.params, data)
            line = ", ".join(f"{metric} {float(value):.4g}" for metric, value in values.items())
            if rows.classes is None:
                line += " (standardised target)"
            if task.loss in SQUARES:
                mean = float(values[f"{task.loss} loss"]) * SQUARES[task.loss]
                line += f", root mean square {rows.unit[1] * mean**0.5:.4g}"
            print(f"{name:<13} {line}")
    if penalty.l1:
        is_weight = jax.tree.leaves(weights_only(result.params))
        leaves = zip(is_weight, jax.tree.leaves(result.params), strict=True)
        flat = np.concatenate([np.ravel(x) for is_weight, x in leaves if is_weight])
        print(f"weights       {np.sum(flat == 0)} of {flat.size} are exactly 0")
    if not isinstance(task.model, Linear):
        print("objective     not compared with L-BFGS: the loss of an MLP has many minima")
    elif task.loss == "hinge":
        print("objective     not compared with L-BFGS: the hinge loss is not differentiable")
    else:
        ours, best, converged = lbfgs(result.params, task, penalty, rows.train)
        kind = "converged L-BFGS" if converged else "L-BFGS, not converged,"
        print(f"objective     {ours:.6g} (train loss + penalty); {kind} {best:.6g}")


def _report_data(rows: Rows) -> None:
    n, d = rows.train[0].shape
    held = 0 if rows.held_out is None else len(rows.held_out[0])
    print(f"device        {jax.devices()[0].device_kind} ({jax.default_backend()})")
    print(f"data          {n} rows x {d} features to train on, {held} held out")


def _sweep(args: argparse.Namespace) -> int:
    task, rows, name = prepared(args)
    rule = args.rule or ("sgd" if args.momentum is None else "momentum")
    sampler = _sampler(args, len(rows.train[0])).for_size(len(rows.train[0]))
    steps = validation.integer(args.epochs, "--epochs", 1) * sampler.steps_per_epoch
    swept = {k: getattr(args, k) for k in ("learning_rate", "momentum", "l1", "l2")}
    out = Path(args.out or f"jaxsgd-{name}-sweep")
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    found = search(
        task,
        rows,
        swept,
        make_rule=_make_rule(args, rule, steps),
        sampler=sampler,
        steps=steps,
        seed=args.seed,
        seeds=args.seeds,
    )
    seconds = time.perf_counter() - began
    files = [out / "sweep.csv", out / "sweep.png"]
    score = f"{'train' if rows.held_out is None else 'held out'} {_label(task, rows)}"
    with _renamed(out) as folder:
        found.runs.to_frame().to_csv(folder / "sweep.csv", index=False)
        ax, fixed_values = found.plot(score)
        ax.set_title(f"{name}, {args.model}, {rule}{fixed_values}")
        _save_figure(ax, folder / "sweep.png")
    print(f"files         {', '.join(map(str, files))}")
    _report_data(rows)
    fixed = [f"{k} = {v[0]:g}" for k, v in swept.items() if v and len(v) == 1]
    print(f"rule          {', '.join([rule, args.schedule, *fixed])}")
    print(f"time          {seconds:.2f} s, {steps} steps per run, compilation included")
    print(*found.report(score), sep="\n")
    if found.ranked()[0].diverged:
        return say(f"diverged: in every setting some run was not finite; kept in {out}", 1)
    return 0


def _predict(args: argparse.Namespace) -> int:
    task, params, rows = load(args.model)
    import pandas

    is_digits = args.file == "digits"
    table = _digits() if is_digits else read(args.file, target=None, names=rows.names)
    x = standardise(table.features, rows.mean, rows.scale)
    output = np.asarray(jax.jit(task.predict)(params, x))
    if rows.classes is None:
        mean, scale = rows.unit
        columns = {"prediction": mean + scale * output[:, 0]}
    else:
        columns = {"prediction": rows.classes[output.argmax(axis=1)]}
        kind = "score" if task.loss == "hinge" else "probability"
        columns |= {f"{kind}_{c}": output[:, k] for k, c in enumerate(rows.classes)}
    pandas.DataFrame(columns).to_csv(args.out, index=False)
    print(f"{len(x)} predictions in {args.out}")
    return 0
