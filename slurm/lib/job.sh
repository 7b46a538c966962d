# shellcheck shell=bash
# Functions that every job script shares, in the order in which they are called. Sourced in the batch shell.

# Goes to the repository, or to the folder that slurm-scripts has written: where sbatch was called. (The batch script
# itself is a copy in a spool folder.)
enter_repository() {
    cd "${SLURM_SUBMIT_DIR:?this script is meant for sbatch}" || exit 2
    if [ ! -f slurm/lib/rank.sh ]; then
        echo "error: $PWD has no slurm/lib; call sbatch from the folder that slurm/ is in" >&2
        exit 2
    fi
}

# Sources the site file; sets RUN_PYTHON and RUN_PREFIX, and from them HERE (Python in the batch shell), RANK (Python in a
# rank) and STEP_OPTIONS (of srun, whatever the nodes).
load_site() {
    local site=${SITE_FILE:-slurm/site.sh}
    if [ ! -f "$site" ]; then
        echo "error: no site file at $site: cp slurm/site.example.sh slurm/site.sh, and adapt it" >&2
        exit 2
    fi
    RUN_PREFIX=()
    SRUN_OPTIONS=()
    # shellcheck source=slurm/site.example.sh
    source "$site"
    RUN_PYTHON=${RUN_PYTHON:-$PWD/.venv/bin/python}
    if [ "${#RUN_PREFIX[@]}" = 0 ] && [ ! -x "$RUN_PYTHON" ]; then
        echo "error: no Python at $RUN_PYTHON; set RUN_PYTHON in $site, or in a checkout run make test once" >&2
        exit 2
    fi
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    HERE=("${RUN_PREFIX[@]}" "$RUN_PYTHON" -u)
    [ -z "${HOST_PYTHON:-}" ] || HERE=("$HOST_PYTHON" -u)
    STEP_OPTIONS=(--kill-on-bad-exit=1 --distribution=block:block --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
        "${SRUN_OPTIONS[@]}")
    RANK=(bash slurm/lib/rank.sh "${RUN_PREFIX[@]}" "$RUN_PYTHON" -u)
}

# Python in the batch shell, where it asks scontrol: HOST_PYTHON where the site's container has no Slurm in it.
python_here() { "${HERE[@]}" "$@"; }

# Runs a command and waits through signals, so that the batch shell outlives what it started. Sets STEP_CODE.
wait_for() {
    local code
    "$@" &
    STEP_PID=$!
    while :; do
        wait "$STEP_PID"
        code=$?
        kill -0 "$STEP_PID" 2>/dev/null || break
    done
    # shellcheck disable=SC2034 # read by training.sh
    STEP_CODE=$code
}

# One step. Sets STEP_CODE.
# Arguments: options of srun, --, the command.
run_step() {
    local options=()
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
    wait_for srun "${options[@]}" "${STEP_OPTIONS[@]}" "${RANK[@]}" "$@"
}

# A signal to the batch shell alone (sbatch --signal=B:…, scancel --batch) goes on to the ranks: srun hands it over.
# SIGTERM means that Slurm ends the job: it tells the ranks itself, and this shell must live to see their verdict.
trap '[ -z "${STEP_PID:-}" ] || kill -USR1 "$STEP_PID" 2>/dev/null' USR1
trap ':' TERM
