"""The family hf/NAME: settings, initial weights, layers, drop path, checkpointing, another resolution, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.exchange.huggingface import read_huggingface, write_huggingface
from pretrain.models.families.hf_backbone import _BRANCHES, _PRE_NORM, BODY
from pretrain.models.families.registry import (
    adapt_state_dict,
    build_frozen,
    build_model,
    family_of,
    init_weights,
    num_parameters,
    patch_features,
)
from pretrain.models.metadata import WeightsMetadata
from pretrain.optim.groups import is_kernel
from tests.golden.exchange import SQUASH, filled
from tests.sweeps.huggingface import outputs_of, save

SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8}
MEAN = (0.5, 0.5, 0.5)


def config(name: str = "CLIPVisionModel", size: Any = 32, kwargs: dict[str, Any] = SIZES, **more: Any) -> ModelConfig:
    return ModelConfig(name=f"hf/{name}", img_size=size, kwargs=kwargs, head_init="normal", **more)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (config("CLIPVisionModl"), r"no class 'CLIPVisionModl'; did you mean hf/CLIPVisionModel"),
        (config("BertModel", kwargs={}), "hf/BertModel takes input_ids, not images"),
        (
            config(kwargs={**SIZES, "num_layers": 2}),
            r"kwargs\.num_layers: no setting of .*; did you mean num_\w*layers",
        ),
        (config(kwargs={**SIZES, "hidden_size": 15}), r"transformers cannot build hf/CLIPVisionModel .*hidden_size"),
        (config(size=(32, 48)), "cannot"),
        (config(dropout=0.1), r"model\.dropout: hf/CLIPVisionModel has none"),
        (
            config("CLIPForImageClassification", kwargs={"vision_config": {"image_size": 8}}),
            r"kwargs\.vision_config\.image_size is set by the engine",
        ),
    ],
)
def test_bad_settings_are_named(model: ModelConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_model(model, 3)


def test_without_transformers_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    save("CLIP", tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name))
    with pytest.raises(ConfigError, match=r"needs transformers: pip install 'vit-pretrain\[hf\]'"):
        build_model(config(), 3)
    with pytest.raises(CheckpointError, match=r"CLIPVisionModel is read by .* pip install 'vit-pretrain\[hf\]'"):
        read_huggingface(tmp_path)


def test_initial_weights_follow_the_seed() -> None:
    nets = [build_model(config(), 3) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        init_weights(net, seed)
    first, second, third = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], third[name])} >= {
        "head.weight",
        "body.embeddings.position_embedding.weight",
        "body.encoder.layers.2.mlp.fc1.weight",
    }


def test_a_trial_without_values_leaves_nothing_behind() -> None:
    """BEiT keeps one index of offsets per window in the process; built on the meta device, it made other outputs."""
    from transformers.models.beit.modeling_beit import BeitRelativePositionBias

    kwargs = {**SIZES, "use_relative_position_bias": True}
    with torch.device("meta"):
        build_model(config("BeitModel", (24, 40), kwargs), 3)
    assert BeitRelativePositionBias.generate_relative_position_index((3, 5)).device.type == "cpu"


def test_layers_and_decay_follow_blocks_and_names() -> None:
    net: Any = build_model(config(), 3)
    ids = net.layer_ids()
    assert ids["body.embeddings.class_embedding"] == ids["body.pre_layrnorm.weight"] == 0
    assert [ids[f"body.encoder.layers.{block}.mlp.fc1.weight"] for block in range(3)] == [1, 2, 3]
    assert (ids["body.post_layernorm.weight"], ids["head.weight"]) == (3, 4)
    assert not is_kernel("body.embeddings.position_embedding.weight", 2)
    assert not is_kernel("body.x.continuous_position_bias_mlp.0.weight", 2)
    assert is_kernel("body.embeddings.patch_embedding.weight", 4)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_is_built_also_where_no_gradients_are_computed(context: Any) -> None:
    with context():
        net = build_model(config(size=48), 3)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_tensor_that_does_not_reach_the_logits_is_kept_and_not_trained() -> None:
    net = build_model(config("Dinov2Model", kwargs={k: v for k, v in SIZES.items() if k != "intermediate_size"}), 3)
    assert [name for name, each in net.named_parameters() if not each.requires_grad] == ["body.embeddings.mask_token"]


@pytest.mark.parametrize("name", ["ViTModel", "CLIPVisionModel", "SiglipVisionModel", "DeiTModel"])
def test_drop_path_acts_on_the_branches_of_each_block(name: str) -> None:
    """Without its two branches a block must be the identity; so dropping both skips the block, as timm's does."""
    net: Any = build_model(config(name, drop_path=0.5), 3).train()
    for block in net.blocks():
        assert type(block).__name__ in _PRE_NORM
    block, tokens = net.blocks()[-1], torch.randn(64, 5, 16)
    torch.manual_seed(0)
    with torch.no_grad():
        call = (tokens, None) if "ViT" not in name and "DeiT" not in name else (tokens,)
        out = block(*call)
    out = out[0] if isinstance(out, tuple) else out
    skipped = (out == tokens).flatten(1).all(1).double().mean()
    assert 0.1 < skipped < 0.45, "both branches are dropped with probability 1/4"
    assert sum(child in _BRANCHES for child, _ in block.named_children()) == 2


