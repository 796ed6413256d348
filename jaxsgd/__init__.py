"""Minibatch stochastic gradient descent in JAX: a whole training run as a pure value."""

from jaxsgd import plots, problems
from jaxsgd.accumulation import Accumulated
from jaxsgd.adaptive import AdaGrad, Adam, RMSProp
from jaxsgd.averaging import EMA, TailAverage, averaged
from jaxsgd.checkpoints import restore, save
from jaxsgd.chunks import chunks
from jaxsgd.clipping import PerExampleClipped
from jaxsgd.dynamic import DynamicBatch
from jaxsgd.evaluation import Objective, evaluate
from jaxsgd.fit import Result, fit
from jaxsgd.fixed import FixedBatches
from jaxsgd.gradients import Minibatch, take
from jaxsgd.halving import Halved, Rung, halving
from jaxsgd.importance import ImportanceSampled
from jaxsgd.line_search import LineSearch
from jaxsgd.loops import run, run_until
from jaxsgd.losses import BatchLoss, RowLoss, RowsLoss
from jaxsgd.meshes import MeshRows, process_rows
from jaxsgd.models import MLP, Linear, ModelLoss, weights_only
from jaxsgd.noise import Noise, NoiseScale, noise_scale
from jaxsgd.pairs import Batch, Estimate, Info, State, number, part, static
from jaxsgd.penalties import L1, L2, ElasticNet
from jaxsgd.permutation import permute
from jaxsgd.poisson import Poisson
from jaxsgd.proximal import Proximal
from jaxsgd.rules import SGD, Momentum, Nesterov
from jaxsgd.samplers import Blocks, FullBatch, Sequential, Shuffled, WithReplacement
from jaxsgd.schedules import (
    CompoundDecay,
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LinearDecay,
    StepDecay,
    WarmRestarts,
    Warmup,
)
from jaxsgd.shards import Sharded
from jaxsgd.smoothness import Smoothness, smoothness
from jaxsgd.solver import Solver
from jaxsgd.stopping import (
    AnyOf,
    Check,
    Converged,
    Diverged,
    EarlyStopping,
    Ending,
    Reason,
    SmallGradient,
    SmallStep,
)
from jaxsgd.strata import Stratified
from jaxsgd.streaming import HostRows
from jaxsgd.sweeps import sweep
from jaxsgd.swept import Ranked, Sweep
from jaxsgd.transformations import FromOptax
from jaxsgd.variance import SAGA, SVRG

__all__ = [
    "EMA",
    "L1",
    "L2",
    "MLP",
    "SAGA",
    "SGD",
    "SVRG",
    "Accumulated",
    "AdaGrad",
    "Adam",
    "AnyOf",
    "Batch",
    "BatchLoss",
    "Blocks",
    "Check",
    "CompoundDecay",
    "Converged",
    "CosineDecay",
    "Diverged",
    "DynamicBatch",
    "EarlyStopping",
    "ElasticNet",
    "Ending",
    "Estimate",
    "ExponentialDecay",
    "FixedBatches",
    "FromOptax",
    "FullBatch",
    "Halved",
    "HostRows",
    "ImportanceSampled",
    "Info",
    "InverseTimeDecay",
    "LineSearch",
    "Linear",
    "LinearDecay",
    "MeshRows",
    "Minibatch",
    "ModelLoss",
    "Momentum",
    "Nesterov",
    "Noise",
    "NoiseScale",
    "Objective",
    "PerExampleClipped",
    "Poisson",
    "Proximal",
    "RMSProp",
    "Ranked",
    "Reason",
    "Result",
    "RowLoss",
    "RowsLoss",
    "Rung",
    "Sequential",
    "Sharded",
    "Shuffled",
    "SmallGradient",
    "SmallStep",
    "Smoothness",
    "Solver",
    "State",
    "StepDecay",
    "Stratified",
    "Sweep",
    "TailAverage",
    "WarmRestarts",
    "Warmup",
    "WithReplacement",
    "averaged",
    "chunks",
    "evaluate",
    "fit",
    "halving",
    "noise_scale",
    "number",
    "part",
    "permute",
    "plots",
    "problems",
    "process_rows",
    "restore",
    "run",
    "run_until",
    "save",
    "smoothness",
    "static",
    "sweep",
    "take",
    "weights_only",
]
