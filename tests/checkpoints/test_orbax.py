"""Checkpoints: a run that is killed at any moment continues as if it had not been killed."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd.checkpoints import orbax
from jaxsgd.checkpoints.background import one_at_a_time
from jaxsgd.training import trainer
from tests import table
from tests.processes import PROCESSES, fit, in_a_process, on_two_devices, small
from tests.table import key_data

EPOCHS = 30


def kept(folder):
    """All arrays of the newest checkpoint but the seconds, which differ between runs."""
    arrays, _ = orbax._read(orbax._orbax(), orbax.checkpoints(folder)[-1])
    return {name: array for name, array in arrays.items() if "seconds" not in name}


def same(one, other):
    chex.assert_trees_all_equal(key_data(one.state), key_data(other.state))
    chex.assert_trees_all_equal((one.params, one.model_state), (other.params, other.model_state))
    assert one.reason == other.reason
    for name in set(one.history) - {"seconds"}:
        np.testing.assert_array_equal(one.history[name], other.history[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*was left by process")
@pytest.mark.parametrize("kind", ["plain", "streamed", "stratified", "saga", "averaged"])
def test_killed_at_twenty_moments_a_run_ends_as_if_it_had_never_been(tmp_path, kind):
    random.seed(kind)
    folder, cache = tmp_path / "killed", str(tmp_path / "cache")
    start = partial(PROCESSES.Process, target=in_a_process)
    begun = PROCESSES.Event()
    warm = start(args=(tmp_path / "warm", cache, 1, begun, kind))
    warm.start()
    warm.join(300)  # compiles, so that the others need not and leave its cache alone
    assert warm.exitcode == 0  # None where it hangs: a fork of a process that had used a device
    kills = torn = 0
    for i in range(20):
        begun = PROCESSES.Event()
        process = start(args=(folder, cache, EPOCHS, begun, kind))
        process.start()
        if i % 5:  # from the first epoch on, else from the start of the process
            assert begun.wait(300)
        time.sleep(random.uniform(0, 0.2))
        kills += process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        torn += any("tmp" in path.name for path in folder.glob("*"))
    assert kills == 20
    assert torn >= 3  # writes were among the moments
    process = start(args=(folder, cache, EPOCHS, begun, kind))
    process.start()
    process.join()
    assert process.exitcode == 0
    whole = fit(tmp_path / "whole", EPOCHS, checkpoint_every=1000, kind=kind)
    chex.assert_trees_all_equal(kept(folder), kept(tmp_path / "whole"))  # patience and all
    same(fit(folder, EPOCHS, kind=kind), whole)  # one that has ended is returned at once
    assert len(whole.history["epoch"]) == EPOCHS
    assert len(orbax.checkpoints(folder)) == 3


class Crash(Exception):
    pass


def crash_at(epoch):
    def log(record):
        if record["epoch"] == epoch:
            raise Crash

    return log


@pytest.mark.parametrize("every", [1, 3, 5, 7, 10])  # twice an epoch, at its end, across epochs
def test_a_failed_fit_goes_on_from_where_it_failed(tmp_path, every):
    whole = fit(None)
    with pytest.raises(Crash) as caught:
        fit(tmp_path, checkpoint_every=every, log=crash_at(2))
    assert len(caught.value.result.history["epoch"]) == 1
    assert int(caught.value.result.state.step) == 10
    assert "fit failed after step 10" in caught.value.__notes__[0]
    with pytest.raises(Crash):
        fit(tmp_path, checkpoint_every=every, log=crash_at(4))
    same(fit(tmp_path, checkpoint_every=every), whole)


def test_a_failure_before_the_first_step_of_a_resumed_fit_has_its_result_too(tmp_path):
    for _ in range(2):
        with pytest.raises(Crash) as caught:
            fit(tmp_path, log=crash_at(2))
        assert len(caught.value.result.history["epoch"]) == 1
        assert caught.value.result.reason == jaxsgd.Reason.FAILED
        assert "after 10 steps: an error was raised" in caught.value.result.message


def test_an_interrupted_or_diverged_fit_called_again(tmp_path):
    def interrupt(record):
        if record["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert fit(tmp_path / "a", log=interrupt).reason == jaxsgd.Reason.INTERRUPTED
    same(fit(tmp_path / "a"), fit(None))
    diverged = fit(tmp_path / "b", rate=1e6, epochs=50)
    assert diverged.reason == jaxsgd.Reason.DIVERGED
    same(fit(tmp_path / "b", rate=1e6, epochs=50), diverged)


def test_a_second_ctrl_c_stops_at_once_and_the_checkpoint_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def interrupt(record):
        if record["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, log=interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / ".owner").exists()
    same(fit(tmp_path), fit(None))


def test_sigterm_saves_and_ends_and_the_checkpoint_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def terminate(record):
        if record["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    result = fit(tmp_path, log=terminate, checkpoint_every=1)
    assert result.reason == jaxsgd.Reason.PREEMPTED
    assert int(result.state.step) == 10
    assert signal.getsignal(signal.SIGTERM) is before
    same(fit(tmp_path, checkpoint_every=1), fit(None))


def test_sigterm_in_the_last_epoch_or_without_a_checkpoint_changes_nothing(tmp_path):
    handlers = []

    def terminate(record):
        handlers.append(signal.getsignal(signal.SIGTERM))
        if record["epoch"] == EPOCHS:
            os.kill(os.getpid(), signal.SIGTERM)

    assert fit(tmp_path, EPOCHS, log=terminate).reason == jaxsgd.Reason.EPOCHS
    before = signal.getsignal(signal.SIGTERM)
    assert handlers[0] is not before
    handlers.clear()
    fit(None, 1, log=terminate)
    assert handlers == [before]


def test_a_failed_write_is_reported_by_the_next_or_at_the_end():
    reported = []

    def fail(message):
        raise OSError(message)

    with one_at_a_time(lambda name, error: reported.append((name, str(error)))) as call:
        call("first", fail, "full")
        call("second", lambda: None)
        assert reported == [("first", "full")]
        call("third", fail, "gone")
    assert reported == [("first", "full"), ("third", "gone")]


def test_what_a_stop_of_norms_saw_is_kept_across_a_failure(tmp_path):
    stop = jaxsgd.SmallGradient(10.0)  # the first epoch ends below it
    with pytest.raises(Crash):
        fit(tmp_path, stop=stop, log=crash_at(1))
    again = fit(tmp_path, stop=stop)
    assert again.reason == jaxsgd.Reason.SMALL_GRADIENT
    same(again, fit(None, stop=stop))


def test_a_folder_is_one_place_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    fit("run", epochs=3, log=lambda record: os.chdir(tmp_path / "elsewhere"))
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(ValueError, match="expected a local path, got the URL gs://bucket/run"):
        fit("gs://bucket/run")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="got a file|Not a directory"):
        fit(tmp_path / "file" / "run")  # before anything is trained


def test_epochs_are_the_total_and_what_has_ended_stays_so(tmp_path):
    first = fit(tmp_path, epochs=2)
    assert first.history["epoch"].tolist() == [1, 2]
    same(fit(tmp_path, epochs=6), fit(None))
    stop = jaxsgd.EarlyStopping(2, min_delta=10.0)
    shutil.rmtree(tmp_path)
    ended = fit(tmp_path, epochs=50, stop=stop)
    assert ended.reason == jaxsgd.Reason.NO_IMPROVEMENT
    logged = []
    same(fit(tmp_path, epochs=50, stop=stop, log=logged.append), ended)
    assert not logged


def other_loss(params, row):
    return table.loss(params, row) * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": other_loss}, r"solver.gradient.loss.fn: expected Function\(fn=tests.table.loss\), got Function\(fn=tests.checkpoints.test_orbax.other_loss\). Use another folder for another run"),
        ({"loss": lambda p, r: table.loss(p, r)}, r"got Function\(fn=tests.checkpoints.test_orbax.<lambda>\)"),
        ({"rule": "adam schedule"}, r"solver.rule: expected Momentum\(\), got Adam\(\)"),
        ({"rate": 0.1}, r"solver.rule.learning_rate.initial: expected float32\[\] 0.05, got float32\[\] 0.1\."),
        ({"batch_size": 4}, r"solver.sampler: expected Shuffled\(batch_size=8.*, got Shuffled\(batch_size=4"),
        ({"penalty": jaxsgd.L2(0.1)}, "solver.penalty: expected None, got L2"),
        ({"key": jax.random.key(1)}, r"run: key: expected key<fry>\[\] with checksum \w{8}, got key<fry>\[\] with checksum"),
        ({"stop": jaxsgd.EarlyStopping(6)}, r"stop.patience: expected int32\[\] 5, got int32\[\] 6"),
        ({"metrics": {"error": table.residual}}, r"metrics\['error'\]: expected nothing, got .*tests.table.residual"),
        ({"monitor": "loss", "restore_best": False}, "monitor: expected 'validation_loss', got 'loss'"),
        ({"monitor": "validation_loss", "mode": "max"}, "mode: expected 'min', got 'max'"),
        ({"restore_best": False}, "restore_best: expected True, got False"),
        ({"sample_weight": np.arange(40.0)}, r"solver.sample_weight: expected None, got float32\[40\]"),
        ({"validation": table.problem(n=20)[1]}, r"validation\[0\]: expected float32\[40, 3\], got float32\[20, 3\]"),
        ({"checkpoint_tag": "v2"}, "tag: expected None, got 'v2'"),
    ],
)  # fmt: skip
def test_another_run_is_refused_and_the_difference_named(tmp_path_factory, change, message):
    folder = tmp_path_factory.getbasetemp() / "one run"
    if not folder.exists():
        fit(folder, epochs=1, checkpoint_every=5)
    with pytest.raises(
        ValueError, match=r"jaxsgd_000001 was saved by another .*" + message
    ) as caught:
        fit(folder, epochs=1, **change)
    assert "checkpoint_strict" not in str(caught.value)  # which would not help here


@pytest.mark.parametrize("where", ["device", "host"])
def test_other_values_of_data_or_params_are_refused_unless_that_is_meant(tmp_path, where):
    params, (x, y) = table.problem(n=40)
    place = {"device": lambda *rows: rows, "host": lambda *rows: jaxsgd.HostRows(rows)}[where]
    fit = partial(
        jaxsgd.fit, table.loss, key=jax.random.key(0), learning_rate=0.05, progress=False,
        checkpoint=tmp_path, batch_size=8,
    )  # fmt: skip
    first = fit(params, place(x, y), epochs=1)
    others = {
        r"values of the data\[1\]": (params, place(x, np.asarray(y).copy() + (np.arange(40) == 7))),
        r"values of the initial params\['bias'\]": ({**params, "bias": params["bias"] + 1}, place(x, y)),
    }  # fmt: skip
    for told, (start, rows) in others.items():
        with pytest.raises(ValueError, match=rf"{told}: .*pass checkpoint_strict=False"):
            fit(start, rows, epochs=2)
    later = fit(start, rows, epochs=2, checkpoint_strict=False)
    assert later.history["loss"][0] == first.history["loss"][0]
    assert len(later.history["loss"]) == 2


def test_an_epoch_that_is_run_again_after_a_kill_is_logged_once(tmp_path):
    logged = []

    def log(record):
        if record["epoch"] == 4 and logged[-1] == 3:
            raise SystemExit  # as a kill: fit writes no checkpoint
        logged.append(int(record["epoch"]))

    with pytest.raises(SystemExit):
        fit(tmp_path, checkpoint_every=10, log=log)  # of 5 steps an epoch
    again = fit(
        tmp_path, checkpoint_every=10, log=lambda record: logged.append(int(record["epoch"]))
    )
    assert logged == again.history["epoch"].tolist()
    shutil.rmtree(tmp_path)
    fit(tmp_path, epochs=1, log=lambda record: logged.append(int(record["epoch"])))
    assert logged[-1] == 1  # another run


def test_where_it_cannot_be_written_what_was_logged_the_fit_goes_on(tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError("no space left")

    monkeypatch.setattr(trainer, "_replace_text", fail)
    with pytest.warns(UserWarning, match="may be logged again: no space left"):
        result = fit(tmp_path, epochs=2, log=lambda record: None)
    assert len(result.history["epoch"]) == 2


def test_every_state_of_the_table_is_saved_and_restored(tmp_path):
    states = {name: table.start(*table.all_solvers()[name])[0] for name in table.NAMES}
    tree = {
        "states": states,
        "key": jax.random.key(7, impl="rbg"),
        "bfloat16": jnp.ones(3, jnp.bfloat16),
        "empty": jnp.zeros((0, 2)),
        "history": np.arange(3.0),
        "best": 0.25,
        "none": None,
    }
    jaxsgd.save(tmp_path / "tree", tree)
    like = jax.tree.map(lambda x: x, tree) | {"history": np.zeros(0), "best": 1.0}
    again = jaxsgd.restore(tmp_path / "tree", like)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    chex.assert_trees_all_equal(key_data(again["states"]), key_data(states))
    assert jnp.array_equal(again["key"], tree["key"])
    assert again["bfloat16"].dtype == jnp.bfloat16
    assert isinstance(again["history"], np.ndarray)
    assert again["history"].tolist() == [0, 1, 2]
    assert again["best"] == 0.25
    solver = table.all_solvers()["keyed"][0]
    jaxsgd.run(solver, again["states"]["keyed"], table.problem()[1], 4)
    for change, message in [
        (
            {"bfloat16": jnp.ones(3)},
            r"state\['bfloat16'\]: expected bfloat16\[3\], got float32\[3\]",
        ),
        ({"bfloat16": jnp.ones(4, jnp.bfloat16)}, r"expected bfloat16\[3\], got bfloat16\[4\]"),
        (
            {"history": np.zeros((0, 2))},
            r"expected NumPy float64\[n\], got NumPy float64\[n, 2\]",
        ),
        ({"history": np.zeros(())}, r"expected NumPy float64\[n\], got float64\[\]"),
        ({"more": 1.0}, r"state\['more'\]: expected nothing, got float"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxsgd.restore(tmp_path / "tree", like | change)
    structs = jax.eval_shape(lambda: like["states"]["keyed"])
    jaxsgd.save(tmp_path / "one", states["keyed"])
    from_structs = jaxsgd.restore(tmp_path / "one", structs)
    chex.assert_trees_all_equal(key_data(from_structs), key_data(states["keyed"]))
    jaxsgd.save(tmp_path / "two", jnp.zeros(0))
    assert jaxsgd.restore(tmp_path / "two", jnp.zeros(0)).shape == (0,)
    with pytest.raises(
        ValueError, match="of: expected None, as it was saved without of=, got a Solver"
    ):
        jaxsgd.restore(tmp_path / "tree", like, of=solver)
    with pytest.raises(
        TypeError,
        match=r"state\['name'\]: expected an array, a key or a number, got 'text' of type str",
    ):
        jaxsgd.save(tmp_path / "no", {"name": "text"})
    with pytest.raises(
        TypeError, match=r"state\['name'\]: expected an array of numbers, got one of dtype <U1"
    ):
        jaxsgd.save(tmp_path / "no", {"name": np.array(["a"])})


def values(folder):
    return float(jaxsgd.restore(folder, small(0.0))["params"][0])


def test_the_newest_are_kept_and_a_damaged_one_is_skipped(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected at least one checkpoint, got none"):
        jaxsgd.restore(tmp_path, small(0.0))
    for value in range(4):
        jaxsgd.save(tmp_path, small(float(value)), keep=4)
    jaxsgd.save(tmp_path, small(4.0), keep=4)
    names = [path.name for path in orbax.checkpoints(tmp_path)]
    assert names == [f"jaxsgd_{i:06d}" for i in range(2, 6)]
    folders = orbax.checkpoints(tmp_path)

    def skips(folder):
        message = f"{folder.name} is incomplete or damaged and was skipped: "
        with pytest.warns(UserWarning, match=message):
            return values(tmp_path)

    biggest = lambda folder: max(folder.glob("arrays/**/d/*"), key=lambda p: p.stat().st_size)  # noqa: E731
    assert values(tmp_path) == 4
    damaged = biggest(folders[-1])
    content = bytearray(damaged.read_bytes())
    damaged.write_bytes(content[: len(content) // 2])
    assert skips(folders[-1]) == 3
    shutil.rmtree(folders[-1])
    shutil.rmtree(folders[-2] / "arrays")
    assert skips(folders[-2]) == 2
    shutil.rmtree(folders[-2])
    (folders[-3] / "about" / "metadata").write_text("{")
    assert skips(folders[-3]) == 1
    shutil.rmtree(folders[-3])
    damaged = biggest(folders[-4])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="is incomplete or damaged"),
        pytest.raises(
            ValueError, match="expected a complete checkpoint, got 1, all incomplete or damaged"
        ),
    ):
        values(tmp_path)


def test_a_checksum_finds_what_the_format_does_not(tmp_path, monkeypatch):
    jaxsgd.save(tmp_path, small(1.0))
    monkeypatch.setattr(orbax, "checksum", lambda array: 0)
    with (
        pytest.warns(UserWarning, match="the checksum of 0.params is wrong"),
        pytest.raises(ValueError, match="all incomplete or damaged"),
    ):
        values(tmp_path)


def test_a_foreign_folder_is_refused(tmp_path):
    jaxsgd.save(tmp_path, small(0.0))
    (tmp_path / ".DS_Store").write_text("")
    assert values(tmp_path) == 0
    (tmp_path / "checkpoint_100").mkdir()  # Flax's
    for act in (lambda: jaxsgd.save(tmp_path, small(0.0)), lambda: values(tmp_path)):
        with pytest.raises(
            FileExistsError, match="and nothing else, got one that holds 'checkpoint_100'"
        ):
            act()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="expected a folder of checkpoints, got a file"):
        jaxsgd.save(tmp_path / "file", small(0.0))
    assert (tmp_path / "checkpoint_100").exists()


def test_a_wrong_like_and_a_wrong_folder_are_named(tmp_path):
    path = jaxsgd.save(tmp_path, {"params": jnp.ones(2)})
    with pytest.raises(
        ValueError, match="holds a state of another structure than `like`: state.* Pass the"
    ):
        jaxsgd.restore(tmp_path, {"weight": jnp.ones(2)})
    with pytest.raises(FileExistsError, match="000001 is one checkpoint, expected its folder: "):
        jaxsgd.restore(path, {"params": jnp.ones(2)})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's tasks
def test_on_a_full_disk_the_last_checkpoint_stays_and_fit_goes_on(tmp_path):
    rng = np.random.default_rng(0)
    big = lambda: {"params": jnp.asarray(rng.normal(size=40_000), jnp.float32)}  # noqa: E731
    first = big()
    jaxsgd.save(tmp_path / "own", first)
    fit(tmp_path / "before", epochs=2, checkpoint_every=5)  # JAX's cache of programs is on the disk
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(Exception, match="File too large|EFBIG"):
            jaxsgd.save(tmp_path / "own", big())
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
        with pytest.warns(UserWarning, match="the checkpoint of step .* in .* was not written"):
            result = fit(tmp_path / "fit", epochs=2, checkpoint_every=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    chex.assert_trees_all_equal(jaxsgd.restore(tmp_path / "own", first), first)
    same(result, fit(None, epochs=2))


def test_a_state_of_one_device_goes_on_on_two_and_back(tmp_path):
    jaxsgd.save(tmp_path, small(1.0))
    ended = PROCESSES.Event()
    process = PROCESSES.Process(target=on_two_devices, args=(tmp_path, ended))
    process.start()
    process.join()
    assert ended.is_set()
    assert values(tmp_path) == 2


def test_a_checkpoint_with_another_tag_is_refused(tmp_path):
    jaxsgd.save(tmp_path / "own", small(1.0), tag="v1")
    restored = jaxsgd.restore(tmp_path / "own", small(0.0), tag="v1")
    chex.assert_trees_all_equal(restored, small(1.0))
    for tag in ("v2", None):
        with pytest.raises(ValueError, match=f"another run: tag: expected 'v1', got {tag!r}"):
            jaxsgd.restore(tmp_path / "own", small(0.0), tag=tag)
    fit(tmp_path / "fit", epochs=1, checkpoint_every=5, checkpoint_tag="v1")
    same(fit(tmp_path / "fit", epochs=2, checkpoint_tag="v1"), fit(None, epochs=2))
    for tag in ("v2", None):
        with pytest.raises(ValueError, match=f"another run: tag: expected 'v1', got {tag!r}"):
            fit(tmp_path / "fit", epochs=3, checkpoint_tag=tag)


def test_a_tag_that_is_not_a_string_is_refused(tmp_path):
    for act in (
        lambda: jaxsgd.save(tmp_path, small(0.0), tag=2),
        lambda: jaxsgd.restore(tmp_path, small(0.0), tag=2),
    ):
        with pytest.raises(TypeError, match="^tag: expected a string, got 2 of type int"):
            act()
    with pytest.raises(TypeError, match="checkpoint_tag: expected a string, got 2 of type int"):
        fit(tmp_path, checkpoint_tag=2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="checkpoint_tag without checkpoint"):
        fit(None, checkpoint_tag="v1")


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    for act in (lambda: jaxsgd.save(tmp_path, small(0.0)), lambda: fit(tmp_path)):
        with pytest.raises(ImportError, match=r"pip install 'jaxsgd\[checkpoints\]'"):
            act()
    with pytest.raises(ValueError, match="checkpoint_every without checkpoint"):
        jaxsgd.fit(
            table.loss,
            *table.problem(),
            key=jax.random.key(0),
            epochs=1,
            learning_rate=0.1,
            checkpoint_every=3,
        )


HOLDER = """
import sys, time
from pathlib import Path
from jaxsgd.checkpoints.lock import owned
with owned(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_used_by_one_fit_at_a_time(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BlockingIOError, match=f"in use by process {holder.pid} on .* one run"):
            fit(folder, epochs=1)
        holder.kill()
    with pytest.warns(UserWarning, match=f"left by process {holder.pid} on .*, which was killed"):
        fit(folder, epochs=1)
    assert not (folder / ".owner").exists()

    def again(record):
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()}"):
            fit(folder, epochs=2)

    assert fit(folder, epochs=2, log=again).history["epoch"].tolist() == [1, 2]


@pytest.mark.filterwarnings("ignore:unclosed file")
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_folder_that_is_gone_ends_no_fit(tmp_path, is_replaced):
    folder = tmp_path / "run"

    def remove(record):
        if record["epoch"] == 2:
            folder.rename(tmp_path / "gone")
            if is_replaced:
                folder.write_text("a file")

    with pytest.warns(UserWarning, match="was not written"):
        same(fit(folder, epochs=4, log=remove), fit(None, epochs=4))
    assert is_replaced or fit(folder, epochs=5).history["epoch"].tolist() == [1, 2, 3, 4, 5]