def test_checkpointing_recomputes_and_changes_nothing() -> None:
    net: Any = filled(build_model(config(drop_path=0.2), 3)).train()
    images, gradients = torch.randn(2, 3, 32, 32), []
    for policy in ("none", "full", "every_2"):
        net.set_grad_checkpointing(policy)
        assert (
            sum(block.gradient_checkpointing for block in net.blocks()) == {"none": 0, "full": 3, "every_2": 1}[policy]
        )
        torch.manual_seed(3)
        gradients.append(torch.autograd.grad(net(images).square().sum(), net.body.pre_layrnorm.weight)[0])
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(("name", "size"), [("CLIP", 48), ("DINOv3", 48), ("Swin", 64), ("BEiT", 48)])
def test_another_resolution_is_transformers_interpolation(name: str, size: int, tmp_path: Path) -> None:
    net = save(name, tmp_path)
    state, metadata = read_huggingface(tmp_path)
    larger = build_model(metadata.model.model_copy(update={"img_size": size}), 5)
    adapted, report = adapt_state_dict(state, metadata, larger, head="replace", filter="bicubic", seed=0)
    larger.load_state_dict(adapted)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    more = {} if name in ("DINOv3", "Swin") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        if name == "BEiT":  # transformers interpolates its biases bilinearly; the filter here is the run's
            assert all(name.endswith("relative_position_bias_table") for name in report.resized)
            assert set(report.resized.values()) == {((4, 4), (6, 6))} and len(report.resized) == 2
            return
        out = net(images, **more)
        body: Any = larger.eval()
        if hasattr(out, "pooler_output"):
            torch.testing.assert_close(body.forward_features(images), out.pooler_output, rtol=1e-5, atol=1e-5)
        else:
            head = net.classifier
            logits = nn.functional.linear(body.forward_features(images), head.weight, head.bias)
            torch.testing.assert_close(logits, out.logits, rtol=1e-5, atol=1e-5)
    assert bool(report.resized) == (name == "CLIP")


@pytest.mark.parametrize("name", ["BEiT", "CLIP", "Swin"])
def test_an_export_is_what_transformers_loads(name: str, tmp_path: Path) -> None:
    save(name, tmp_path / "theirs")
    state, metadata = read_huggingface(tmp_path / "theirs")
    metadata = metadata.model_copy(update={"eval_transform": SQUASH})
    (tmp_path / "ours").mkdir()
    write_huggingface(tmp_path / "ours", state, metadata)
    kind: Any = getattr(transformers, metadata.model.name.removeprefix("hf/"))
    twin, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(outputs_of(name, twin.eval(), images), outputs_of(name, save(name, tmp_path), images))
    again, described = read_huggingface(tmp_path / "ours")
    assert described == metadata and all(torch.equal(again[key], state[key]) for key in state)


def test_a_tower_with_a_head_is_not_written(tmp_path: Path) -> None:
    net = filled(build_frozen(config(), 3))
    metadata = WeightsMetadata.of(net.config, 3, MEAN, MEAN, eval_transform=SQUASH)
    with pytest.raises(CheckpointError, match=r"CLIPVisionModel is an image tower .* --drop-head"):
        write_huggingface(tmp_path, net.state_dict(), metadata)
    assert not list(tmp_path.iterdir())


def test_a_tower_without_its_pooler_is_not_written(tmp_path: Path) -> None:
    """Read back by from_pretrained it would have a pooler of random weights."""
    save("ViT, no bias, no pooler", tmp_path / "theirs")
    state, metadata = read_huggingface(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    metadata = metadata.model_copy(update={"eval_transform": SQUASH})
    with pytest.raises(CheckpointError, match=r"model\.kwargs\.add_pooling_layer is an argument of ViTModel"):
        write_huggingface(tmp_path / "ours", state, metadata)
    assert not list((tmp_path / "ours").iterdir())


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    save("CLIP", tmp_path)
    state, metadata = read_huggingface(tmp_path)
    changed = metadata.model.model_copy(update={"kwargs": {**metadata.model.kwargs, "num_attention_heads": 4}})
    with pytest.raises(CheckpointError, match=r"the weights have model\.kwargs: .* the model has"):
        adapt_state_dict(state, metadata, build_model(changed, 3), head="replace", filter="bicubic", seed=0)
    assert all(name.startswith(BODY) for name in state)


@pytest.mark.parametrize(("name", "prefix"), [("DINOv3", 3), ("CLIP", 1), ("Swin", 0)])
def test_patch_features_are_the_normed_tokens_in_their_places(name: str, prefix: int, tmp_path: Path) -> None:
    net = save(name, tmp_path)
    state, metadata = read_huggingface(tmp_path)
    ours: Any = build_frozen(metadata.model, 5)
    ours.load_state_dict(state, strict=False)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = getattr(net, "swin", net)(images).last_hidden_state
        tokens = net.post_layernorm(tokens) if name == "CLIP" else tokens
        found = patch_features(ours, images)
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens[:, prefix:]) and found.shape[2:] == (4, 4)


def test_costs_are_those_of_the_same_network_of_ours() -> None:
    theirs = config("ViTForImageClassification")
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_dim": 24}
    ours = ModelConfig(variant="nano/8", img_size=32, **sizes)  # type: ignore[arg-type]
    assert num_parameters(theirs, 1000) == num_parameters(ours, 1000)
    for with_head in (True, False):
        macs = [family_of(model).forward_macs(model, 1000, with_head=with_head) for model in (theirs, ours)]
        assert macs[0] == pytest.approx(macs[1], rel=1e-6)
    model = config()
    kept = [family_of(model).footprint(model, 3, precision="fp32", checkpointing=p).kept for p in ("none", "full")]
    assert kept[0] > 1.5 * kept[1] > 0
    assert family_of(model).recomputed_macs(model, "every_2") == family_of(model).forward_macs(model, 1) // 2
