#!/usr/bin/env bash
# Evaluates trained weights on the GPUs of one node, each image once.
# Usage: sbatch [options of sbatch] slurm/evaluate.sh SHARDS --from RUN_OR_WEIGHTS [ARGUMENTS …]
#        The arguments are those of python -m pipelines evaluate.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
# shellcheck source=slurm/lib/job.sh
source "${SLURM_SUBMIT_DIR:-.}/slurm/lib/job.sh"
enter_repository
load_site
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
run_step --ntasks="$SLURM_NTASKS" --ntasks-per-node="$SLURM_NTASKS_PER_NODE" -- -m pipelines evaluate "$@"
exit "$STEP_CODE"
