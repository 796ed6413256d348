"""Checkpoints of several processes: complete at any time, and gone on from by another number."""

import os
import random
import socket
import time

import numpy as np
import pytest

from tests import processes

pytestmark = pytest.mark.slow
KILLS = 5
LONG = 20  # epochs


def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def fit(count, folder, epochs, file):
    for process in processes.all_of(count, address(), folder, epochs, file):
        process.join(120)
        assert process.exitcode == 0
    return dict(np.load(file))


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return fit(1, None, 6, tmp_path_factory.mktemp("alone") / "end.npz")


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (4, 2)])
def test_another_number_of_processes_goes_on(tmp_path, uninterrupted, first, then):
    fit(first, tmp_path / "run", 3, tmp_path / "middle.npz")
    assert_same(fit(then, tmp_path / "run", 6, tmp_path / "end.npz"), uninterrupted)


def test_a_state_that_is_split_is_restored_by_another_number_of_processes(tmp_path):
    for count, before, after in [(2, None, 1), (1, 1, 2), (4, 2, 3), (2, 3, 4)]:
        args = count, address(), tmp_path / "run", before, after
        for process in processes.all_of(*args, fn=processes.split_over_four):
            process.join(60)
            assert process.exitcode == 0


def test_sigterm_to_one_of_two_processes_ends_both_at_the_same_step(tmp_path):
    begun = processes.PROCESSES.Event()
    args = 2, address(), tmp_path / "run", 1000, tmp_path / "end.npz", begun
    both = processes.all_of(*args)
    begun.wait(60)
    both[1].terminate()
    for process in both:
        process.join(60)
        assert process.exitcode == os.EX_TEMPFAIL
    (step,) = {int((tmp_path / f"step{number}").read_text()) for number in range(2)}
    assert 0 < step < 5000
    epochs = step // 5 + 2
    end = fit(1, tmp_path / "run", epochs, tmp_path / "end.npz")
    assert_same(end, fit(1, None, epochs, tmp_path / "alone.npz"))


def test_killed_at_any_moment_two_processes_go_on(tmp_path):
    kills, rng = 0, random.Random(0)
    file = tmp_path / "end.npz"
    while not file.exists():
        begun = processes.PROCESSES.Event()
        both = processes.all_of(2, address(), tmp_path / "run", LONG, file, begun)
        if kills < KILLS:
            begun.wait(60)
            time.sleep(rng.uniform(0, 0.3))
            rng.choice(both).kill()
            kills += not file.exists()
        for process in both:  # the other ends when its heartbeats are not answered
            process.join(60)
            assert process.exitcode is not None
    assert kills == KILLS
    assert_same(dict(np.load(file)), fit(1, None, LONG, tmp_path / "alone.npz"))
