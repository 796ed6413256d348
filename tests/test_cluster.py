"""The programs of `examples/`: two processes train, are asked to end, and continue."""

import ast
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def start(folder, epochs):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "train.py", "--folder", folder, "--epochs", str(epochs)]
    command += ["--coordinator", address, "--processes", "2", "--rank"]
    return [
        subprocess.Popen([*command, str(rank)], cwd=EXAMPLES, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]


@pytest.mark.slow
def test_two_processes_train_are_ended_and_continue(tmp_path):
    both = start(tmp_path, 10_000)
    while "'epoch': 1.0" not in both[0].stdout.readline():
        assert both[0].poll() is None
    time.sleep(0.5)
    both[1].send_signal(signal.SIGTERM)
    texts = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [os.EX_TEMPFAIL] * 2
    assert (
        texts[0]
        .splitlines()[-1]
        .endswith("the process was asked to end; call fit again to continue")
    )
    epochs = texts[0].count("'epoch'") + 3
    both = start(tmp_path, epochs)
    texts = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert texts[0].splitlines()[-1] == (
        f"ended in epoch {epochs}, after {64 * epochs} steps: all epochs were run"
    )
    assert 1 <= texts[0].count("'epoch'") <= 3  # the others were logged before


def test_the_files_for_clusters_are_well_formed():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    subprocess.run(["bash", "-n", EXAMPLES / "slurm.sh"], check=True)
    ast.parse((EXAMPLES / "ray_train.py").read_text())
    options = {word for word in container["command"][-1].split() if word.startswith("--")}
    options |= {"--cluster"}  # of slurm.sh
    helped = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(option in helped.stdout for option in options)
