"""scikit-learn: `SGDRegressor` and `SGDClassifier`, compiled loops of single rows, and the MLP."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier, SGDRegressor
from sklearn.neural_network import MLPClassifier

from benchmarks.tasks import Cannot, Training


def fit(task: Training, data: Any) -> Callable[[int], Any]:
    warnings.simplefilter("ignore", ConvergenceWarning)
    x, y = data
    if task.classes > 1:
        return perceptron(task, x, y)
    if task.batch > 1:
        raise Cannot("one row a step")

    def prepare(seed: int) -> Any:
        options = {"alpha": 0.0, "penalty": None, "learning_rate": "constant", "tol": None,
                   "max_iter": task.epochs, "random_state": seed}  # fmt: skip
        if task.model == "linear":  # half of the square
            model: Any = SGDRegressor(eta0=2 * task.rate, **options)
        else:
            model = SGDClassifier(loss="log_loss", eta0=task.rate, **options)

        def go() -> Any:
            model.fit(x, y)
            return [(np.reshape(model.coef_, (-1, 1)), model.intercept_)]

        return go

    return prepare


def perceptron(task: Training, x: Any, y: Any) -> Callable[[int], Any]:
    def prepare(seed: int) -> Any:
        model = MLPClassifier(
            task.sizes[1:-1], solver="sgd", alpha=0.0, batch_size=task.batch, momentum=0.0, tol=0.0,
            learning_rate_init=task.rate, max_iter=1, n_iter_no_change=task.epochs + 1,
            random_state=seed, warm_start=True,
        )  # fmt: skip
        one_each = np.unique(y, return_index=True)[1].repeat(task.batch)
        model.fit(x[one_each], y[one_each])  # makes its arrays; then they start as everyone's
        model.coefs_, model.intercepts_ = map(list, zip(*task.start(), strict=True))
        model.set_params(max_iter=task.epochs)

        def go() -> Any:
            model.fit(x, y)
            return list(zip(model.coefs_, model.intercepts_, strict=True))

        return go

    return prepare
