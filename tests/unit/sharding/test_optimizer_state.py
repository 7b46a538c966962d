"""Bytes of the optimiser's state against the storages of a real optimiser: every optimiser, several models."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from pretrain.config.schema.experiment import Experiment
from pretrain.models.families.registry import build_model
from pretrain.optim.exchange import Batch
from pretrain.optim.optimizers import STEP, build_optimizer, ensure_state
from pretrain.optim.owned import OwnedOptimizer
from pretrain.sharding.choice import sharding_of
from pretrain.sharding.step import step_of
from tests.distributed.training import experiment

NUM_CLASSES = 10
MODELS: dict[str, dict[str, Any]] = {
    "vit": {"variant": "S/16", "img_size": 64, "depth": 2, "pool": "map", "class_token": False},
    "relative": {"variant": "nano/8", "img_size": 32, "depth": 2, "pos_embed": "relative_bias"},
    "swin": {"name": "timm/swin_tiny_patch4_window7_224", "img_size": 224},
    "resnet": {"name": "timm/resnet18", "img_size": 64},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "adamw, bf16": {"name": "adamw", "momentum_dtype": "bf16"},
    "sgd": {"name": "sgd"},
    "lamb": {"name": "lamb"},
    "shampoo": {"name": "shampoo", "momentum": 0.9, "max_preconditioner_dim": 250},
    "soap": {"name": "soap", "max_preconditioner_dim": 250},
    "schedule_free": {"name": "schedule_free", "schedule": {"name": "constant"}},
    "adafactor": {"name": "adafactor"},
    "adafactor, bf16": {"name": "adafactor", "momentum_dtype": "bf16"},
    "adafactor, frozen": {
        "name": "adafactor",
        "overrides": [{"pattern": r"(attn\.qkv|conv2)\.weight", "freeze": True}],
    },
}


def settings(model: str, optimizer: str) -> Experiment:
    optim = OPTIMIZERS[optimizer] | {"lr": 1e-3}
    return experiment(optim=optim, data__num_classes=NUM_CLASSES, model=MODELS[model])


def live_bytes(config: Experiment) -> int:
    """Of all states but the step counters, which the host has."""
    with torch.device("meta"):
        model = build_model(config.model, NUM_CLASSES)
    optimizer = build_optimizer(model, config.optim)
    if isinstance(optimizer, OwnedOptimizer):  # this process owns every complete tensor
        optimizer.place([Batch.of_unsharded(dict(model.named_parameters()))], 0, torch.device("meta"))
    states = [ensure_state(optimizer, tensor) for group in optimizer.param_groups for tensor in group["params"]]
    states += optimizer.owned_states().values() if isinstance(optimizer, OwnedOptimizer) else []
    return sum(tensor.nbytes for state in states for name, tensor in state.items() if name != STEP)


LATER = {"shampoo", "soap"}  # one model for each; the rest is slow


def _case(model: str, optimizer: str) -> object:
    fast = optimizer not in LATER or model == "vit"
    return pytest.param(model, optimizer, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("model", "optimizer"), [_case(*both) for both in product(MODELS, OPTIMIZERS)])
def test_the_state_is_that_of_the_live_optimizer(model: str, optimizer: str) -> None:
    config = settings(model, optimizer)
    assert sharding_of(config).memory(step_of(config, 1, 2)).optimizer == live_bytes(config)
