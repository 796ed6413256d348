"""The order of a run for other libraries' loaders: the same rows, resumed at any step."""

import pickle
import random
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from tests import table

N, B = 43, 8
KEY = jax.random.key(3)
SAMPLERS = {
    "shuffled": jaxsgd.Shuffled(B),
    "with replacement": jaxsgd.WithReplacement(B),
    "stratified": jaxsgd.Stratified(np.arange(N) % 3, B),
    "importance": jaxsgd.ImportanceSampled(np.arange(1.0, N + 1), B),
    "sharded": jaxsgd.Sharded(16, 4),
}


def order(sampler="shuffled", **options):
    return jaxsgd.BatchOrder(SAMPLERS[sampler], N, key=KEY, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_batches_are_those_of_a_run(name):
    data = jnp.zeros(N)
    solver = jaxsgd.Solver(lambda w, row: w * row, SAMPLERS[name], jaxsgd.SGD(0.1))
    state = solver.init(jnp.zeros(()), data, key=KEY)
    expected = solver.batches(state, data, 20)
    ours = order(name, steps_at_once=7)
    for step in (3, 0, 19, 12, 13, 14):
        index, weight = ours[step]
        assert isinstance(index, np.ndarray)
        np.testing.assert_array_equal(index, expected.index[step])
        np.testing.assert_allclose(weight, expected.weight[step], rtol=1e-6)


def test_an_epoch_has_each_row_once_and_a_far_step_is_drawn_at_once():
    steps = -(-N // B)
    rows = [row for batch in order(stop=steps) for row in batch]
    assert sorted(rows) == list(range(N))
    far = 10**9 // steps * steps
    rows = [row for batch in islice(order(start=far), steps) for row in batch]
    assert sorted(rows) == list(range(N))
    last = order()[2**31 - 2]
    assert last.index.shape == (B,)


def test_what_does_not_fit_is_refused():
    for call, error, message in [
        (lambda: order()[-1], ValueError, "BatchOrder's step"),
        (lambda: order()[2**31 - 1], ValueError, "BatchOrder's step"),
        (lambda: order()[1.5], TypeError, "BatchOrder's step"),
        (lambda: order(start=-1), ValueError, "BatchOrder's start"),
        (lambda: order(stop="3"), TypeError, "BatchOrder's stop"),
        (lambda: len(order()), TypeError, "endless without stop="),
        (lambda: jaxsgd.BatchOrder(64, N, key=KEY), TypeError, "BatchOrder's sampler: expected a"),
        (lambda: jaxsgd.BatchOrder(jaxsgd.Shuffled(64), N, key=KEY), ValueError, "43 rows is 64"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert len(order(start=3, stop=10)) == 7
    assert list(order(start=4, stop=4)) == []


def test_an_order_is_sent_to_another_process():
    ours = order("importance")
    again = pickle.loads(pickle.dumps(ours))
    assert again.rows(30) == ours.rows(30)
    assert repr(again).startswith("BatchOrder(ImportanceSampled(")


def test_after_a_thousand_kills_no_row_is_lost_or_repeated():
    whole, rng, at, seen = order(stop=3000), random.Random(0), 0, []
    for _ in range(1000):
        run = iter(whole.from_step(at))
        for _ in range(rng.randrange(6)):
            seen.append(next(run))
            at = run.state_dict()["step"]
        again = iter(whole)
        again.load_state_dict({"step": at})
        assert next(again) == whole.rows(at)
    assert seen == list(whole.from_step(0))[: len(seen)]
    assert len(seen) > 2000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # few cores; torchdata's use of torch
@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_loaders_of_pytorch_are_resumed_at_any_batch(workers):
    from torch.utils.data import DataLoader
    from torchdata.stateful_dataloader import StatefulDataLoader

    stop, rng = 24, random.Random(workers)
    whole = list(order(stop=stop))
    options = {"num_workers": workers, "collate_fn": list}
    options |= {"multiprocessing_context": "spawn"} if workers else {}
    seen = []
    for cut in (rng.randrange(1, 12), 12, stop):  # as a checkpoint holds the run's own step
        loader = DataLoader(range(N), batch_sampler=order(start=len(seen), stop=stop), **options)
        seen += islice(loader, cut - len(seen))
    assert seen == whole

    seen, state = [], None
    for cut in (rng.randrange(1, 12), 12, stop):  # as the loader's own state
        loader = StatefulDataLoader(range(N), batch_sampler=order(stop=stop), **options)
        if state is not None:
            loader.load_state_dict(state)
        for batch in islice(loader, cut - len(seen)):
            seen.append(batch)
            state = loader.state_dict()
    assert seen == whole


@pytest.mark.slow
def test_grain_and_datasets_read_the_rows_of_a_step():
    import datasets
    import grain

    x = table.problem(n=N)[1][0]
    ours = order()
    batches = grain.MapDataset.range(10**9).map(lambda step: (x[ours[step].index], step))
    rows = iter(batches[10**8 :].to_iter_dataset())
    for step in range(10**8, 10**8 + 5):
        np.testing.assert_array_equal(next(rows)[0], x[ours[step].index])
    saved = rows.get_state()
    expected = next(rows)[1]
    rows.set_state(saved)
    assert next(rows)[1] == expected == 10**8 + 5

    rows = datasets.Dataset.from_dict({"row": list(range(N))}).with_format("numpy")
    assert rows[ours.rows(7)]["row"].tolist() == ours.rows(7)
    assert rows.select(ours.rows(5))["row"][:].tolist() == ours.rows(5)
