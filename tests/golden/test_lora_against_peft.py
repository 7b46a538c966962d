"""Adapters against peft's with the same matrices: logits, gradients and merged weights, in both families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.config.schema.lora import LoraConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model
from pretrain.models.layers.lora import add_adapters, merged

CONFIG = LoraConfig(rank=4, alpha=6.0)
EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
FAMILIES = {
    "vit": ModelConfig(variant="mu/4", img_size=8, embed_dim=16, depth=2, num_heads=2, mlp_dim=32),
    "timm": ModelConfig(
        name="timm/vit_tiny_patch16_224",
        img_size=8,
        kwargs={"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    ),
}


@pytest.fixture(scope="module")
def trace() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "traces" / "peft_lora.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def part(trace: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): value for name, value in trace.items() if name.startswith(f"{kind}/")}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_gradients_and_merged_weights(trace: dict[str, Tensor], family: str) -> None:
    net = build_model(FAMILIES[family], 5)
    net.load_state_dict(part(trace, "base"))
    adapters = add_adapters(net, CONFIG, seed=0)
    adapter_tensors = part(trace, "adapter")
    assert {name for name in adapters.shapes if ".lora_" in name} == set(adapter_tensors)
    net.load_state_dict(part(trace, "base") | adapter_tensors)
    logits = net.eval()(trace["images"])
    torch.testing.assert_close(logits, trace["logits"], **EXACT)
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, part(trace, "gradient"), **EXACT)
    plain = merged(net.state_dict(), CONFIG)
    torch.testing.assert_close(plain, part(trace, "merged"), **EXACT)
    again = build_model(FAMILIES[family], 5).eval()
    again.load_state_dict(plain)
    torch.testing.assert_close(again(trace["images"]), trace["logits"], **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_starts_from_the_network_as_it_is(trace: dict[str, Tensor], family: str) -> None:
    net = build_model(FAMILIES[family], 5).eval()
    net.load_state_dict(part(trace, "base"))
    before = net(trace["images"])
    adapters = add_adapters(net, CONFIG, seed=0)
    assert torch.equal(net(trace["images"]), before)
    assert dict(net.named_parameters()).keys() == adapters.shapes.keys()
    assert [tuple(p.shape) for p in net.parameters()] == list(adapters.shapes.values())
    first = net.get_parameter("blocks.0.attn.qkv.lora_A.weight").detach()
    assert 0.2 < first.abs().max() <= 0.25, "uniform within the root of 1 / 16"


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (FAMILIES["vit"], {"targets": ("qvk",)}, "no dense layer of the name qvk; it has qkv, proj, fc1, fc2"),
        (FAMILIES["vit"], {"targets": ("head",)}, "no dense layer of the name head"),
        (FAMILIES["vit"], {"train": ("nrom",)}, "'nrom' would be ignored"),
        (FAMILIES["vit"], {"train": ("lora_A",)}, "'lora_A' would be ignored"),
        (
            ModelConfig(
                name="timm/beit_base_patch16_224",
                img_size=32,
                kwargs={"embed_dim": 16, "depth": 1, "num_heads": 2, "qkv_bias": True},
            ),
            {},
            r"reads the weight of blocks.0.attn.qkv without calling the layer, .* leave qkv out",
        ),
    ],
)
def test_adapters_without_effect_are_refused(model: ModelConfig, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        add_adapters(build_model(model, 5), LoraConfig(**settings), seed=0)


def test_dropout_of_adapters_is_the_same_when_a_block_is_computed_again(trace: dict[str, Tensor]) -> None:
    """The generator's state is kept with a checkpointed block, or the gradients would be of other masks."""
    gradients = []
    for policy in ("none", "full"):
        net: Any = build_model(FAMILIES["vit"], 5)
        net.load_state_dict(part(trace, "base"))
        add_adapters(net, LoraConfig(rank=4, dropout=0.5), seed=0)
        net.load_state_dict(part(trace, "base") | part(trace, "adapter"))
        net.set_grad_checkpointing(policy)
        torch.manual_seed(7)
        net.train()(trace["images"]).sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
