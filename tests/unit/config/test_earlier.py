"""Settings that the version of 2026-11-30, before the key ``rope``, wrote into run folders and weights files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pretrain.config.loader import load_experiment, load_saved
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.metadata import WeightsMetadata

DIGITS = "configs/pretrain/demo_digits.yaml"
# model_dump_json() of ModelConfig(variant="mu/8", img_size=32), and with pos_embed="rope_2d", rope_temperature=100.
PLAIN = (
    '{"name":"vit","kwargs":{},"variant":"mu/8","img_size":32,"embed_dim":null,"depth":null,"num_heads":null,'
    '"mlp_dim":null,"class_token":true,"distilled":false,"mask_token":false,"num_registers":0,"layer_scale":null,'
    '"qk_norm":false,"pool":"token","pos_embed":"learned_1d","pos_embed_placement":null,"pos_embed_prefix":true,'
    '"rope_temperature":10000.0,"rope_grid":null,"head":"pooled","representation_size":null,"head_bias":0.0,'
    '"head_init":"zero","dropout":0.0,"drop_path":0.0,"drop_path_shape":"linear","gelu":"erf","layer_norm_eps":1e-6}'
)
ROTARY = PLAIN.replace("learned_1d", "rope_2d").replace("10000.0", "100.0")
TODAY = {
    PLAIN: ModelConfig(variant="mu/8", img_size=32),
    ROTARY: ModelConfig(variant="mu/8", img_size=32, pos_embed="none", rope="axial", rope_temperature=100.0),
}


@pytest.mark.parametrize("written", TODAY, ids=["learned", "rotary"])
def test_a_run_folder_of_an_earlier_version_can_be_read(tmp_path: Path, written: str) -> None:
    settings = yaml.safe_load(load_experiment(DIGITS).to_yaml()) | {"model": json.loads(written)}
    (tmp_path / "config.resolved.yaml").write_text(yaml.safe_dump(settings))
    assert load_saved(tmp_path / "config.resolved.yaml").experiment.model == TODAY[written]
    with pytest.raises(ConfigError, match="rope"):  # whoever writes it today has a mistake in the file
        load_experiment(tmp_path / "config.resolved.yaml")


@pytest.mark.parametrize("written", TODAY, ids=["learned", "rotary"])
def test_weights_of_an_earlier_version_can_be_read(written: str) -> None:
    model = TODAY[written]
    about = json.loads(WeightsMetadata.of(model, 5, None, None).model_dump_json()) | {"model": json.loads(written)}
    assert WeightsMetadata.model_validate_json(json.dumps(about)).model == model
