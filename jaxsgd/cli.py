"""The command `jaxsgd`: train a small model on a table of rows, and predict with it."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxsgd import plots, problems
from jaxsgd.fit import Reason, Result, fit
from jaxsgd.loops import evaluate
from jaxsgd.losses import L2
from jaxsgd.models import INITS, MLP, Linear, weights_only
from jaxsgd.pairs import PyTree, part, static
from jaxsgd.permutation import permute
from jaxsgd.rules import SGD, FromOptax, Momentum
from jaxsgd.tables import Table, TableError, read

FORMAT = "jaxsgd model 1"
CLASSIFIERS = ("softmax", "logistic")
RATES = {"sgd": 0.05, "momentum": 0.01, "adam": 0.001}


@part
class Task:
    """A model and its loss by name: what a row's output is compared with, and how it is read."""

    model: Any
    loss: str = static()

    def __call__(self, params: PyTree, row: Any) -> jax.Array:
        x, y = row
        output = self.model(params, x)
        if self.loss == "softmax":
            return optax.softmax_cross_entropy_with_integer_labels(output, y)
        if self.loss == "logistic":
            return optax.sigmoid_binary_cross_entropy(output[0], y)
        fn = optax.l2_loss if self.loss == "l2_loss" else optax.squared_error
        return fn(output[0], y)

    def predict(self, params: PyTree, x: jax.Array) -> jax.Array:
        """Probabilities of the classes (float[..., k]), or the number predicted (float[..., 1])."""
        output = self.model(params, x)
        if self.loss == "softmax":
            return jax.nn.softmax(output)
        if self.loss == "logistic":
            return jnp.concatenate([jax.nn.sigmoid(-output), jax.nn.sigmoid(output)], axis=-1)
        return output

    def correct(self, params: PyTree, row: Any) -> jax.Array:
        """Whether the likeliest class is the row's."""
        return jnp.argmax(self.predict(params, row[0])) == row[1]


@part
class Correct:
    """A task's accuracy as a metric."""

    task: Task

    def __call__(self, params: PyTree, row: Any) -> jax.Array:
        return self.task.correct(params, row)


class Prepared(NamedTuple):
    """Rows ready for training: standardised with the training part's statistics, and split."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray] | None
    loss: str
    classes: np.ndarray | None
    mean: np.ndarray
    scale: np.ndarray


class CommandError(Exception):
    """One sentence on what is wrong with what was asked."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 diverged, 2 wrong input, 130 interrupted."""
    try:
        args = _parser().parse_args(argv)
        return args.run(args)
    except (CommandError, TableError, ValueError, TypeError, ImportError, OSError) as error:
        print(f"jaxsgd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "jaxsgd: interrupted before the first epoch ended; nothing was written", file=sys.stderr
        )
        return 130


def _fit(args: argparse.Namespace) -> int:
    table, name = _table(args)
    prepared = _prepare(table, args)
    train, test, loss = prepared.train, prepared.test, prepared.loss
    outputs = len(prepared.classes) if loss == "softmax" and prepared.classes is not None else 1
    model = _model(args.model, table.features.shape[1], outputs, args.init)
    task = Task(model, loss)
    metrics = {"accuracy": Correct(task)} if loss in CLASSIFIERS else {}
    init_key, fit_key = jax.random.split(jax.random.key(args.seed))
    batch_size = min(64, len(train[0])) if args.batch_size is None else args.batch_size
    penalty = L2(args.l2, mask=weights_only)
    out = Path(args.out if args.out else f"jaxsgd-{name}")
    out.mkdir(parents=True, exist_ok=True)
    result = fit(
        task,
        model.init(init_key),
        train,
        key=fit_key,
        batch_size=batch_size,
        epochs=args.epochs,
        rule=_rule(args),
        penalty=penalty,
        validation=test,
        metrics=metrics,
    )
    _write(out, result, prepared, table, args)
    _report(result, task, penalty, prepared, table, args)
    print(f"files         {out / 'learning_curve.png'}, {out / 'history.csv'}, {out / 'model.npz'}")
    if result.reason != Reason.EPOCHS:
        epochs = len(result.history["epoch"])
        told = f"ended after {epochs} of {args.epochs} epochs: {result.reason}; kept in {out}"
        print(f"jaxsgd: {told}", file=sys.stderr)
    return {Reason.EPOCHS: 0, Reason.DIVERGED: 1, Reason.INTERRUPTED: 130}[result.reason]


def _table(args: argparse.Namespace) -> tuple[Table, str]:
    if args.file == "digits":
        if args.target is not None:
            raise CommandError("digits is a data set with its own target; leave out --target")
        x, y = problems.digits()
        return Table([f"pixel_{i // 8}_{i % 8}" for i in range(64)], x, y), "digits"
    if args.target is None:
        raise CommandError(f"--target is missing: name the column of {args.file} to predict")
    return read(args.file, target=args.target), Path(args.file).stem


