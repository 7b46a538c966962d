"""Which tensors decay: kernels, by name, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.models.zoo import build_model
from pretrain.optim.groups import is_kernel, parameter_groups
from pretrain.optim.optimizers import OPTIMIZERS, build_optimizer, ensure_state
from tests.distributed.training import experiment

DECAYS = {"patch_embed.proj.weight", "pre_logits.fc.weight", "head.weight"}
DECAYS |= {f"blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}


def test_kernels_of_a_vit() -> None:
    model = build_model(experiment(model__depth=1).model, 5)
    names = [name for name, _ in model.named_parameters()]
    assert {name for name in names if is_kernel(name)} == DECAYS
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.norm1.weight", "head.bias"} <= set(names) - DECAYS


def test_groups_cover_every_trainable_parameter_once() -> None:
    model = build_model(experiment().model, 5)
    model.get_parameter("head.weight").requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), 0.3)
    together = [parameter for group in groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in together}) == len(together)
    assert {id(p) for p in together} == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_state_made_beforehand_changes_nothing(name: str) -> None:
    """Optimiser state created as zeros gives the same first steps as state that torch creates itself."""
    config = experiment(optim={"name": name, "lr": 0.1}).optim

    def run(prepare: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = build_optimizer(layer, config)
        for _ in range(3):
            for parameter in layer.parameters():
                if prepare:
                    ensure_state(optimizer, OPTIMIZERS[name], parameter)
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(run(True), run(False))
