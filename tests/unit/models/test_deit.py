"""The distilled Vision Transformer against timm's, and the [mask] model's corruption against a loop."""

from __future__ import annotations

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from pretrain.errors import CheckpointError
from pretrain.models.families.registry import adapt_state_dict, build_model
from pretrain.models.init import init_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.tensor_shapes import parameter_shapes
from pretrain.models.vit_tasks import Corruption, DistilledVisionTransformer, MaskedPatchTransformer, corrupt
from tests.golden.twins import small_config

CLASSES = 7
HALF = (0.5, 0.5, 0.5)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` with every tensor far from 0, 1 and each other."""
    init_weights(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return model


def distilled_twin(model: DistilledVisionTransformer) -> VisionTransformerDistilled:
    shape = model.shape
    twin = VisionTransformerDistilled(
        img_size=shape.img_size, patch_size=shape.patch, num_classes=CLASSES, embed_dim=shape.embed_dim,
        depth=shape.depth, num_heads=shape.num_heads, mlp_ratio=shape.mlp_dim / shape.embed_dim,
    )  # fmt: skip
    twin.load_state_dict(model.state_dict(), strict=True)
    return twin


def test_distilled_model_equals_timms() -> None:
    model = randomised(build_model(small_config(distilled=True), CLASSES))
    assert isinstance(model, DistilledVisionTransformer)
    twin, images = distilled_twin(model), torch.randn(3, 3, *model.shape.img_size)
    torch.testing.assert_close(model.eval()(images), twin.eval()(images), rtol=1e-5, atol=1e-5)
    twin.set_distilled_training(True)
    separate = model(images, separate_heads=True)
    torch.testing.assert_close(separate, torch.stack(twin.train()(images), 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(images), separate.mean(1))


@pytest.mark.parametrize("change", [{"distilled": True}, {"mask_token": True}])
def test_the_named_shapes_are_the_models(change: dict) -> None:
    config = small_config(**change)
    with torch.device("meta"):
        model = build_model(config, CLASSES)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == parameter_shapes(config, CLASSES)


def test_distilled_weights_are_not_taken_for_plain_ones() -> None:
    config = small_config(distilled=True)
    model = randomised(build_model(config, CLASSES))
    about = WeightsMetadata.of(config, CLASSES, HALF, HALF)
    with pytest.raises(CheckpointError, match=r"with a distillation token; set model\.distilled: true"):
        adapt_state_dict(
            model.state_dict(), about, build_model(small_config(), CLASSES), head="keep", filter="bicubic", seed=0
        )


def test_the_mask_token_is_dropped_when_a_plain_model_goes_on() -> None:
    config = small_config(mask_token=True)
    model = randomised(build_model(config, 512))
    about = WeightsMetadata.of(config, 512, HALF, HALF)
    plain = build_model(small_config(), CLASSES)
    state, report = adapt_state_dict(model.state_dict(), about, plain, head="replace", filter="bicubic", seed=0)
    plain.load_state_dict(state, strict=True)
    assert "mask_token" in report.dropped


def test_corruption_is_what_a_loop_does() -> None:
    patches, mask = torch.randn(2, 6, 4), torch.randn(1, 1, 4)
    corruption = Corruption(torch.tensor([[1, 3, 5], [0, 2, 4]]), torch.tensor([[-1, 0, 5], [2, -1, 0]]))
    expected = patches.clone()
    for image in range(2):
        for position, source in zip(*(part[image].tolist() for part in corruption), strict=True):
            expected[image, position] = mask[0, 0] if source < 0 else patches[image, source]
    assert torch.equal(corrupt(patches, corruption, mask), expected)


@pytest.mark.parametrize("pool", ["token", "norm_avg", "avg_norm"])
def test_the_masked_model_predicts_for_the_chosen_patches(pool: str) -> None:
    """With nothing changed (every patch its own source) the outputs are the plain model's head on its tokens."""
    model = randomised(build_model(small_config(mask_token=True, pool=pool), CLASSES))
    assert isinstance(model, MaskedPatchTransformer)
    images = torch.randn(2, 3, *model.shape.img_size)
    positions = torch.tensor([[0, 3, 7], [2, 1, 5]])
    logits = model(images, None, Corruption(positions, positions))
    tokens = model.forward_features(images)[:, 1:]
    expected = model.head(model.fc_norm(torch.stack([tokens[i, positions[i]] for i in range(2)])))
    torch.testing.assert_close(logits, expected)
    changed = model(images, None, Corruption(positions, torch.full_like(positions, -1)))
    assert changed.shape == (2, 3, CLASSES) and not torch.allclose(changed, logits)
