# shellcheck shell=bash
# What every job script shares. Sourced in the batch shell, from the repository's root.

# The repository: where sbatch was called. (The batch script itself is a copy in a spool folder.)
enter_repository() {
    cd "${SLURM_SUBMIT_DIR:?this script is meant for sbatch}" || exit 1
    if [ ! -f pretrain/run.py ]; then
        echo "error: $PWD is not the repository; call sbatch from its root" >&2
        exit 2
    fi
}

# Sets RUN_PYTHON, and whatever else slurm/site.sh exports (modules, NCCL settings, proxies).
load_site() {
    if [ -f slurm/site.sh ]; then
        # shellcheck source=slurm/site.example.sh
        source slurm/site.sh
    fi
    RUN_PYTHON=${RUN_PYTHON:-$PWD/.venv/bin/python}
    if [ ! -x "$RUN_PYTHON" ]; then
        echo "error: no Python at $RUN_PYTHON; run make test once, or set RUN_PYTHON in slurm/site.sh" >&2
        exit 2
    fi
}

# Exports where the ranks meet: the first node, and a port that another job on it is unlikely to have.
set_rendezvous() {
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT
}

# Prints one top-level key of the resolved config. Arguments: key, then the arguments of pretrain/run.py.
config_value() {
    local key=$1
    shift
    "$RUN_PYTHON" pretrain/run.py "$@" --print-config | sed -n "s/^$key: //p" | tr -d "'\""
}

# Ends the job as the run's verdict says. Arguments: run folder, exit code of the step.
# The verdict counts only if this very start of the job wrote it; without one the run has crashed.
follow_verdict() {
    local folder=$1 code=$2 outcome
    outcome=$("$RUN_PYTHON" - "$folder/exit.json" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" <<'PYTHON'
import json, sys
path, job, restart = sys.argv[1:]
try:
    verdict = json.load(open(path))
except (OSError, ValueError):
    verdict = {}
fresh = (str(verdict.get("job_id")), str(verdict.get("restart_count"))) == (job, restart)
print(verdict.get("outcome", "crash") if fresh else "crash")
PYTHON
    )
    echo "step left with $code, verdict: $outcome"
    case $outcome in
        complete) exit 0 ;;
        requeue)
            scontrol requeue "$SLURM_JOB_ID"
            exit 0
            ;;
        *) exit "$((code > 0 ? code : 1))" ;;
    esac
}
