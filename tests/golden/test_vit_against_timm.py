"""Our Vision Transformer against timm's with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from pretrain.config.schema import ModelConfig
from pretrain.models.init import initial_value
from pretrain.models.vit import build_vit
from tests.golden.twins import our_model, small_config, some_images, timm_twin

EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}

KINDS: dict[str, dict[str, Any]] = {
    "token": {"pool": "token"},
    "token, square": {"pool": "token", "img_size": 32},
    "norm_avg with class token": {"pool": "norm_avg"},
    "norm_avg without class token": {"pool": "norm_avg", "class_token": False},
    "avg_norm with class token": {"pool": "avg_norm"},
    "avg_norm without class token": {"pool": "avg_norm", "class_token": False},
    "tanh gelu": {"gelu": "tanh"},
    "another epsilon": {"layer_norm_eps": 1e-3},
    "another patch": {"variant": "nano/16", "img_size": (64, 48)},
}


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return small_config(**request.param)


def test_logits_and_features_equal_timm(config: ModelConfig) -> None:
    model = our_model(config).eval()
    twin, images = timm_twin(model), some_images(model)
    with torch.no_grad():
        tokens = model.forward_features(images)
        torch.testing.assert_close(tokens, twin.forward_features(images), **EXACT)
        torch.testing.assert_close(
            model.forward_head(tokens, pre_logits=True), twin.forward_head(tokens, pre_logits=True), **EXACT
        )
        logits = model(images)
        assert logits.std() > 0.1, "logits that are all alike would prove nothing"
        torch.testing.assert_close(logits, twin(images), **EXACT)


def test_intermediates_equal_timm(config: ModelConfig) -> None:
    model = our_model(config).eval()
    twin, images = timm_twin(model), some_images(model)
    options: dict[str, Any] = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
    with torch.no_grad():
        ours = model.forward_intermediates(images)
        pairs: list[Any] = list(twin.forward_intermediates(images, **options))
        theirs = [torch.cat(pair[::-1], dim=1) if isinstance(pair, tuple) else pair for pair in pairs]
    assert len(ours) == len(theirs) == model.shape.depth
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(mine, other, **EXACT, msg=lambda text, i=index: f"block {i}: {text}")


def test_gradients_equal_timm(config: ModelConfig) -> None:
    model = our_model(config)
    twin, images = timm_twin(model), some_images(model)
    labels = torch.tensor([1, 0, 7])
    for each in (model, twin):
        nn.functional.cross_entropy(each(images), labels).backward()
    others = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(
            parameter.grad, others[name].grad, **EXACT, msg=lambda text, n=name: f"gradient of {n}: {text}"
        )


def test_dropout_sits_where_timm_puts_it() -> None:
    """With the same generator state both draw the same masks only if they drop the same tensors in the same order."""
    model = our_model(small_config(dropout=0.3))
    twin, images = timm_twin(model), some_images(model)
    outputs = []
    for each in (model, twin):
        torch.manual_seed(5)
        outputs.append(each(images))
    torch.testing.assert_close(outputs[0], outputs[1], **EXACT)
    torch.manual_seed(6)
    assert not torch.allclose(model(images), outputs[0]), "another state must drop something else"


class Recorded(nn.Module):
    """timm's DropPath by its own formula, with the mask taken from a table instead of the generator."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scales.view(-1, 1, 1)


def test_drop_path_tensor_equals_timms_drop_path_with_the_same_mask() -> None:
    model = our_model(small_config())
    twin, images = timm_twin(model), some_images(model, num_images=4)
    keep = 0.75
    torch.manual_seed(3)
    scales = torch.empty(4, model.shape.depth, 2).bernoulli_(keep).div_(keep)
    assert 0 < (scales == 0).sum() < scales.numel()
    for index, block in enumerate(twin.blocks):
        block.drop_path1, block.drop_path2 = Recorded(scales[:, index, 0]), Recorded(scales[:, index, 1])
    torch.testing.assert_close(model(images, scales), twin(images), **EXACT)


def test_drop_path_scales_are_what_timm_draws() -> None:
    """timm's own module, run on ones, gives the scale of each image: 0 or 1 / keep, as ours."""
    torch.manual_seed(0)
    drawn = timm.layers.DropPath(0.25).train()(torch.ones(4000, 1, 1)).flatten()
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("Ti/16", "vit_tiny_patch16_224"),
        ("S/32", "vit_small_patch32_224"),
        ("B/16", "vit_base_patch16_224"),
        ("L/16", "vit_large_patch16_224"),
        ("H/14", "vit_huge_patch14_224"),
        ("g/14", "vit_giant_patch14_224"),
    ],
)
def test_published_sizes_have_timms_tensors(variant: str, name: str) -> None:
    with torch.device("meta"):
        ours = build_vit(ModelConfig(variant=variant), 1000).state_dict()
        theirs = timm.create_model(name, num_classes=1000).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert list(ours) == list(theirs)


def test_patch_convolution_initialises_as_timms_jax_scheme() -> None:
    """lecun_normal of the patch convolution and zero biases: the parts that timm's `jax` scheme has right."""
    config = small_config(embed_dim=512, num_heads=8)
    ours = initial_value("patch_embed.proj.weight", (512, 3, 8, 8), config, 0)
    theirs = torch.empty(512, 3, 8, 8)
    timm.layers.lecun_normal_(theirs)
    assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)
    assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
