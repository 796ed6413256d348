"""Train on the devices of all processes, resume where an earlier run ended, save when asked to end.

One process, or several with the address of the first:

    python train.py --folder run
    python train.py --folder run --coordinator host0:1234 --processes 2 --rank 0  # and --rank 1

On Slurm, Open MPI and Cloud TPUs `--cluster` is enough: JAX finds the rest by itself.
"""

import argparse
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True, help="of checkpoints, on shared storage")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--cluster", action="store_true", help="ask the cluster for the processes")
    parser.add_argument("--coordinator", help="host:port of the first process")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--rank", type=int)
    return parser.parse_args()


def loss(params, row):
    x, y = row
    return (x @ params["weight"] + params["bias"] - y) ** 2


def main() -> int:
    args = arguments()
    if args.cluster or args.coordinator:  # before anything touches a device
        jax.distributed.initialize(args.coordinator, args.processes, args.rank)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))

    # in place of np.load("x.npy", mmap_mode="r"): a process reads its own rows only
    n, features = 4096, 16
    own = jaxsgd.process_rows(n, mesh)
    x = np.random.default_rng(0).normal(size=(n, features)).astype(np.float32)[own]
    rows = jaxsgd.MeshRows((x, x.sum(1)), mesh, size=n, reproducible=True)

    result = jaxsgd.fit(
        loss,
        {"weight": jnp.zeros(features), "bias": jnp.zeros(())},
        rows,
        key=jax.random.key(0),
        epochs=args.epochs,
        batch_size=64,
        learning_rate=0.01,
        progress=False,
        log=lambda record: print(record, flush=True),  # called on the first process
        checkpoint=args.folder,
        checkpoint_every=16,
    )
    if jax.process_index() == 0:
        print(result.message)
    if result.reason == jaxsgd.Reason.PREEMPTED:
        return os.EX_TEMPFAIL  # 75: start this program again
    return int(result.reason == jaxsgd.Reason.DIVERGED)


if __name__ == "__main__":
    sys.exit(main())
