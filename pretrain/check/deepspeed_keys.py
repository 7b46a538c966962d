"""Checks ``cluster.deepspeed`` before DeepSpeed sees it, which ignores an unknown key or ends with a traceback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pretrain.config.typed import nearest_key

FLAG, NUMBER, SECTION = "true or false", "a number", "a section"
DTYPE = "fp32, bf16 or fp16"
# Kind of value → keys of DeepSpeed 0.19 that can be used here. What is in a section is DeepSpeed's to check.
TOP = {
    FLAG: "disable_allgather disable_python_gc dump_state memory_breakdown prescale_gradients wall_clock_breakdown "
    "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer",
    NUMBER: "gradient_predivide_factor steps_per_print",
    SECTION: "aio comms_logger compile csv_monitor data_types flops_profiler timers zero_optimization",
    DTYPE: "communication_data_type",
}
ZERO = {
    FLAG: "allgather_partitions contiguous_gradients elastic_checkpoint enable_sanity_checks ignore_unused_parameters "
    "legacy_stage1 load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear override_module_apply "
    "overlap_comm parameter_alignment pipeline_loading_checkpoint reduce_scatter round_robin_gradients "
    "stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save stage3_use_all_reduce_for_fetch_params "
    "use_multi_rank_bucket_allreduce zero_quantized_gradients zero_quantized_nontrainable_weights "
    "zero_quantized_weights",
    NUMBER: "allgather_bucket_size reduce_bucket_size stage stage3_max_live_parameters stage3_max_reuse_distance "
    "stage3_model_persistence_threshold stage3_module_granularity_threshold stage3_param_persistence_threshold "
    "stage3_prefetch_bucket_size sub_group_size zero_hpz_partition_size",
    SECTION: "leaf_module offload_optimizer offload_param",
}


def kinds_of(table: Mapping[str, str]) -> dict[str, str]:
    """Key → kind of its value."""
    return {key: kind for kind, keys in table.items() for key in keys.split()}


def problems_in(settings: Mapping[str, Any]) -> list[str]:
    """One line for each unknown key and each value of another kind in ``cluster.deepspeed``."""
    zero = settings.get("zero_optimization")
    found = [*_problems("cluster.deepspeed", settings, kinds_of(TOP))]
    if isinstance(zero, Mapping):
        found += _problems("cluster.deepspeed.zero_optimization", zero, kinds_of(ZERO))
    return found


def _problems(prefix: str, settings: Mapping[str, Any], kinds: Mapping[str, str]) -> Iterator[str]:
    for key, value in settings.items():
        if key not in kinds:
            near = nearest_key(key, kinds)
            hint = f"did you mean {near}?" if near else f"allowed: {', '.join(sorted(kinds))}"
            yield f"{prefix}.{key}: not a key of DeepSpeed that can be used here; {hint}"
        elif not _is(kinds[key], value):
            yield f"{prefix}.{key}: {value!r} is not {kinds[key]}"


def _is(kind: str, value: Any) -> bool:
    if kind == FLAG:
        return isinstance(value, bool)
    if kind == NUMBER:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, Mapping) if kind == SECTION else value in ("fp32", "bf16", "fp16")
