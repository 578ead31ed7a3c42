#!/bin/bash
# Train one model on all GPUs of several machines of a Slurm cluster. From the root of the repository:
#
#     sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh --config=FILE --workdir=FOLDER
#
# A task is a process with one GPU, that of its number on the machine: give as many tasks as GPUs, and no
# --gpus-per-task. On machines without GPUs, give one task each. FOLDER is on a disk that all machines share. Two
# minutes before its time is up the job saves a checkpoint and is queued again; it goes on from there.

#SBATCH --job-name=jrobust
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120

set -u
status=0
srun --kill-on-bad-exit=1 python launch/run.py --distributed "$@" || status=$?
if [ "$status" -eq 143 ]; then # stopped by SIGTERM and saved
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
