#!/usr/bin/env bash
# Fine-tunes a pretrained run: an array over data sets × learning rates, one node for each.
# Usage: sbatch [--array=0-N] slurm/finetune.sh RUN [CONFIG …] [lrs=0.001,0.003,…] [key.sub=value …]
#        CONFIG is a YAML file or recipe:NAME. Task i takes config i / (number of rates) and rate i % (number of rates); without --array there are 16 tasks,
#        which the four sets and four rates below fill. The run folders are runs/NAME_of_RUN_transfer/CONFIG_lrRATE.
#SBATCH --job-name=finetune
#SBATCH --array=0-15
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

source_run=${1:?error: name the pretrained run: sbatch slurm/finetune.sh runs/my_run}
shift
configs=()
while is_config "${1:-}"; do
    configs+=("$1")
    shift
done
if [ "${#configs[@]}" = 0 ]; then
    configs=(configs/finetune/{cifar10,cifar100,pets,flowers}.yaml)
fi
lrs=0.001,0.003,0.01,0.03
if [[ ${1:-} == lrs=* ]]; then
    lrs=${1#lrs=}
    shift
fi
IFS=, read -r -a rates <<<"$lrs"

task=${SLURM_ARRAY_TASK_ID:?error: this is an array; see --array above}
last=$((${#configs[@]} * ${#rates[@]} - 1))
if ((SLURM_ARRAY_TASK_MAX > last)); then
    echo "error: ${#configs[@]} configs × ${#rates[@]} rates need --array=0-$last, not up to $SLURM_ARRAY_TASK_MAX" >&2
    exit 2
fi
config=${configs[task / ${#rates[@]}]}
lr=${rates[task % ${#rates[@]}]}
name=${config##*[/:]}
# Both folders are in runs/: a sweep is not written into the run that it starts from.
train finetune --config "$config" --from "$source_run" "optim.lr=$lr" \
    "output_dir=${source_run%/}_transfer" "name=${name%.yaml}_lr$lr" "$@"
