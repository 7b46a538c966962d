"""Keys of DeepSpeed that it would ignore, or end with a traceback for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pretrain.check.deepspeed_keys import TOP, ZERO, kinds_of, problems_in
from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError

# Not offered: they are deprecated, need what is not used here, or leave out the norm that every step reports.
LEFT_OUT = {"cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "compute_grad_norm", "zenflow"}
LEFT_OUT |= {"stage3_gather_fp16_weights_on_model_save", "save_muon_momentum_buffer_in_memory"}


def test_the_keys_are_those_of_the_installed_version() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    real = {field.alias or name: field.annotation for name, field in DeepSpeedZeroConfig.model_fields.items()}
    kinds = kinds_of(ZERO)
    assert kinds.keys() == real.keys() - LEFT_OUT
    flags = {name for name, annotation in real.items() if annotation in (bool, bool | None)} - LEFT_OUT
    assert {name for name, kind in kinds.items() if kind == "true or false"} == flags


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"zero_optimisation": {}}, "cluster.deepspeed.zero_optimisation: not a key .* did you mean zero_optimization"),
        ({"zero_optimization": {"overlap_com": True}}, r"zero_optimization.overlap_com: .* did you mean overlap_comm"),
        ({"zero_optimization": {"overlap_comm": "yes"}}, r"overlap_comm: 'yes' is not true or false"),
        ({"zero_optimization": {"reduce_bucket_size": "5e8 "}}, r"reduce_bucket_size: '5e8 ' is not a number"),
        ({"zero_optimization": 3}, "zero_optimization: 3 is not a section"),
        ({"communication_data_type": "float"}, "'float' is not fp32, bf16 or fp16"),
        ({"zero_optimization": {"stage3_max_live_params": 1}}, "did you mean stage3_max_live_parameters"),
    ],
)
def test_a_wrong_key_or_value_is_named(settings: dict[str, Any], said: str) -> None:
    (problem,) = problems_in(settings)
    assert re.search(said, problem), problem


def test_right_ones_pass() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 5e7, "overlap_comm": True}
    assert not problems_in({"zero_optimization": offload, "communication_data_type": "fp32"})
    assert "zero_optimization" in kinds_of(TOP)


def test_the_check_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("zero_stage: 1\ndeepspeed:\n  zero_optimization:\n    overlap_com: true\n")
    resolved = load_experiment("configs/pretrain/vit_b16_i1k.yaml", cluster=path)
    with pytest.raises(ConfigError, match=r"cluster\.yaml:4: cluster\.deepspeed\.zero_optimization\.overlap_com: not"):
        check(resolved)
