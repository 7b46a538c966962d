# shellcheck shell=bash
# What is particular to a site. Copy to slurm/site.sh and adapt; the job scripts source it on the first node.
# sbatch reads its options before that, so set account and partition in the shell that calls it:
#   source slurm/site.sh && sbatch slurm/pretrain_vit_h.sh
export SBATCH_ACCOUNT=my_account
export SBATCH_PARTITION=gpu

# module load cuda/12.8

# Python with the project installed; by default the repository's .venv.
# export RUN_PYTHON=$HOME/vit/.venv/bin/python

# The interface that the nodes reach each other by, where NCCL or gloo choose another one.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
