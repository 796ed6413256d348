"""The same on a Ray cluster: `python ray_train.py`. Ray starts and connects the processes."""

import os
import sys

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.jax import JaxTrainer


def worker(config: dict[str, str]) -> None:
    import train

    sys.argv = ["train.py", "--folder", config["folder"]]
    code = train.main()
    if code == os.EX_TEMPFAIL:
        raise RuntimeError("preempted: Ray starts the workers again, which continue")
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    ray.init()
    JaxTrainer(
        worker,
        train_loop_config={"folder": "/shared/run"},
        scaling_config=ScalingConfig(num_workers=2, use_gpu=True),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=100)),
    ).fit()
