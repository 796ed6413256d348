"""Minibatch stochastic gradient descent in JAX: a whole training run as a pure value."""

from jaxsgd import diagnostics, models, plots, problems
from jaxsgd.checkpoints.orbax import restore, save
from jaxsgd.core.part import field, number, part, static
from jaxsgd.core.records import Batch, Estimate, Info, NoiseEstimate, State
from jaxsgd.data.arrays import as_rows, take
from jaxsgd.data.base import Rows
from jaxsgd.data.host import HostRows
from jaxsgd.data.mesh import MeshRows, process_rows
from jaxsgd.data.order import BatchOrder
from jaxsgd.data.streamed import StreamedRows
from jaxsgd.evaluation import Objective, evaluate
from jaxsgd.gradients.accumulated import Accumulated
from jaxsgd.gradients.base import Gradient, GradientState
from jaxsgd.gradients.clipped import PerExampleClipped
from jaxsgd.gradients.minibatch import MinibatchGradient
from jaxsgd.gradients.noise_scale import NoiseScaleGradient
from jaxsgd.gradients.saga import SAGA
from jaxsgd.gradients.svrg import SVRG
from jaxsgd.loops.chunks import chunks
from jaxsgd.loops.run import run
from jaxsgd.loops.run_until import run_until
from jaxsgd.losses import BatchLoss, Loss, RowLoss, RowsLoss, as_loss
from jaxsgd.penalties import L1, L2, ElasticNet, ProximalPenalty
from jaxsgd.random.permutation import permute
from jaxsgd.rules.adaptive import AdaGrad, Adam, RMSProp
from jaxsgd.rules.averaging import EMA, TailAverage, averaged
from jaxsgd.rules.base import Rule, ScheduledRule
from jaxsgd.rules.descent import SGD, Momentum, Nesterov
from jaxsgd.rules.from_optax import FromOptax
from jaxsgd.rules.line_search import LineSearch
from jaxsgd.rules.proximal import Proximal
from jaxsgd.samplers.base import CounterSampler, EpochSampler, Sampler, SamplerState
from jaxsgd.samplers.dynamic import DynamicBatch
from jaxsgd.samplers.epochs import Blocks, FullBatch, Sequential, Shuffled
from jaxsgd.samplers.fixed import FixedBatches
from jaxsgd.samplers.importance import ImportanceSampled
from jaxsgd.samplers.per_shard import PerShard
from jaxsgd.samplers.poisson import Poisson
from jaxsgd.samplers.replacement import WithReplacement
from jaxsgd.samplers.sharded import Sharded
from jaxsgd.samplers.stratified import Stratified
from jaxsgd.schedules import (
    CompoundDecay,
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    LinearDecay,
    StepDecay,
    WarmRestarts,
    Warmup,
    rate_at,
)
from jaxsgd.solver import Solver, check
from jaxsgd.stopping.base import Check, Ending, Reason, Stop
from jaxsgd.stopping.criteria import (
    AnyOf,
    Converged,
    Diverged,
    EarlyStopping,
    SmallGradient,
    SmallStep,
)
from jaxsgd.sweeps.halving import HalvingResult, Rung, halving
from jaxsgd.sweeps.result import Ranked, Sweep
from jaxsgd.sweeps.sweep import sweep
from jaxsgd.training.fit import Result, fit

__version__ = "0.1.0"

__all__ = [
    "EMA",
    "L1",
    "L2",
    "SAGA",
    "SGD",
    "SVRG",
    "Accumulated",
    "AdaGrad",
    "Adam",
    "AnyOf",
    "Batch",
    "BatchLoss",
    "BatchOrder",
    "Blocks",
    "Check",
    "CompoundDecay",
    "Converged",
    "CosineDecay",
    "CounterSampler",
    "Diverged",
    "DynamicBatch",
    "EarlyStopping",
    "ElasticNet",
    "Ending",
    "EpochSampler",
    "Estimate",
    "ExponentialDecay",
    "FixedBatches",
    "FromOptax",
    "FullBatch",
    "Gradient",
    "GradientState",
    "HalvingResult",
    "HostRows",
    "ImportanceSampled",
    "Info",
    "InverseTimeDecay",
    "LineSearch",
    "LinearDecay",
    "Loss",
    "MeshRows",
    "MinibatchGradient",
    "Momentum",
    "Nesterov",
    "NoiseEstimate",
    "NoiseScaleGradient",
    "Objective",
    "PerExampleClipped",
    "PerShard",
    "Poisson",
    "Proximal",
    "ProximalPenalty",
    "RMSProp",
    "Ranked",
    "Reason",
    "Result",
    "RowLoss",
    "Rows",
    "RowsLoss",
    "Rule",
    "Rung",
    "Sampler",
    "SamplerState",
    "ScheduledRule",
    "Sequential",
    "Sharded",
    "Shuffled",
    "SmallGradient",
    "SmallStep",
    "Solver",
    "State",
    "StepDecay",
    "Stop",
    "Stratified",
    "StreamedRows",
    "Sweep",
    "TailAverage",
    "WarmRestarts",
    "Warmup",
    "WithReplacement",
    "__version__",
    "as_loss",
    "as_rows",
    "averaged",
    "check",
    "chunks",
    "diagnostics",
    "evaluate",
    "field",
    "fit",
    "halving",
    "models",
    "number",
    "part",
    "permute",
    "plots",
    "problems",
    "process_rows",
    "rate_at",
    "restore",
    "run",
    "run_until",
    "save",
    "static",
    "sweep",
    "take",
]


def __dir__() -> list[str]:
    """The API alone: folders are reached by their public names."""
    return __all__
