#!/usr/bin/env bash
# The trials of a fine-tuning config's section sweep as an array, one node for each; each is judged on the dev split.
# Usage: sbatch --array=0-N slurm/sweep.sh RUN CONFIG.yaml [key.sub=value …]
#        Task i is trial i of what python -m pipelines sweep --config CONFIG.yaml --from RUN --dry-run prints. The same
#        sweep without --dry-run, as a job after these, reads them and runs the best (docs/transfer.md).
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
set -uo pipefail
# shellcheck source=slurm/lib/job.sh
source "${SLURM_SUBMIT_DIR:-.}/slurm/lib/job.sh"
enter_repository
# shellcheck source=slurm/lib/training.sh
source slurm/lib/training.sh
load_site

source_run=${1:?error: name the pretrained run: sbatch --array=0-3 slurm/sweep.sh runs/my_run CONFIG.yaml}
config=${2:?error: name a config with a section sweep, such as configs/finetune/cifar10.yaml}
shift 2
task=${SLURM_ARRAY_TASK_ID:?error: this is an array: sbatch --array=0-3 slurm/sweep.sh …}
words=$(python_here -m pipelines sweep --config "$config" --from "$source_run" --trial "$task" "$@") || exit $?
mapfile -t words <<<"$words"
train finetune "${words[@]}"
