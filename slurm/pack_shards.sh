#!/usr/bin/env bash
# Packs a data set into shards: each task of an array packs its part; then one job merges them.
# Usage: job=$(sbatch --parsable --array=1-64 slurm/pack_shards.sh folder /path/to/images --out data/mine)
#        sbatch --dependency=afterok:"$job" --kill-on-invalid-dep=yes slurm/pack_shards.sh merge data/mine
#        The arguments are those of python -m pipelines pack. Submitted again, what is packed is not packed again.
#SBATCH --job-name=pack
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -uo pipefail
# shellcheck source=slurm/lib/job.sh
source "${SLURM_SUBMIT_DIR:-.}/slurm/lib/job.sh"
enter_repository
load_site

part=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    if [ -z "${PARTS:-}" ] && ((SLURM_ARRAY_TASK_MAX != SLURM_ARRAY_TASK_COUNT)); then
        echo "error: number the parts from 1, --array=1-N; for some of them say how many there are: PARTS=N" >&2
        exit 2
    fi
    part=(--task "$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}")
fi
exec "${RUN_PREFIX[@]}" "$RUN_PYTHON" -u -m pipelines pack "$@" "${part[@]}"