def _prepare(table: Table, args: argparse.Namespace) -> Prepared:
    assert table.target is not None
    target, n = table.target, len(table.features)
    loss = args.loss
    if loss is None:
        loss = (
            "softmax"
            if args.file == "digits" or target.dtype.kind not in "iuf"
            else "squared_error"
        )
    classes = None
    if loss in CLASSIFIERS:
        labels = target.astype(str) if target.dtype.kind not in "biuf" else target
        classes, y = np.unique(labels, return_inverse=True)
        if classes.dtype.kind == "f" and np.any(classes % 1):
            raise CommandError(
                f"the target holds {classes[classes % 1 != 0][0]}, expected classes for "
                f"--loss {loss}"
            )
        if len(classes) < 2 or (loss == "logistic" and len(classes) > 2):
            expected = "2 classes" if loss == "logistic" else "at least 2 classes"
            raise CommandError(
                f"the target holds {len(classes)} different values, expected {expected} "
                f"for --loss {loss}"
            )
        y = y.astype(np.float32 if loss == "logistic" else np.int32)
    elif target.dtype.kind not in "biuf":
        raise CommandError(
            f"the target holds text such as {target[0]!r}, expected numbers for --loss {loss}"
        )
    else:
        with np.errstate(over="ignore"):
            y = target.astype(np.float32)
        if not np.all(np.isfinite(y)):
            raise CommandError("the target holds numbers that are not finite in 32 bits")
    held_out = round(n * args.test_fraction)
    if held_out >= n:
        raise CommandError(
            f"--test-fraction {args.test_fraction} of {n} rows leaves none to train on"
        )
    order = np.asarray(permute(jax.random.key(args.seed), np.arange(n), n))
    train, test = order[held_out:], order[:held_out]
    x = table.features.astype(np.float64)
    mean, scale = x[train].mean(axis=0), x[train].std(axis=0)
    scale[scale == 0] = 1  # a constant column stays constant
    x = ((x - mean) / scale).astype(np.float32)
    rest = (x[test], y[test]) if held_out else None
    return Prepared((x[train], y[train]), rest, loss, classes, mean, scale)


def _model(spec: str, features: int, outputs: int, initialise: str | None) -> Any:
    kind, _, hidden = spec.partition(":")
    if kind == "linear" and not hidden:
        return Linear(features, outputs, initialise=initialise or "zeros")
    sizes = [size for size in hidden.split(",") if size]
    if kind != "mlp" or not sizes or not all(size.isdigit() for size in sizes):
        raise CommandError(
            f"--model is {spec!r}, expected linear or mlp with hidden units, as mlp:128,64"
        )
    return MLP((features, *map(int, sizes), outputs), initialise=initialise or "xavier")


def _rule(args: argparse.Namespace) -> Any:
    rate = RATES[args.rule] if args.learning_rate is None else args.learning_rate
    if args.momentum is not None and args.rule != "momentum":
        raise CommandError(f"--momentum goes with --rule momentum, but --rule is {args.rule}")
    if args.rule == "momentum":
        return Momentum(rate, 0.9 if args.momentum is None else args.momentum)
    return SGD(rate) if args.rule == "sgd" else FromOptax(optax.adam, learning_rate=rate)


def _write(
    out: Path, result: Result, prepared: Prepared, table: Table, args: argparse.Namespace
) -> None:
    """The curve, the history and the model. Without a single epoch there is no curve."""
    import pandas

    pandas.DataFrame(result.history).to_csv(out / "history.csv", index=False)
    if len(result.history.get("epoch", ())):
        label = prepared.loss.replace("_", " ") + " loss"
        ax = plots.learning_curve(result.history, label=label)
        ax.figure.savefig(out / "learning_curve.png", dpi=150)
    facts = {"format": FORMAT, "model": args.model, "loss": prepared.loss, "names": table.names}
    arrays = {"facts": np.array(json.dumps(facts)), "mean": prepared.mean, "scale": prepared.scale}
    if prepared.classes is not None:
        arrays["classes"] = prepared.classes
    for i, leaf in enumerate(jax.tree.leaves(result.params)):
        arrays[f"params_{i}"] = np.asarray(leaf)
    with (out / "model.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _report(
    result: Result,
    task: Task,
    penalty: L2,
    prepared: Prepared,
    table: Table,
    args: argparse.Namespace,
) -> None:
    seconds = result.history.get("seconds", np.zeros(0))
    n, d = prepared.train[0].shape
    held = 0 if prepared.test is None else len(prepared.test[0])
    print(f"device        {jax.devices()[0].device_kind} ({jax.default_backend()})")
    print(f"data          {n} rows x {d} features to train on, {held} held out")
    if len(seconds) > 1:
        steady, steps = float(np.median(seconds[1:])), result.history["step"][0]
        print(f"compile       {max(seconds[0] - steady, 0):.2f} s")
        print(f"steady        {1e6 * steady / steps:.1f} us a step, {n / steady:,.0f} rows/s")
    parts = {"train": prepared.train} | ({"held out": prepared.test} if prepared.test else {})
    metrics: dict[str, Any] = {"loss": task}
    if prepared.loss in CLASSIFIERS:
        metrics["accuracy"] = Correct(task)
    for name, rows in parts.items():
        values = evaluate(metrics, result.params, rows)
        told = ", ".join(f"{metric} {float(value):.4f}" for metric, value in values.items())
        print(f"{name:<13} {told}  ({prepared.loss})")
    if isinstance(task.model, Linear):
        ours, best, converged = _lbfgs(result.params, task, penalty, prepared.train)
        note = "" if converged else "; it did not converge"
        print(f"objective     {ours:.6f} (train loss + penalty); converged L-BFGS {best:.6f}{note}")
    else:
        print("objective     no L-BFGS beside it: an MLP's problem has no one minimum")


