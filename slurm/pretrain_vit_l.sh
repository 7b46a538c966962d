#!/usr/bin/env bash
# Pretrains ViT-L/16 on ImageNet-21k, on 8 nodes of 8 GPUs. Resumes after a time limit, a preemption or a node failure.
# Usage: sbatch [options of sbatch] slurm/pretrain_vit_l.sh [CONFIG.yaml or recipe:NAME] [key.sub=value …]
#        The cluster file is CLUSTER, by default configs/cluster/64xa100_80.yaml.
# Slurm reads these options from this file alone, so pretrain_vit_h.sh and pretrain_vit_l.sh repeat them.
#SBATCH --job-name=vit_l16
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
set -uo pipefail
# shellcheck source=slurm/lib/job.sh
source "${SLURM_SUBMIT_DIR:-.}/slurm/lib/job.sh"
enter_repository
# shellcheck source=slurm/lib/training.sh
source slurm/lib/training.sh
load_site
pretrain configs/pretrain/vit_l16_i21k_90ep.yaml "$@"
