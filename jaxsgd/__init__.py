"""Minibatch stochastic gradient descent in JAX: a whole training run as a pure value."""

from jaxsgd import plots, problems
from jaxsgd.fit import Reason, Result, fit
from jaxsgd.gradients import Minibatch
from jaxsgd.loops import evaluate, run
from jaxsgd.losses import L2, BatchLoss, RowLoss, RowsLoss
from jaxsgd.models import MLP, Linear, weights_only
from jaxsgd.pairs import Batch, Estimate, Info, State, number, part, static
from jaxsgd.permutation import permute
from jaxsgd.rules import SGD, Momentum
from jaxsgd.samplers import FullBatch, Sequential, Shuffled, WithReplacement
from jaxsgd.solver import Solver
from jaxsgd.transformations import FromOptax

__all__ = [
    "L2",
    "MLP",
    "SGD",
    "Batch",
    "BatchLoss",
    "Estimate",
    "FromOptax",
    "FullBatch",
    "Info",
    "Linear",
    "Minibatch",
    "Momentum",
    "Reason",
    "Result",
    "RowLoss",
    "RowsLoss",
    "Sequential",
    "Shuffled",
    "Solver",
    "State",
    "WithReplacement",
    "evaluate",
    "fit",
    "number",
    "part",
    "permute",
    "plots",
    "problems",
    "run",
    "static",
    "weights_only",
]
