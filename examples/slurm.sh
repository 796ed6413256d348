#!/bin/bash
# sbatch slurm.sh: one process per GPU on two nodes, started again after a preemption.
#SBATCH --job-name=jaxsgd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-task=1
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append

# 120 s before the time limit Slurm sends SIGTERM to each process: all save the same step and exit
# with 75.
srun python train.py --cluster --folder "$SLURM_SUBMIT_DIR/run"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
