# shellcheck shell=bash
# Settings of a site. Copy to slurm/site.sh and adapt; every job script sources it (SITE_FILE names another).
# sbatch reads its own options before that, so set account and partition in the shell that calls it, once a session:
#   source slurm/site.sh && sbatch slurm/pretrain_vit_h.sh
export SBATCH_ACCOUNT=my_account
export SBATCH_PARTITION=gpu

# Modules, or a container. RUN_PREFIX is put before Python in the batch shell and in every rank; SRUN_OPTIONS go to srun.
# module load cuda/12.8
# RUN_PREFIX=(apptainer exec --nv "$HOME/vit.sif")
# SRUN_OPTIONS=(--container-image="$HOME/vit.sqsh")
# Every rank sees all GPUs of its node and takes one by its number. A cluster that binds GPUs to tasks can do so instead:
# SRUN_OPTIONS=(--gpus-per-task=1)
# In the batch shell Python asks scontrol. Where the container has no Slurm in it, a Python outside of it with numpy,
# pydantic, PyYAML and safetensors will do:
# export HOST_PYTHON=$HOME/light/bin/python

# Python with the project installed; by default the repository's .venv.
# export RUN_PYTHON=$HOME/vit/.venv/bin/python

# The interface that the nodes reach each other by, where NCCL or gloo choose another one.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# Scratch of a node: caches of compilers and of shards.
# export TMPDIR=/local/$USER

# How often in a row a job may be restarted without a newer checkpoint before it gives up.
# export MAX_RESTARTS_WITHOUT_PROGRESS=3

# Restarts inside the allocation after a failure (docs/restart.md): nodes of the job that wait for one to fail; after how
# many failures a node is avoided; after how many seconds without a heartbeat a rank counts as dead; how many seconds the
# others get to end before they are killed. RESTART_IN_PLACE=off requeues the job instead.
# export SPARE_NODES=0 MAX_NODE_FAILURES=2 SILENT_LIMIT_S=60 STOP_LIMIT_S=3 RESTART_IN_PLACE=on

# Checks of every node before the training: full, light (no matrix product, no all-reduce) or off.
# export PREFLIGHT=full
