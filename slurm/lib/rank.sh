#!/usr/bin/env bash
# One rank of a job step: gives the task the variables that torchrun would give it, then becomes the command.
# Usage (by srun): bash slurm/lib/rank.sh COMMAND …
set -euo pipefail
export RANK=${SLURM_PROCID:?started by srun only}
export LOCAL_RANK=${SLURM_LOCALID:?}
export WORLD_SIZE=${SLURM_NTASKS:?}
export LOCAL_WORLD_SIZE=${SLURM_NTASKS_PER_NODE:-$((SLURM_NTASKS / SLURM_NNODES))}
# The signal before the time limit reaches every process of the step. Until Python has its handler it must kill nothing.
trap "" USR1
exec "$@"
