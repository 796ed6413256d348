"""The command `jaxsgd`: train a small model on a table of rows, sweep its numbers, and predict."""

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from jaxsgd import plots, problems
from jaxsgd.cli import options
from jaxsgd.cli.sweep import search, values
from jaxsgd.cli.tables import Table, numbers, read
from jaxsgd.cli.task import (
    CLASSIFIERS,
    LOSSES,
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
from jaxsgd.evaluation import evaluate
from jaxsgd.models import INITS, Linear, weights_only
from jaxsgd.penalties import L2, ElasticNet
from jaxsgd.samplers.epochs import FullBatch, Shuffled
from jaxsgd.stopping import Reason
from jaxsgd.training.fit import Result, fit

SQUARES = {"squared_error": 1, "l2_loss": 2}  # times the loss: the mean square
EXITS = {Reason.DIVERGED: 1, Reason.INTERRUPTED: 130}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 diverged, 2 wrong input, 130 interrupted."""
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except (ValueError, ImportError, OSError) as error:
        return _say(str(error), 2)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # below what was being drawn
        return _say("interrupted; files that were not named above were not written", 130)


def _say(sentence: str, code: int) -> int:
    print(f"jaxsgd: {sentence}", file=sys.stderr)
    return code


def _prepared(args: argparse.Namespace) -> tuple[Task, Rows, str]:
    """What is trained, on which rows, and the name of their table."""
    table, name = _table(args)
    assert table.target is not None
    is_text = table.target.dtype.kind not in "iuf"
    default = "softmax" if name == "digits" or is_text else "squared_error"
    loss = args.loss or default
    if loss not in CLASSIFIERS:
        column = numbers(Path(args.file), args.target or "target", table.target)
        few = len(np.unique(column))
        if args.loss is None and few <= 10:
            told = f"the target holds {few} different numbers; if they are classes"
            print(f"note          {told}, give --loss softmax")
        table = table._replace(target=column)
    rows = prepare(table, loss, test_fraction=args.test_fraction, seed=args.seed)
    return task_for(args.model, loss, rows, args.init), rows, name


def _fit(args: argparse.Namespace) -> int:
    task, rows, name = _prepared(args)
    metrics = {"accuracy": Accuracy(task)} if task.loss in CLASSIFIERS else {}
    init_key, fit_key = jax.random.split(jax.random.key(args.seed))
    out = Path(args.out or f"jaxsgd-{name}")
    sampler = _sampler(args, len(rows.train[0]))
    steps = args.epochs * sampler.for_size(len(rows.train[0])).steps_per_epoch
    rule, stop = _rule(args, steps), options.stop(args.stop)
    if args.l1 and any(spec.startswith("gradient") for spec in args.stop):
        raise ValueError("--stop gradient does not come with --l1, which has none: --stop step")
    out.mkdir(parents=True, exist_ok=True)
    result = fit(
        task,
        task.model.init(init_key),
        rows.train,
        key=fit_key,
        sampler=sampler,
        epochs=args.epochs,
        rule=rule,
        penalty=L2(args.l2, mask=weights_only),
        validation=rows.held_out,
        metrics=metrics,
        stop=stop,
    )
    files = _write(out, result, rows, task, args.model, f"{name}, {args.model}, {args.rule}")
    print(f"files         {', '.join(map(str, files))}")
    print("rule         ", re.sub(r"<function (\w+) at \w+>", r"\1", repr(rule)))
    _report(result, task, ElasticNet(args.l1, args.l2, weights_only), rows, metrics)
    if result.reason in EXITS:
        return _say(f"{result.message}; kept in {out}", EXITS[result.reason])
    return 0


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


def _sampler(args: argparse.Namespace, n: int) -> Any:
    if args.rule == "line-search":  # on the full objective
        if args.batch_size is not None:
            raise ValueError("--rule line-search takes all rows a step: leave out --batch-size")
        return FullBatch()
    return Shuffled(min(64, n) if args.batch_size is None else args.batch_size)


def _rule(args: argparse.Namespace, steps: int) -> Any:
    names = ("learning_rate", "momentum", "schedule", "warmup", "average", "l1")
    given = {name: getattr(args, name) for name in names}
    return options.rule(args.rule, **given, mask=weights_only, steps=steps)


def _label(task: Task, rows: Rows) -> str:
    unit = " (standardised target)" if rows.classes is None else ""
    return f"{task.loss.replace('_', ' ')} loss{unit}"


def _write(out: Path, result: Result, rows: Rows, task: Task, spec: str, title: str) -> list[Path]:
    """The model, the history and, if an epoch was run, its picture."""
    import pandas

    files = [out / "model.npz", out / "history.csv"]
    save(files[0], result.params, rows, spec, task.loss)
    pandas.DataFrame(result.history).to_csv(files[1], index=False)
    picture = out / "learning_curve.png"
    if not len(result.history["epoch"]):
        picture.unlink(missing_ok=True)  # an earlier run's
        return files
    ax = plots.learning_curve(result.history, label=_label(task, rows))
    ax.set_title(title)
    ax.figure.savefig(picture, dpi=150)
    return [*files, picture]


def _report(result: Result, task: Task, penalty: ElasticNet, rows: Rows, metrics: Any) -> None:
    _report_data(rows)
    n = len(rows.train[0])
    if result.reason not in (Reason.EPOCHS, *EXITS):
        print(f"stopped       {result.message}")
    history = result.history
    if len(history["step"]) > 1:
        steady, steps = float(np.median(history["seconds"][1:])), history["step"][0]
        print(f"compile       {max(history['seconds'][0] - steady, 0):.2f} s")
        print(f"steady        {1e6 * steady / steps:.1f} us a step, {n / steady:,.0f} rows/s")
    for name, data in [("train", rows.train), ("held out", rows.held_out)]:
        if data is not None:
            values = evaluate({f"{task.loss} loss": task, **metrics}, result.params, data)
            told = ", ".join(f"{metric} {float(value):.4g}" for metric, value in values.items())
            if rows.classes is None:
                told += " (standardised target)"
            if task.loss in SQUARES:
                mean = float(values[f"{task.loss} loss"]) * SQUARES[task.loss]
                told += f", root mean square {rows.unit[1] * mean**0.5:.4g}"
            print(f"{name:<13} {told}")
    if penalty.l1:
        is_weight = jax.tree.leaves(weights_only(result.params))
        leaves = zip(is_weight, jax.tree.leaves(result.params), strict=True)
        flat = np.concatenate([np.ravel(x) for is_weight, x in leaves if is_weight])
        print(f"weights       {np.sum(flat == 0)} of {flat.size} are exactly 0")
    if not isinstance(task.model, Linear):
        print("objective     no L-BFGS beside it: an MLP's problem has no one minimum")
    elif task.loss == "hinge":
        print("objective     no L-BFGS beside it: the hinge has a kink")
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
    task, rows, name = _prepared(args)
    rule = args.rule or ("sgd" if args.momentum is None else "momentum")
    sampler = _sampler(args, len(rows.train[0])).for_size(len(rows.train[0]))
    steps = validation.integer(args.epochs, "epochs", 1) * sampler.steps_per_epoch
    recipe = {"name": rule} | {k: getattr(args, k) for k in ("schedule", "warmup", "average")}
    swept = {k: getattr(args, k) for k in ("learning_rate", "momentum", "l1", "l2")}
    out = Path(args.out or f"jaxsgd-{name}-sweep")
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    found = search(task, rows, swept, recipe=recipe, sampler=sampler, steps=steps,
                            seed=args.seed, seeds=args.seeds)  # fmt: skip
    seconds = time.perf_counter() - began
    files = [out / "sweep.csv", out / "sweep.png"]
    found.runs.to_frame().to_csv(files[0], index=False)
    score = f"{'train' if rows.held_out is None else 'held out'} {_label(task, rows)}"
    ax, held = found.picture(score)
    ax.set_title(f"{name}, {args.model}, {rule}{held}")
    ax.figure.savefig(files[1], dpi=150)
    print(f"files         {', '.join(map(str, files))}")
    _report_data(rows)
    fixed = [f"{k} = {v[0]:g}" for k, v in swept.items() if v and len(v) == 1]
    print(f"rule          {', '.join([rule, args.schedule, *fixed])}")
    print(f"time          {seconds:.2f} s, {steps} steps a run, compilation included")
    print(*found.report(score), sep="\n")
    if found.ranked()[0].diverged:
        return _say(f"diverged: in every setting some run was not finite; kept in {out}", 1)
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


def _listed(choices: dict[str, options.Choice]) -> str:
    return ", ".join(f"{name}{choice}" for name, choice in choices.items())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's usage and sentence."""
        raise SystemExit(_say(f"{message}; see {self.prog} --help", 2))


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 or more and below 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 to {2**32 - 1}")
    return value


def _add_training(
    parser: argparse.ArgumentParser, number: Any, rules: list[str], rule: str | None, epochs: int
) -> None:
    """The options of what is trained, and how; `number` parses those that a sweep is over."""
    add = parser.add_argument
    add("file", metavar="FILE", help="'digits', or a .csv, .parquet or .npz file")
    add("--target", metavar="COLUMN", help="the column to predict")
    add("--loss", choices=LOSSES, help="default: softmax for text targets, else squared_error")
    add("--model", default="linear", help="linear, or mlp with hidden units: mlp:128,64")
    add("--init", choices=tuple(INITS), help="default: zeros for linear, lecun for mlp")
    add("--batch-size", type=int, help="default: 64, or all rows where there are fewer")
    add("--epochs", type=int, default=epochs, help=f"default: {epochs}")
    default = rule or "sgd, or momentum where --momentum is given"
    add("--rule", choices=rules, default=rule, help=f"default: {default}")
    rates = ", ".join(f"{rate:g} for {name}" for name, (_, rate) in options.RULES.items() if rate)
    add("--learning-rate", type=number, help=f"default: {rates}")
    add("--momentum", type=number, help="of --rule momentum and nesterov; default: 0.9")
    told = f"of the rate, by the step: {_listed(options.SCHEDULES)}; default: constant"
    add("--schedule", default="constant", help=told)
    told = "a ramp up to the schedule; default: 0"
    add("--warmup", type=int, default=0, metavar="STEPS", help=told)
    add("--average", help=f"of the parameters: {_listed(options.AVERAGES)}")
    told = "of l1 |weights|, exact zeros if not averaged; default: 0"
    add("--l1", type=number, default="0", help=told)
    add("--l2", type=number, default="0.001", help="of l2/2 |weights|^2; default: 0.001")
    add("--seed", type=_seed, default=0, help="of split, start and order; default: 0")
    add("--test-fraction", type=_fraction, default=0.2, help="rows held out; default: 0.2")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxsgd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser(
        "fit",
        help="train on a table of rows",
        description="Train on a table of rows; write the learning curve, the history and the model."
        " Features, and a target of numbers, are standardised with the training part's statistics.",
    )
    fit.set_defaults(run=_fit)
    _add_training(fit, float, [*options.RULES], "sgd", 100)
    add = fit.add_argument
    told = f"before the last epoch, may be repeated: {_listed(options.STOPS)}"
    add("--stop", action="append", default=[], help=told)
    add("--out", metavar="FOLDER", help="default: jaxsgd-NAME; its files are replaced")

    sweep = commands.add_parser(
        "sweep",
        help="train with many numbers and seeds at once",
        description="Train with every combination of learning rates, momenta and penalties, from"
        " several seeds, all at once; tell the best, write and draw all. Each of these takes"
        " several values: 0,0.9 or, in one ratio to the next, LOW:HIGH:COUNT.",
    )
    sweep.set_defaults(run=_sweep)
    rules = [name for name, (_, rate) in options.RULES.items() if rate is not None]
    _add_training(sweep, values, rules, None, 10)
    add = sweep.add_argument
    add("--seeds", type=int, default=8, help="of start and order, for each setting; default: 8")
    add("--out", metavar="FOLDER", help="default: jaxsgd-NAME-sweep; its files are replaced")

    predict = commands.add_parser("predict", help="predict with a trained model")
    predict.set_defaults(run=_predict)
    add = predict.add_argument
    add("model", metavar="MODEL", help="the model.npz that fit wrote")
    add("file", metavar="FILE", help="a file with the same feature columns")
    add("--out", metavar="FILE", default="predictions.csv", help="default: predictions.csv")
    return parser
