# shellcheck shell=bash
# A training in a job: begin, preflight, step, end. Sourced after job.sh.

# Whether a word names a config: a YAML file or a shipped recipe.
is_config() { [[ $1 == *.yaml || $1 == recipe:* ]]; }

# Arguments: the config to train when the user names none, then the arguments of the job script.
pretrain() {
    local config=$1
    shift
    if is_config "${1:-}"; then
        config=$1
        shift
    fi
    train pretrain --config "$config" --cluster "${CLUSTER:-configs/cluster/64xa100_80.yaml}" "$@"
}

# Arguments: pretrain or finetune, then the arguments of the training.
train() {
    local entry=$1 variables restarts=(--max-restarts "${MAX_RESTARTS_WITHOUT_PROGRESS:-3}")
    shift
    variables=$(python_here -m pipelines.slurm begin --entry "$entry" "${restarts[@]}" \
        --spare-nodes "${SPARE_NODES:-0}" -- "$@") || exit $?
    # RUN_FOLDER, RUN_SCRIPT, TRAIN_ARGUMENTS, PROBE_ARGUMENTS, SUPERVISE_ARGUMENTS and the number of restarts
    eval "$variables"

    preflight
    # Python runs the step, and starts it again after a failure. Until it handles the signals they must kill nothing.
    # shellcheck disable=SC2016,SC2153 # expanded by the inner bash; set by begin
    wait_for bash -c 'trap "" USR1 TERM; exec "$@"' supervise "${HERE[@]}" -m pipelines.slurm supervise \
        "${SUPERVISE_ARGUMENTS[@]}" "${restarts[@]}" --max-node-failures "${MAX_NODE_FAILURES:-2}" \
        --in-place "${RESTART_IN_PLACE:-on}" --silent-s "${SILENT_LIMIT_S:-60}" --stop-s "${STOP_LIMIT_S:-3}" \
        -- srun "${STEP_OPTIONS[@]}" "${RANK[@]}" "$RUN_SCRIPT" "${TRAIN_ARGUMENTS[@]}"
    ((STEP_CODE >= 128)) || exit "$STEP_CODE"
    trap '' TERM # the supervisor was killed
    python_here -m pipelines.slurm end --run "$RUN_FOLDER" --code "$STEP_CODE" "${restarts[@]}"
    exit $?
}

# Asks every node whether it is fit: PREFLIGHT is full (the default), light (no torch, no all-reduce) or off.
preflight() {
    local gpus=$SLURM_NTASKS_PER_NODE tasks=1 compute=() limit=${PREFLIGHT_TIMEOUT_S:-300} bad_nodes
    case ${PREFLIGHT:-full} in
        off) return ;;
        light) ;;
        full)
            tasks=$SLURM_NTASKS_PER_NODE
            compute=(--compute)
            ;;
        *)
            echo "error: PREFLIGHT=$PREFLIGHT in the site file; allowed: full, light, off" >&2
            exit 2
            ;;
    esac
    [ "${RUN_DEVICE:-gpu}" = cpu ] && gpus=0
    # The tasks meet on the first node, at a port that another job there is unlikely to have.
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT
    # A node that hangs must not hold the others: the step has a time limit of its own, in minutes.
    # shellcheck disable=SC2153
    run_step --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((tasks * SLURM_JOB_NUM_NODES))" --ntasks-per-node="$tasks" \
        --time="$(((limit + 59) / 60))" -- -m pipelines.slurm probe --gpus "$gpus" "${compute[@]}" "${PROBE_ARGUMENTS[@]}"
    bad_nodes=$(python_here -m pipelines.slurm judge --run "$RUN_FOLDER") || exit $?
    [ -z "$bad_nodes" ] && [ "$STEP_CODE" = 0 ] && return
    trap '' TERM
    # shellcheck disable=SC2086 # one word per node
    python_here -m pipelines.slurm end --run "$RUN_FOLDER" --code "$STEP_CODE" "${restarts[@]}" \
        --reason "the preflight failed${bad_nodes:+ on $bad_nodes}" --bad-nodes $bad_nodes
    exit $?
}
