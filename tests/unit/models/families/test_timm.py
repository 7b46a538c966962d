"""timm's classifiers as backbones: built from the seed, refused in words, and what decays in them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families import registry
from pretrain.models.init import digest
from pretrain.optim.groups import is_kernel

CLASSES = 5
FAMILIES: dict[str, dict[str, Any]] = {
    "swin": {
        "name": "timm/swin_tiny_patch4_window7_224",
        "img_size": 32,
        "kwargs": {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 2},
    },
    "pvt_v2": {
        "name": "timm/pvt_v2_b0",
        "img_size": 32,
        "kwargs": {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32], "num_heads": [1, 1, 2, 4]},
    },
    "bit": {"name": "timm/resnetv2_50x1_bit", "img_size": 32, "kwargs": {"channels": [128] * 4, "stem_chs": 32}},
    "deit": {"name": "timm/deit_tiny_patch16_224", "img_size": 32, "kwargs": {"depth": 2, "embed_dim": 48}},
    "distilled": {
        "name": "timm/deit_tiny_distilled_patch16_224",
        "img_size": 32,
        "kwargs": {"depth": 2, "embed_dim": 48},
    },
}


def config(family: str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{**FAMILIES[family], **changes})


def images(model: ModelConfig, num_images: int = 2) -> Tensor:
    assert isinstance(model.img_size, int)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_images, 3, model.img_size, model.img_size, generator=generator)


def plain_timm(model: ModelConfig) -> Any:
    """The same model made by timm itself, without any of our code."""
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in model.kwargs.items()}
    if "swin" in model.name or "deit" in model.name:
        settings["img_size"] = model.img_size
    return timm.create_model(model.name.removeprefix("timm/"), num_classes=CLASSES, drop_path_rate=0.0, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_computes_what_timm_computes(family: str) -> None:
    model = config(family, head_init="normal")
    net: Any = registry.build_model(model, CLASSES)
    registry.init_weights(net, 1)
    twin = plain_timm(model)
    twin.load_state_dict(net.state_dict(), strict=True)
    logits = net.eval()(images(model))
    torch.testing.assert_close(logits, twin.eval()(images(model)), rtol=1e-5, atol=1e-6)
    assert logits.shape == (2, CLASSES) and logits.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_a_function_of_the_seed(family: str) -> None:
    first, again, other = (registry.build_model(config(family), CLASSES) for _ in range(3))
    before = torch.random.get_rng_state()
    registry.init_weights(first, 7)
    assert torch.equal(torch.random.get_rng_state(), before), "the process's own generator is left alone"
    torch.rand(5)
    registry.init_weights(again, 7)
    registry.init_weights(other, 8)
    assert digest(first) == digest(again) != digest(other)
    assert any(tensor.any() for name, tensor in first.state_dict().items() if name.endswith("weight"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_starts_as_configured(family: str) -> None:
    from pretrain.models.families.timm_backbone import classifiers, head_tensors

    net: Any = registry.build_model(config(family, head_bias=-10.0), CLASSES)
    registry.init_weights(net, 0)
    assert (net(images(net.config)) == -10.0).all(), "zero weights and this bias"
    assert len(head_tensors(net)) == 2 * len(classifiers(net)) == (4 if family == "distilled" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_fp32_with_bf16_weights(family: str) -> None:
    model = config(family, head_init="normal")
    net: Any = registry.build_model(model, CLASSES).eval()
    registry.init_weights(net, 1)
    exact = net(images(model))
    logits = net.bfloat16()(images(model))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, rtol=0.1, atol=0.1)
    assert not torch.equal(logits, logits.bfloat16().float()), "the head itself computes in fp32"


def test_both_heads_of_a_distilled_model() -> None:
    model = config("distilled", head_init="normal")
    net: Any = registry.build_model(model, CLASSES)
    twin = plain_timm(model)
    twin.load_state_dict(net.state_dict())
    twin.set_distilled_training(True)
    separate = net(images(model), separate_heads=True)
    torch.testing.assert_close(separate, torch.stack(twin.train()(images(model)), 1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(net(images(model)), separate.mean(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_gradient(family: str) -> None:
    net: Any = registry.build_model(config(family, head_init="normal"), CLASSES)
    gradients = []
    for enable in (False, True):
        net.set_grad_checkpointing(enable)
        net.zero_grad()
        net(images(net.config)).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


def test_where_timm_has_no_checkpointing_it_is_refused() -> None:
    with torch.device("meta"):
        net: Any = registry.build_model(ModelConfig(name="timm/pit_ti_224"), CLASSES)
    net.set_grad_checkpointing(False)
    with pytest.raises(
        ConfigError, match=r"activation_checkpointing: timm/pit_ti_224 has none in timm; set it to none"
    ):
        net.set_grad_checkpointing(True)


def test_layer_decay_without_timms_groups_is_refused() -> None:
    model = ModelConfig(name="timm/poolformer_s12", img_size=32)
    with pytest.raises(ConfigError, match=r"optim: timm knows no layers of timm/poolformer_s12"):
        registry.family_of(model).layer_ids(model, CLASSES)


def test_drop_path_and_dropout_draw_from_the_generator_that_the_engine_seeds() -> None:
    model = config("swin", drop_path=0.5, head_init="normal")
    net: Any = registry.build_model(model, CLASSES)
    assert registry.uses_generator(net) and not registry.uses_generator(registry.build_model(config("swin"), CLASSES))
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(net.train()(images(model, 8)))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert registry.uses_generator(registry.build_model(config("pvt_v2", dropout=0.1), CLASSES))
    vit = ModelConfig(variant="mu/2", img_size=8, dropout=0.1)
    assert registry.uses_generator(registry.build_model(vit, CLASSES))
    assert not registry.uses_generator(registry.build_model(vit.model_copy(update={"dropout": 0.0}), CLASSES))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"name": "timm/pvt_v2_b9"}, r"timm has no 'pvt_v2_b9'; did you mean timm/pvt_v2_b\d"),
    "pretrained tag": ({"name": "timm/pvt_v2_b0.in1k"}, r"write timm/pvt_v2_b0 and name weights in init\.from"),
    "hub": ({"name": "timm/hf-hub:timm/pvt_v2_b0"}, r"write timm/pvt_v2_b0 and name weights in init\.from"),
    "unknown kwarg": ({"name": "timm/pvt_v2_b0", "kwargs": {"windows": 3}}, r"model\.kwargs\.windows: timm/pvt_v2_b0"),
    "wrong kwarg": (
        {"name": "timm/pvt_v2_b0", "kwargs": {"embed_dims": [7] * 4, "num_heads": [2] * 4}},
        "cannot build",
    ),
    "too small": ({"name": "timm/pvt_v2_b0", "img_size": 8}, r"model\.img_size: .* cannot take images of 8×8 pixels"),
    "no drop path": ({"name": "timm/hrnet_w18_small", "drop_path": 0.1}, "model.drop_path: .* has none in timm"),
    "no pooling": (config("swin").model_dump() | {"kwargs": {"global_pool": ""}}, r"model\.kwargs: .*not 5 logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_refused_in_words(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        registry.build_model(ModelConfig(**settings), CLASSES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet50"}, "unknown architecture 'resnet50'; known are vit and timm/NAME"),
        ({"name": "timm/"}, "unknown architecture"),
        ({"name": "vit"}, "variant: is missing"),
        ({"variant": "mu/2", "kwargs": {"depth": 3}}, "kwargs belongs to name: timm"),
        ({"name": "timm/pvt_v2_b0", "depth": 3}, "depth belongs to name: vit; with timm/pvt_v2_b0 it would be ignored"),
        ({"name": "timm/pvt_v2_b0", "variant": "B/16"}, "variant belongs to name: vit"),
        ({"name": "timm/pvt_v2_b0", "kwargs": {"img_size": 32}}, r"kwargs.img_size is set by the engine \(use model"),
        ({"name": "timm/pvt_v2_b0", "kwargs": {"drop_path_rate": 0.1}}, "use model.drop_path"),
    ],
)
def test_settings_that_would_be_ignored_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_a_frozen_backbone_has_its_running_statistics() -> None:
    model = ModelConfig(name="timm/resnet18", img_size=32)
    net = registry.build_frozen(model, CLASSES)
    assert not net.training and not any(parameter.requires_grad for parameter in net.parameters())
    shapes = registry.tensor_shapes(model, CLASSES)
    assert shapes == {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes["bn1.running_mean"] == (64,)


KERNELS = (nn.Linear, nn.modules.conv._ConvNd)
DECAYING = (
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "pvt_v2_b0", "resnetv2_50x1_bit",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224", "convnext_tiny", "beit_base_patch16_224", "cait_xxs24_224", "mixer_b16_224",
    "vit_base_r50_s16_224", "twins_svt_small", "maxvit_tiny_tf_224", "davit_tiny", "vit_relpos_small_patch16_224",
)  # fmt: skip


@pytest.mark.parametrize("name", DECAYING)
def test_kernels_decay_and_nothing_else(name: str) -> None:
    """By name alone: the weights of dense and convolution layers, less what the authors exclude (positions)."""
    with torch.device("meta"):
        net: Any = timm.create_model(name, pretrained=False)
    excluded = net.no_weight_decay() if hasattr(net, "no_weight_decay") else set()
    expected = {f"{path}.weight" for path, module in net.named_modules() if isinstance(module, KERNELS)} - set(excluded)
    expected = {path for path in expected if ".rel_pos.mlp." not in path}
    found = {path for path, parameter in net.named_parameters() if is_kernel(path, parameter.ndim)}
    assert found == expected
