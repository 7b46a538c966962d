"""The Vision Transformer on one device: shapes, recomputation, precision, and that nothing waits for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.vit import build_vit
from tests.golden.twins import our_model, small_config, some_images

POOLS: list[dict[str, Any]] = [
    {"pool": "token"},
    {"pool": "norm_avg"},
    {"pool": "avg_norm", "class_token": False},
    {"pool": "token", "representation_size": 20},
    {"pool": "map", "num_registers": 2, "layer_scale": 0.1, "qk_norm": True},
]
FP32_POOLS = POOLS[:-1]  # attention pooling computes in the blocks' type, only what follows it is fp32


def test_worked_shapes() -> None:
    """48×48 px, P 16 → 9 × 768; 84×84 px, P 12 → 49 × 432 → 49 × 128 → with the class token 50 × 128."""
    nine = build_vit(ModelConfig(variant="B/16", img_size=48, depth=1, class_token=False, pool="norm_avg"), 2)
    patches = nn.functional.unfold(torch.zeros(1, 3, 48, 48), kernel_size=16, stride=16)
    assert patches.transpose(1, 2).shape == (1, 9, 768)
    assert nine.patch_embed(torch.zeros(1, 3, 48, 48)).shape == (1, 9, 768)
    config = ModelConfig(variant="nano/12", img_size=84, embed_dim=128, num_heads=4, depth=1)
    fifty = build_vit(config, 2)
    assert fifty.patch_embed.proj.weight.flatten(1).shape == (128, 432)
    assert fifty.patch_embed(torch.zeros(1, 3, 84, 84)).shape == (1, 49, 128)
    assert fifty.forward_features(torch.zeros(1, 3, 84, 84)).shape == (1, 50, 128)


def test_a_patch_is_embedded_by_its_own_pixels_only() -> None:
    """The token of row r, column c answers to the pixels of that patch: the grid is row-major."""
    model = our_model(small_config())
    images = torch.zeros(1, 3, *model.shape.img_size)
    before = model.patch_embed(images)
    images[:, :, 8:16, 24:32] = 1.0  # row 1, column 3 of the 4 × 6 grid
    changed = (model.patch_embed(images) - before).abs().sum((0, 2)).nonzero().flatten()
    assert changed.tolist() == [1 * 6 + 3]


@pytest.mark.parametrize("changes", POOLS)
def test_shapes_of_the_stages(changes: dict[str, Any]) -> None:
    model = our_model(small_config(**changes))
    images = some_images(model)
    tokens = model.forward_features(images)
    assert tokens.shape == (3, model.shape.num_tokens, 48)
    hidden = changes.get("representation_size", 48)
    assert model.forward_head(tokens, pre_logits=True).shape == (3, hidden)
    assert model.forward_head(tokens).shape == (3, 11)
    assert torch.equal(model(images), model.forward_head(tokens))


def test_the_tanh_layer_is_a_dense_layer_and_tanh() -> None:
    model = our_model(small_config(representation_size=20))
    tokens = model.forward_features(some_images(model))
    layer: Any = model.pre_logits.fc
    expected = torch.tanh(tokens[:, 0] @ layer.weight.T + layer.bias)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected, rtol=1e-5, atol=1e-6)
    logits = expected @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model.forward_head(tokens), logits, rtol=1e-5, atol=1e-5)


def test_images_of_another_size_are_a_bug_that_shows() -> None:
    with pytest.raises(AssertionError, match="images of"):
        our_model(small_config())(torch.zeros(1, 3, 32, 32))


def test_checkpointing_keeps_less() -> None:
    model, kept = our_model(small_config()), []

    def count(checkpointing: bool) -> int:
        sizes: dict[int, int] = {}
        model.set_grad_checkpointing(checkpointing)
        kept.clear()

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(some_images(model))
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    assert count(True) < count(False) / 3


@pytest.mark.parametrize("zero_branch", [0, 1])
def test_a_dropped_branch_adds_nothing(zero_branch: int) -> None:
    """Scale 0 removes one branch of one image in one block, and touches no other image."""
    model = our_model(small_config(depth=1)).eval()
    images = some_images(model, num_images=2)
    scales = torch.ones(2, 1, 2)
    scales[0, 0, zero_branch] = 0.0
    got = model.forward_features(images, scales)
    block: Any = model.blocks[0]
    x = model._embed(images)[:1]
    expected = x + block.mlp(block.norm2(x)) if zero_branch == 0 else x + block.attn(block.norm1(x))
    torch.testing.assert_close(got[:1], model.norm(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1:], model.forward_features(images[1:]), rtol=1e-5, atol=1e-5)


def test_scales_of_one_change_nothing_and_wrong_shapes_show() -> None:
    model = our_model(small_config()).eval()
    images = some_images(model)
    assert torch.equal(model(images, torch.ones(3, 3, 2)), model(images))
    with pytest.raises(AssertionError, match="drop_path"):
        model(images, torch.ones(3, 2, 2))


@pytest.mark.parametrize("changes", FP32_POOLS)
def test_with_bfloat16_weights_the_head_is_fp32(changes: dict[str, Any]) -> None:
    """From the pooling on: exactly the fp32 computation with the rounded weights, nothing rounded in between."""
    model = our_model(small_config(**changes)).to(torch.bfloat16).eval()
    with torch.no_grad():
        tokens = model.forward_features(some_images(model))
        assert tokens.dtype == torch.bfloat16
        logits = model.forward_head(tokens)
        reference = our_model(small_config(**changes)).eval()
        reference.load_state_dict(model.state_dict())  # bf16 values in fp32 tensors
        expected = reference.forward_head(tokens.float())
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("changes", FP32_POOLS)
def test_under_autocast_the_head_is_fp32(changes: dict[str, Any]) -> None:
    model = our_model(small_config(**changes)).eval()
    images = some_images(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = model.forward_features(images)
        logits = model.forward_head(tokens)
        whole = model(images)
    with torch.no_grad():
        expected = model.forward_head(tokens)
        fp32 = model(images)
    assert tokens.dtype == torch.float32, "the residual stream stays fp32"
    assert logits.dtype == torch.float32 and torch.equal(logits, expected) and torch.equal(whole, logits)
    assert not torch.equal(whole, fp32), "autocast must reach the blocks"
    torch.testing.assert_close(whole, fp32, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("changes", POOLS)
def test_bfloat16_weights_stay_close_to_fp32(changes: dict[str, Any]) -> None:
    model = our_model(small_config(**changes)).to(torch.bfloat16).eval()
    reference = our_model(small_config(**changes)).eval()
    reference.load_state_dict(model.state_dict())
    images, scales = some_images(model), torch.full((3, 3, 2), 1.25)
    with torch.no_grad():
        torch.testing.assert_close(model(images, scales), reference(images, scales), rtol=0.1, atol=0.1)
        assert model.forward_features(images, scales).dtype == torch.bfloat16, "fp32 scales must not widen the stream"


def test_forward_and_backward_never_read_the_device() -> None:
    """On the meta device tensors have no values: any read on the host, any branch on a value, would raise."""
    for changes in ({}, {"rope": "axial", "pool": "map"}, {"pos_embed": "relative_bias", "layer_scale": 0.1},
                    {"rope": "mixed", "norm": "rms_norm", "mlp": "swiglu", "gated_attention": True},
                    {"pos_embed": "sincos2d_timm", "variant": "R50+nano/16", "img_size": (32, 48)}):  # fmt: skip
        for policy in ("none", "full", "selective"):
            with torch.device("meta"):
                model = build_vit(small_config(**changes), 11)
                images, scales = torch.empty(2, 3, 32, 48), torch.empty(2, 3, 2)
            model.set_grad_checkpointing(policy)
            model(images, scales).sum().backward()
            weight = model.patch_embed.proj.weight
            assert weight.grad is not None and weight.grad.is_meta


def test_the_patch_map_has_every_patch_in_its_place() -> None:
    model = our_model(small_config(num_registers=2)).eval()
    images = some_images(model)
    tokens = model.forward_features(images)
    dense = model.patch_map(tokens)
    assert dense.shape == (3, 48, 4, 6)
    assert torch.equal(dense[:, :, 1, 3], tokens[:, 3 + 1 * 6 + 3])


def test_evaluation_needs_no_generator() -> None:
    model = our_model(small_config(dropout=0.5)).eval()
    images, state = some_images(model), torch.get_rng_state()
    assert torch.equal(model(images), model(images))
    assert torch.equal(torch.get_rng_state(), state)
