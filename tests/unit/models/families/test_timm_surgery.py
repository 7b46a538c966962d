"""Weights files of timm's backbones, and what each architecture allows when they are loaded into another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_patch_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.families import registry
from pretrain.models.families.registry import adapt_state_dict
from pretrain.models.interop import load_weights, save_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.surgery import resize_pos_embed
from tests.unit.models.families.test_timm import CLASSES, FAMILIES, config, images

HALF = (0.5, 0.5, 0.5)
Weights = tuple[dict[str, torch.Tensor], WeightsMetadata]


def weights(model: ModelConfig, seed: int = 1) -> tuple[nn.Module, Weights]:
    """A backbone with its state and metadata, every tensor away from its initial value."""
    net = registry.build_model(model, CLASSES)
    registry.init_weights(net, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.05, generator=generator))
    return net, (net.state_dict(), WeightsMetadata.of(model, CLASSES, HALF, HALF))


def go_on(
    given: Weights, model: ModelConfig, num_classes: int = CLASSES, head: Any = "keep", filter: Any = "bicubic_aa"
) -> tuple[nn.Module, Any]:
    """The weights in another model, and the report."""
    net = registry.build_model(model, num_classes)
    state, report = adapt_state_dict(*given, net, head=head, filter=filter, seed=4)
    net.load_state_dict(state, strict=True)
    return net, report


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weights_file_says_all_that_is_needed(family: str, tmp_path: Path) -> None:
    model = config(family)
    net, (state, about) = weights(model)
    save_weights(tmp_path / "w.safetensors", state, about)
    loaded, read = load_weights(tmp_path / "w.safetensors")
    assert read == about and read.model == model and read.img_size == (32, 32) and read.grid is None
    again, report = go_on((loaded, read), read.model)
    assert torch.equal(again.eval()(images(model)), net.eval()(images(model)))
    assert len(report.loaded) == len(state) and not report.new and not report.dropped


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_replaced(family: str) -> None:
    model = config(family)
    net, given = weights(model)
    tuned, report = go_on(given, model, num_classes=3, head="replace")
    heads = 4 if family == "distilled" else 2
    assert len(report.new) == len(report.dropped) == heads
    assert (tuned(images(model)) == 0).all() and tuned(images(model)).shape == (2, 3)
    state, before = tuned.state_dict(), net.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in report.loaded)


@pytest.mark.parametrize("family", ["pvt_v2", "bit"])
def test_convolutions_go_on_at_any_size(family: str) -> None:
    net, given = weights(config(family))
    larger = config(family, img_size=64)
    tuned, report = go_on(given, larger)
    assert not report.resized
    assert torch.equal(tuned.eval()(images(larger)), net.eval()(images(larger)))


def test_swin_goes_on_at_another_size_with_the_same_windows() -> None:
    _, given = weights(config("swin"))
    larger = config("swin", img_size=64)
    tuned, report = go_on(given, larger)
    assert not report.resized and tuned(images(larger)).shape == (2, CLASSES)


def test_swin_goes_on_with_larger_windows_as_its_own_code_does_it() -> None:
    net, given = weights(config("swin"))
    larger = config("swin", img_size=64, kwargs={**FAMILIES["swin"]["kwargs"], "window_size": 8})
    tuned, report = go_on(given, larger, filter="bicubic")
    tables = [f"layers.{i}.blocks.0.attn.relative_position_bias_table" for i in range(2)]
    assert report.resized == dict.fromkeys(tables, ((4, 4), (8, 8)))
    for name in tables:
        before, after = net.state_dict()[name], tuned.state_dict()[name]
        torch.testing.assert_close(after, resize_rel_pos_bias_table_simple(before, (8, 8), tuple(after.shape)))


@pytest.mark.parametrize("family", ["deit", "distilled"])
def test_the_position_embedding_follows_the_grid(family: str) -> None:
    net, given = weights(config(family))
    tuned, report = go_on(given, config(family, img_size=64))
    assert report.resized == {"pos_embed": ((2, 2), (4, 4))}
    prefix = 2 if family == "distilled" else 1
    expected = resize_pos_embed(net.state_dict()["pos_embed"], (2, 2), (4, 4), prefix, "bicubic_aa")
    assert torch.equal(tuned.state_dict()["pos_embed"], expected)


def test_another_patch_size_is_timms_resampling() -> None:
    net, given = weights(config("deit"))
    smaller = config("deit", kwargs={**FAMILIES["deit"]["kwargs"], "patch_size": 8})
    tuned, report = go_on(given, smaller)
    assert report.resampled == {"patch_embed.proj.weight": ((16, 16), (8, 8))}
    assert report.resized == {"pos_embed": ((2, 2), (4, 4))}
    expected = resample_patch_embed(net.state_dict()["patch_embed.proj.weight"], [8, 8])
    torch.testing.assert_close(tuned.state_dict()["patch_embed.proj.weight"], expected, rtol=1e-4, atol=1e-6)


SMALLER_SWIN = {**FAMILIES["swin"]["kwargs"], "depths": [1]}
REFUSED: dict[str, tuple[ModelConfig, ModelConfig, str]] = {
    "another family": (config("swin"), config("pvt_v2"), r"weights are of timm/swin.*set model\.name: timm/swin"),
    "ours": (config("deit"), ModelConfig(variant="mu/2", img_size=8), "weights are of model.name: timm/deit_tiny"),
    "to timm": (ModelConfig(variant="mu/2", img_size=8), config("deit"), "weights are of model.name: vit"),
    "heads": (
        config("swin"),
        config("swin", kwargs={**FAMILIES["swin"]["kwargs"], "num_heads": [1, 4]}),
        r"has num_heads 2 in the weights, 4 in the model, which no tensor shows",
    ),
    "width": (
        config("swin"),
        config("swin", kwargs={**FAMILIES["swin"]["kwargs"], "embed_dim": 32}),
        r"tensor patch_embed\.proj\.weight is \(16, 3, 2, 2\) in the weights, \(32, 3, 2, 2\)",
    ),
    "depth": (
        config("deit"),
        config("deit", kwargs={"depth": 3, "embed_dim": 48}),
        r"tensor blocks\.2\.\S+ of the model is not in the weights",
    ),
    "a size that it cannot have": (
        ModelConfig(name="timm/mixer_s32_224", img_size=64),
        ModelConfig(name="timm/mixer_s32_224", img_size=96),
        r"tensor blocks\.0\.\S+ is .* this architecture cannot change its resolution",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_words(case: str) -> None:
    source, model, message = REFUSED[case]
    _, given = weights(source)
    with pytest.raises(CheckpointError, match=message):
        go_on(given, model)


def test_a_head_of_other_classes_is_refused_with_the_remedy() -> None:
    _, given = weights(config("pvt_v2"))
    with pytest.raises(CheckpointError, match=r"tensor head\.weight is \(5, 32\) .* set init\.head: replace"):
        go_on(given, config("pvt_v2"), num_classes=3)


def test_swin_v2_goes_on_with_larger_windows() -> None:
    """Its position biases come from a small network of the offsets, so no tensor depends on the window."""
    kwargs = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 2}
    small = ModelConfig(name="timm/swinv2_tiny_window8_256", img_size=32, kwargs=kwargs)
    large = ModelConfig(name="timm/swinv2_tiny_window8_256", img_size=64, kwargs={**kwargs, "window_size": 8})
    _, given = weights(small)
    tuned, report = go_on(given, large)
    assert not report.resized and tuned(images(large)).shape == (2, CLASSES)
