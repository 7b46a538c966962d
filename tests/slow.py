"""Cases that only ``make test-all`` runs, beside the tests that are marked as slow where they are written.

``make test`` keeps one case of each law and each kind of fault, the cheapest that can fail for the same reason. Each
entry is a file below tests/ and a regular expression that a test's name, with its parameters, must match completely.
"""

from __future__ import annotations

import re
from collections.abc import Collection

SECOND_CASES: dict[str, tuple[str, ...]] = {
    "cuda/test_jobs.py": (r".*",),
    "cuda/test_steps.py": (r".*",),
    "distributed/test_augmentation.py": (r"test_ranks_and_micro_batches_make_no_difference\[batch\]",),
    "distributed/test_backbones.py": (
        r"test_a_life\[(?!hf_clip).*\]",
        r"test_activation_checkpointing_changes_nothing\[(?!swin-3).*\]",
    ),
    "distributed/test_checkpointing_table.py": (
        r"test_every_new_tensor_may_be_sharded\[(every_layer|relative_bias|relative_1d|parallel|none ).*\]",
        r"test_supported\[ZeRO-3 fp32 False (every_k|full)\]",
    ),
    "distributed/test_elastic.py": (
        r"test_three_layouts_in_a_row\[(.*sgd|zero0x4f.*|zero3x2d.*)\]",
        r"test_other_targets_and_images\[segmentation\]",
        r"test_bf16_goes_on_from_the_fp32_master_weights\[layout[13]\]",
        r"test_another_model_or_optimiser_is_refused\[change[12].*\]",
        r"test_the_same_layout_goes_on_bit_identically\[layout[014]\]",
    ),
    "distributed/test_elastic_matrix.py": (r".*bf16-adamw\]",),
    "distributed/test_ema.py": (r"test_equals_a_single_process\[.*-4-.*\]",),
    "distributed/test_equality_laws.py": (
        r"test_four_ranks\[(?!3).*\]",
        r"test_two_ranks\[(accelerate accumulation|activation checkpointing.*|accumulation zero2|fsdp2 acc.*)\]",
        r"test_the_same_command_twice_is_bit_identical\[[012]-.*\]",
    ),
    "distributed/test_feature_distillation.py": (
        r"test_every_layout_gives_the_losses_of_one_rank\[(features|tokens)\]",
    ),
    "distributed/test_fsdp2.py": (r".*\[swin\]",),
    "distributed/test_gradient_sums.py": (r"test_buckets\[1-7\]",),
    "distributed/test_lora.py": (r"test_every_layout_gives_the_losses_of_one_rank\[vit\]", r"test_memory\[.*\]"),
    "distributed/test_memory.py": (
        r"test_fsdp2_on_two_ranks\[.*\]",
        r"test_ddp_keeps_buckets_of_all_gradients\[(4-.*|2-(autocast|bf16))\]",
    ),
    "distributed/test_optimizers.py": (r"test_low_precision_trains_and_goes_on\[.*-bf16\]",),
    "distributed/test_statistics.py": (r"test_fine_tuning_starts_from_them",),
    "distributed/test_timm_variants.py": (r".*\[RoPE, attention pooling-.*",),
    "faults/test_evaluation_stop.py": (r".*\[on the way\]",),
    "faults/test_hang.py": (r"test_a_rank_that_joins_and_falls_silent_is_named\[script0-.*\]",),
    "faults/test_kill.py": (r"test_resumed_by_another_number_of_ranks_and_stage",),
    "faults/test_startup.py": (r"test_two_jobs_on_one_port\[True\]",),
    "faults/test_stop.py": (
        r"test_stop_and_go_on\[SIGUSR1\]",
        r"test_a_changed_setting_is_refused_by_name",
        r"test_a_fork_goes_on_in_a_folder_of_its_own",
    ),
    "golden/test_exchange_onnx.py": (r"test_logits_for_any_number_of_images\[rope, .*\]",),
    "golden/test_vit_against_timm.py": (
        r".*\[hybrid of stride 32\]",
        r"test_logits_and_features_equal_timm\[hybrid of stride 16\]",
        r"test_intermediates_equal_timm\[(?!registers|parallel|ViT-5|rotary\]).*\]",
    ),
    "integration/test_backbone_jobs.py": (
        r"test_a_backbone_teaches_a_distilled_student",
        r"test_check_knows_a_backbones_cost",
    ),
    "integration/test_docs.py": (  # the README's and the start page's are run in order by test_start_page.py
        r"test_command_of_the_docs\[README.md-python -m pipelines (evaluate|export|predict|verify) .*",
        r"test_command_of_the_docs\[index.md-python -m pipelines (bench-data|evaluate|export|predict) .*",
        r"test_command_of_the_docs\[(dense|doctor|figures).md-python -m pipelines .*",
        r"test_command_of_the_docs\[transfer.md-python -m pipelines (average|evaluate|predict|probe|sweep) .*",
    ),
    "integration/test_export.py": (r".*\[(hf|npz)\]",),
    "integration/test_jobs.py": (
        r"test_pretraining_under_each_launcher\[accelerate\]",
        r"test_finetuning_with_zero3_and_another_pooling_equals_ddp",
        r"test_the_polyak_average_is_evaluated_saved_and_fine_tuned_from",
    ),
    "integration/test_pack_kill.py": (r".*\[2\]",),
    "integration/test_remote_job.py": (r".*",),
    "integration/test_sweep.py": (r"test_bad_sweeps_are_refused\[sweep[123]-.*\]",),
    "integration/test_telemetry.py": (r"test_an_unknown_peak_is_said_once_and_no_mfu_is_written",),
    "unit/data/test_remote.py": (
        r"test_what_was_damaged_on_the_node_is_fetched_again\[chunks-.*\]",
        r"test_what_the_network_does_changes_nothing\[http-.*\]",
        r"test_an_epoch_is_read_once\[4-2\]",
        r"test_a_store_that_stays_away_ends_the_run_and_is_named\[stall-.*\]",
    ),
    "unit/fuzz/test_run_folder.py": (r"test_(what_is_no_such_file|other_values)\[(?!metrics|checkpoints).*\]",),
    "unit/models/test_checkpointing.py": (
        r"test_no_policy_changes_a_bit\[.*-(bf16|autocast)-.*\]",
        r"test_no_policy_changes_a_bit\[.*-every_[23]\]",
        r"test_a_bias_that_is_added_in_place_is_not_added_twice\[every_[23]\]",
        r"test_a_run_compiles_three_graphs\[(full|none)-.*\]",
    ),
    "unit/models/test_cost.py": (
        r"test_activations_of_every_option\[changes(?!1-).*-(none|full)\]",
        r"test_activations_of_every_option\[changes2[45]-.*\]",
        r"test_activations_are_what_stays_alive\[.*-(fp32|autocast)-.*\]",
    ),
    "unit/pipelines/report/test_result.py": (r"test_the_page_asks_for_an_evaluation\[nowhere\]",),
    "unit/pipelines/verify/test_remote_shards.py": (r"test_.*\[(http|pipe)\]",),
    "unit/pipelines/verify/test_verify.py": (r"test_shards_in_the_order_of_classes_raise_a_warning",),
    "unit/sharding/test_commands_agree.py": (r"test_one_number_for_one_question\[(ZeRO-[01]|DDP).*-timm-.*\]",),
}


def is_second_case(file: str, name: str) -> bool:
    """Whether a test is one of ``SECOND_CASES``, by its file below tests/ and its name with parameters."""
    return any(re.fullmatch(pattern, name, re.DOTALL) for pattern in SECOND_CASES.get(file, ()))


def unmatched(file: str, names: Collection[str]) -> list[str]:
    """The expressions of a file that none of its tests' names matches."""
    return [
        each for each in SECOND_CASES.get(file, ()) if not any(re.fullmatch(each, name, re.DOTALL) for name in names)
    ]
