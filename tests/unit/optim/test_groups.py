"""Which tensors decay: kernels, by name, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.config.schema.optim.base import OptimConfig
from pretrain.config.schema.optim.elementwise import AdamWConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model
from pretrain.optim.groups import assign_rules, is_kernel, parameter_groups, set_lr
from pretrain.optim.optimizers import build_optimizer, ensure_state
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
    names = {name: parameter.ndim for name, parameter in model.named_parameters()}
    rules = assign_rules(names, config(weight_decay=0.3), frozen={"head.weight"})
    groups = parameter_groups(dict(model.named_parameters()), rules)
    together = [parameter for group in groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in together}) == len(together)
    assert {id(p) for p in together} == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [group["group_name"] for group in groups] == ["decay", "no_decay"]


NAMES = {"cls_token": 3, "blocks.0.mlp.fc1.weight": 2, "blocks.0.mlp.fc1.bias": 1, "head.weight": 2, "head.bias": 1}


def config(**settings: object) -> OptimConfig:
    return AdamWConfig.model_validate({"lr": 0.1} | settings)


def test_overrides_by_name_and_the_first_one_counts() -> None:
    """Scaling ViT: the head's kernel decays a hundred times as much; a pattern may also freeze or slow down."""
    overrides = (
        {"pattern": r"^head\.weight$", "weight_decay": 3.0},
        {"pattern": r"^head\.", "lr_scale": 10.0},
        {"pattern": "cls_token", "freeze": True},
    )
    rules = assign_rules(NAMES, config(weight_decay=0.03, overrides=overrides))
    found = {name: (rule.lr_scale, rule.weight_decay, rule.frozen) for name, rule in rules.items()}
    assert found == {
        "cls_token": (1.0, 0.0, True),
        "blocks.0.mlp.fc1.weight": (1.0, 0.03, False),
        "blocks.0.mlp.fc1.bias": (1.0, 0.0, False),
        "head.weight": (1.0, 3.0, False),
        "head.bias": (10.0, 0.0, False),
    }


def test_layer_decay_multiplies_with_an_overrides_scale_and_reaches_the_groups() -> None:
    layers = {
        "cls_token": 0,
        "blocks.0.mlp.fc1.weight": 1,
        "blocks.0.mlp.fc1.bias": 1,
        "head.weight": 2,
        "head.bias": 2,
    }
    settings = config(layer_decay=0.5, overrides=({"pattern": r"fc1\.bias", "lr_scale": 4.0},))
    rules = assign_rules(NAMES, settings, layers)
    assert [rule.lr_scale for rule in rules.values()] == [0.25, 0.5, 2.0, 1.0, 1.0]
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in NAMES}
    groups = parameter_groups(parameters, rules)
    set_lr(groups, 0.1)
    assert [group["lr"] for group in groups] == pytest.approx([0.05, 0.1, 0.025, 0.2, 0.1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (({"pattern": "heads", "freeze": True},), "'heads' is found in no parameter's name"),
        (({"pattern": "head", "freeze": True}, {"pattern": "^head", "lr_scale": 2.0}), "'^head' would be ignored"),
        (({"pattern": ".", "freeze": True},), "every parameter is frozen"),
    ],
)
def test_an_override_without_effect_is_refused(overrides: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("^", r"\^")):
        assign_rules(NAMES, config(overrides=overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"pattern": "("}, "is not a regular expression"),
        ({"pattern": "head"}, "changes nothing"),
        ({"pattern": "head", "freeze": True, "lr_scale": 2.0}, "would be ignored with freeze"),
    ],
)
def test_an_override_that_says_nothing_is_refused(override: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(overrides=(override,))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor", "lamb"])
def test_state_made_beforehand_changes_nothing(name: str) -> None:
    """Optimiser state created as zeros gives the same first steps as state that the optimiser creates itself."""
    config = experiment(optim={"name": name, "lr": 0.1}).optim

    def run(prepare: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = build_optimizer(layer, config)
        for _ in range(3):
            for parameter in layer.parameters():
                if prepare:
                    ensure_state(optimizer, parameter)
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        return layer.weight.detach()

    assert torch.equal(run(True), run(False))
