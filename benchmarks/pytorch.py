"""PyTorch: its DataLoader, tuned, compiled, and many runs by `torch.func`."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.tasks import Cannot, Grid, Shuffle, Training

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tensors(task: Training, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and targets in the shapes and types that the losses take."""
    x, y = (torch.from_numpy(a) for a in data)
    return x, y.long() if task.classes > 1 else y.float()[:, None]


def model_of(task: Training) -> torch.nn.Module:
    parts: list[torch.nn.Module] = []
    for w, b in task.start():
        linear = torch.nn.Linear(*w.shape)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w.T))
            linear.bias.copy_(torch.from_numpy(b))
        parts += [torch.nn.ReLU(), linear]
    return torch.nn.Sequential(*parts[1:]).to(DEVICE) if len(parts) > 2 else parts[1].to(DEVICE)


def cost_of(task: Training) -> Callable[[Any, Any], Any]:
    if task.model == "linear":
        return F.mse_loss
    return F.binary_cross_entropy_with_logits if task.classes == 1 else F.cross_entropy


def linears(model: torch.nn.Module) -> list[torch.nn.Linear]:
    return [m for m in model.modules() if isinstance(m, torch.nn.Linear)]


def layers(model: torch.nn.Module) -> Any:
    return [
        (m.weight.detach().cpu().numpy().T, m.bias.detach().cpu().numpy()) for m in linears(model)
    ]


def batches(task: Training) -> Iterator[torch.Tensor | None]:
    """The rows of each step, in a new order each epoch; None of all rows, as they lie."""
    for _ in range(task.epochs):
        if task.batch == task.rows:
            yield None
        else:
            yield from torch.randperm(task.rows, device=DEVICE).split(task.batch)


def loader(task: Training, data: Any) -> Callable[[int], Any]:
    """As its tutorials write it."""
    rows, cost = TensorDataset(*tensors(task, data)), cost_of(task)

    def prepare(seed: int) -> Any:
        torch.manual_seed(seed)
        model = model_of(task)
        rule = torch.optim.SGD(model.parameters(), task.rate)
        rows_of_steps = DataLoader(rows, task.batch, shuffle=True)

        def go() -> Any:
            for _ in range(task.epochs):
                for x, y in rows_of_steps:
                    rule.zero_grad()
                    cost(model(x.to(DEVICE)), y.to(DEVICE)).backward()
                    rule.step()
            return layers(model)

        return go

    return prepare


def tuned(task: Training, data: Any, threads: int | None = None) -> Callable[[int], Any]:
    """Tensors indexed by `torch.randperm`, or taken whole, and the fused rule."""
    if threads:
        torch.set_num_threads(threads)
    (x, y), cost = (t.to(DEVICE) for t in tensors(task, data)), cost_of(task)

    def prepare(seed: int) -> Any:
        torch.manual_seed(seed)
        model = model_of(task)
        rule = torch.optim.SGD(model.parameters(), task.rate, fused=True)

        def step(rows: Any, targets: Any) -> None:
            rule.zero_grad()
            cost(model(rows), targets).backward()
            rule.step()

        def go() -> Any:
            for index in batches(task):
                step(x, y) if index is None else step(x[index], y[index])
            return layers(model)

        return go

    return prepare


one_thread = partial(tuned, threads=1)


def compiled(task: Training, data: Any) -> Callable[[int], Any]:
    """`tuned`, its step one program of `torch.compile`; that of a short last batch is another."""
    (x, y), cost = (t.to(DEVICE) for t in tensors(task, data)), cost_of(task)

    def loss(params: Any, rows: Any, targets: Any) -> Any:
        z = rows
        for i, (w, b) in enumerate(params):
            z = F.linear(F.relu(z) if i else z, w, b)
        return cost(z, targets)

    @torch.compile(dynamic=False)
    def step(params: Any, index: Any) -> None:
        rows, targets = (x, y) if index is None else (x[index], y[index])
        for (w, b), (dw, db) in zip(
            params, torch.func.grad(loss)(params, rows, targets), strict=True
        ):
            w.sub_(dw, alpha=task.rate)
            b.sub_(db, alpha=task.rate)

    def prepare(seed: int) -> Any:
        torch.manual_seed(seed)
        params = [
            (m.weight.detach().clone(), m.bias.detach().clone()) for m in linears(model_of(task))
        ]

        @torch.no_grad()
        def go() -> Any:
            for index in batches(task):
                step(params, index)
            return [(w.cpu().numpy().T, b.cpu().numpy()) for w, b in params]

        return go

    return prepare


def func(task: Grid, data: Any) -> Callable[[int], Any]:
    """All runs at once by `torch.func`; the rates of a seed share its rows."""
    one, cost = task.one, cost_of(task.one)
    x, y = (t.to(DEVICE) for t in tensors(one, data))
    rate = torch.from_numpy(task.learning_rates()).to(DEVICE)[:, None, None, None]

    def loss(w: Any, b: Any, rows: Any, targets: Any) -> Any:
        return cost(rows @ w + b, targets)

    slopes = torch.func.grad(loss, (0, 1))
    over_rates = torch.func.vmap(torch.func.vmap(slopes, (0, 0, 0, 0)), (0, 0, None, None))

    @torch.compile(dynamic=False)
    def step(w: Any, b: Any, index: Any) -> None:
        dw, db = over_rates(w, b, x[index], y[index])
        w.sub_(rate * dw)
        b.sub_(rate[..., 0] * db)

    def prepare(seed: int) -> Any:
        torch.manual_seed(seed)
        shape = task.rates, task.seeds
        w = torch.zeros(*shape, one.features, one.classes, device=DEVICE)
        b = torch.zeros(*shape, one.classes, device=DEVICE)

        def go() -> Any:
            for _ in range(one.epochs):
                each = [torch.randperm(one.rows, device=DEVICE) for _ in range(task.seeds)]
                order = torch.stack(each)
                for index in order.split(one.batch, 1):
                    step(w, b, index)
            return [(w.flatten(0, 1).cpu().numpy(), b.flatten(0, 1).cpu().numpy())]

        return go

    return prepare


def permutation(task: Shuffle, data: None) -> Any:
    if task.count < task.rows:
        raise Cannot("only the whole order at once")

    def prepare(seed: int) -> Any:
        torch.manual_seed(seed)
        return lambda: torch.randperm(task.rows).numpy()

    return prepare