def _lbfgs(params: PyTree, task: Task, penalty: L2, data: Any) -> tuple[float, float, bool]:
    """The objective at params, and at the minimum that SciPy's L-BFGS finds, and whether it did."""
    from scipy.optimize import minimize

    flat, unravel = ravel_pytree(params)

    @jax.jit
    def objective(flat: jax.Array, rows: Any) -> jax.Array:
        params = unravel(flat)
        return jnp.mean(jax.vmap(partial(task, params))(rows)) + penalty(params)

    slope = jax.jit(jax.value_and_grad(objective))
    found = minimize(
        lambda w: [np.asarray(x, np.float64) for x in slope(w.astype(np.float32), data)],
        np.zeros(flat.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-9, "gtol": 1e-5},
    )
    return float(objective(flat, data)), float(found.fun), bool(found.success)


def _predict(args: argparse.Namespace) -> int:
    import pandas

    task, params, facts, arrays = _load(args.model)
    table = read(args.file, target=None, names=facts["names"])
    x = ((table.features.astype(np.float64) - arrays["mean"]) / arrays["scale"]).astype(np.float32)
    output = np.asarray(jax.jit(task.predict)(params, x))
    classes = arrays.get("classes")
    if classes is None:
        columns = {"prediction": output[:, 0]}
    else:
        columns = {"prediction": classes[output.argmax(axis=1)]}
        columns |= {f"probability_{label}": output[:, k] for k, label in enumerate(classes)}
    pandas.DataFrame(columns).to_csv(args.out, index=False)
    print(f"{len(x)} predictions in {args.out}")
    return 0


def _load(path: str) -> tuple[Task, PyTree, dict[str, Any], dict[str, np.ndarray]]:
    wrong = f"{path} is no model that jaxsgd fit wrote, expected its model.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays["facts"]))
        if facts["format"] != FORMAT:
            raise CommandError(wrong)
        outputs = len(arrays["classes"]) if facts["loss"] == "softmax" else 1
        model = _model(facts["model"], len(facts["names"]), outputs, None)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        leaves = [arrays[f"params_{i}"] for i in range(len(jax.tree.leaves(shapes)))]
    except FileNotFoundError:
        raise CommandError(
            f"{path} is no file, expected the model.npz that jaxsgd fit wrote"
        ) from None
    except (KeyError, TypeError, AttributeError, ValueError, OSError, EOFError) as error:
        raise CommandError(wrong) from error
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return Task(model, facts["loss"]), params, facts, arrays


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of argparse's usage and sentence."""
        print(f"jaxsgd: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected 0 or more and below 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="jaxsgd", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser(
        "fit",
        help="train on a table of rows",
        description="Train on a table of rows; write the learning curve, the history and the model."
        " Features are standardised with the training part's statistics.",
    )
    fit.set_defaults(run=_fit)
    add = fit.add_argument
    add("file", metavar="FILE", help="'digits', or a .csv, .parquet or .npz file")
    add("--target", metavar="COLUMN", help="the column to predict")
    losses = ("squared_error", "l2_loss", *CLASSIFIERS)
    add("--loss", choices=losses, help="default: softmax for text targets, else squared_error")
    add("--model", default="linear", help="linear, or mlp with hidden units: mlp:128,64")
    add("--init", choices=tuple(INITS), help="default: zeros for linear, xavier for mlp")
    add("--batch-size", type=int, help="default: 64, or all rows where there are fewer")
    add("--epochs", type=int, default=100, help="default: 100")
    add("--rule", choices=tuple(RATES), default="sgd", help="default: sgd")
    rates = ", ".join(f"{rate:g} for {rule}" for rule, rate in RATES.items())
    add("--learning-rate", type=float, help=f"default: {rates}")
    add("--momentum", type=float, help="of --rule momentum; default: 0.9")
    add("--l2", type=float, default=1e-3, help="of l2/2 |weights|^2; default: 0.001")
    add("--seed", type=int, default=0, help="of split, start and order; default: 0")
    add("--test-fraction", type=_fraction, default=0.2, help="rows held out; default: 0.2")
    add("--out", metavar="FOLDER", help="default: jaxsgd-NAME; its files are replaced")

    predict = commands.add_parser("predict", help="predict with a trained model")
    predict.set_defaults(run=_predict)
    add = predict.add_argument
    add("model", metavar="MODEL", help="the model.npz that fit wrote")
    add("file", metavar="FILE", help="a file with the same feature columns")
    add("--out", metavar="FILE", default="predictions.csv", help="default: predictions.csv")
    return parser


if __name__ == "__main__":
    sys.exit(main())
