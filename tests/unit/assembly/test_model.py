"""Refusals before a model is built, and the record of its first weights."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from pretrain.assembly.model import check_host_memory, record_initial_weights
from pretrain.engine.run_folder import RunFolder
from pretrain.errors import ConfigError, SetupError
from pretrain.models.families.registry import build_model
from pretrain.models.init import init_weights
from tests.distributed.training import experiment


def test_a_model_beyond_the_whole_model_route_is_refused() -> None:
    check_host_memory(experiment(), local_world=8)
    with pytest.raises(ConfigError, match=r"billion parameters; every rank builds the complete model"):
        check_host_memory(experiment(model__embed_dim=16_384, model__num_heads=64), local_world=1)


def test_more_ranks_than_the_host_has_memory_for_are_refused() -> None:
    per_rank = 4 * sum(parameter.numel() for parameter in build_model(experiment().model, 5).parameters())
    too_many = psutil.virtual_memory().total // per_rank + 1
    with pytest.raises(SetupError, match="GiB of host memory on this node"):
        check_host_memory(experiment(), local_world=too_many)


def test_initial_weights_are_recorded_tensor_by_tensor(tmp_path: Path) -> None:
    said: list[str] = []
    records = []
    for seed in (0, 0, 1):
        model = build_model(experiment().model, 5)
        init_weights(model, seed)
        record_initial_weights(model, RunFolder(tmp_path), said.append)
        records.append(json.loads((tmp_path / "initial_weights.json").read_text()))
    assert records[0] == records[1] and set(records[0]) == set(model.state_dict())
    assert records[2]["blocks.0.attn.qkv.weight"] != records[0]["blocks.0.attn.qkv.weight"]
    assert said[0] == said[1] != said[2]
