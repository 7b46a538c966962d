#!/usr/bin/env bash
# Runs one stage of python -m pipelines that needs no peers, such as export or report.
# Usage: sbatch [options of sbatch] slurm/stage.sh STAGE [ARGUMENTS …]
#        STAGE_DONE names a file that is made when the stage has succeeded (python -m pipelines chain looks for it).
#SBATCH --job-name=stage
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
# shellcheck source=slurm/lib/job.sh
source "${SLURM_SUBMIT_DIR:-.}/slurm/lib/job.sh"
enter_repository
load_site
"${RUN_PREFIX[@]}" "$RUN_PYTHON" -u -m pipelines "$@" || exit $?
if [ -n "${STAGE_DONE:-}" ]; then
    mkdir -p "$(dirname "$STAGE_DONE")" && : >"$STAGE_DONE"
fi
