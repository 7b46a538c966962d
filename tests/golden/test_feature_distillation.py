"""Imitation of a teacher's features and tokens against timm's modules and torch's losses in one plain process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.assembly.objective import objective_of
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.interop import save_weights, without_head
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.tensor_shapes import is_head_tensor
from pretrain.objectives.protocol import MicroBatch
from tests.distributed.training import experiment
from tests.golden.twins import our_model, small_config, timm_twin

SIZE = (32, 48)
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMM: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16, "global_pool": "avg"}


HEADS = {"token_distillation": "patches", "feature_and_token_distillation": "pooled_and_patches"}


def student_config(teacher: Path, width: int, **objective: Any) -> Experiment:
    name = objective.pop("name")
    more: dict[str, Any] = {} if name == "feature_distillation" else {"head": HEADS[name]}
    more["representation_size"] = objective.pop("hidden", None)
    model = small_config(head_init="normal", **more).model_dump()
    section = {"name": name, "teacher": str(teacher), "width": width, **objective}
    return experiment(model=model, objective=section)


def vit_teacher(folder: Path, **changes: Any) -> tuple[Path, Any]:
    """A headless file of our own family, and timm's module with its weights."""
    model = our_model(small_config(embed_dim=32, **changes), seed=5).eval()
    about = WeightsMetadata.of(model.config, 0, *STATISTICS)
    save_weights(folder / "teacher.safetensors", without_head(model.state_dict()), about)
    return folder / "teacher.safetensors", timm_twin(model).eval()


def timm_teacher(folder: Path) -> tuple[Path, Any]:
    """A classifier of the other family, on a coarser grid than the student's, and timm's own module."""
    config = ModelConfig(name="timm/vit_tiny_patch16_224", img_size=SIZE, kwargs=TIMM)
    net = build_model(config, 7)
    init_weights(net, 3)
    save_weights(folder / "teacher.safetensors", net.state_dict(), WeightsMetadata.of(config, 7, *STATISTICS))
    twin = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=7, **TIMM)
    twin.load_state_dict(net.state_dict())
    return folder / "teacher.safetensors", twin.eval()


def renormalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS)
    return (images * 0.5 + 0.5 - mean) / std


def batch_of(num_images: int = 3) -> MicroBatch:
    images = torch.randn(num_images, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return MicroBatch(images, torch.zeros(num_images, 1, dtype=torch.int64))


def assert_same_loss_and_gradients(config: Experiment, expected: Any) -> None:
    """``expected(twin, head)`` is the loss of timm's module with the student's weights and torch's dense layer."""
    model = build_model(config.model, config.num_outputs)
    init_weights(model, 0)
    objective = objective_of(config, model, torch.device("cpu"), lambda line: None)
    loss = objective(model, batch_of())
    loss.backward()
    twin, own = timm_twin(_body_of(model)), {name: t for name, t in model.named_parameters() if is_head_tensor(name)}
    widths = [model.shape.embed_dim, *(len(t) for name, t in own.items() if name.endswith("bias"))]  # type: ignore[union-attr]
    layers = [nn.Linear(into, out) for into, out in itertools.pairwise(widths)]
    head = nn.Sequential(layers[0], *(part for layer in layers[1:] for part in (nn.Tanh(), layer)))
    for theirs, tensor in zip(head.parameters(), own.values(), strict=True):
        theirs.data.copy_(tensor)
    reference = expected(twin, head)
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-6)
    gradients = dict(twin.named_parameters()) | dict(zip(own, head.parameters(), strict=True))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-5, atol=1e-6, msg=name)
    assert model.head.weight.grad.abs().max() > 1e-4  # type: ignore[union-attr]


def _body_of(model: nn.Module) -> Any:
    """A classifier of ours with the weights of a student below its heads."""
    body: Any = our_model(small_config(), seed=0)
    weights = {name: tensor for name, tensor in model.state_dict().items() if not is_head_tensor(name)}
    body.load_state_dict(weights | {name: t for name, t in body.state_dict().items() if name.startswith("head.")})
    return body


@pytest.mark.parametrize("imitation", ["cosine", "smooth_l1"])
def test_features_of_a_headless_teacher(tmp_path: Path, imitation: str) -> None:
    more: dict[str, Any] = {"beta": 0.3} if imitation == "smooth_l1" else {}
    path, twin_teacher = vit_teacher(tmp_path)
    batch = batch_of()
    with torch.no_grad():
        target = twin_teacher.forward_head(twin_teacher.forward_features(renormalised(batch.images)), pre_logits=True)

    def expected(twin: Any, head: nn.Module) -> Tensor:
        output = head(twin.forward_head(twin.forward_features(batch.images), pre_logits=True))
        if imitation == "cosine":
            return nn.CosineEmbeddingLoss()(output, target, torch.ones(len(output)))
        return nn.SmoothL1Loss(beta=0.3)(output, target)

    config = student_config(path, 32, name="feature_distillation", imitation=imitation, **more)
    assert_same_loss_and_gradients(config, expected)


@pytest.mark.parametrize(("imitation", "hidden"), [("cosine", None), ("smooth_l1", None), ("cosine", 20)])
def test_tokens_of_another_family_on_another_grid(tmp_path: Path, imitation: str, hidden: int | None) -> None:
    path, twin_teacher = timm_teacher(tmp_path)
    batch = batch_of()
    with torch.no_grad():
        tokens = twin_teacher.fc_norm(twin_teacher.forward_features(renormalised(batch.images)))[:, 1:]
    target = F.interpolate(tokens.transpose(1, 2).unflatten(2, (2, 3)), (4, 6), mode="bilinear").flatten(2)

    def expected(twin: Any, head: nn.Module) -> Tensor:
        output = head(twin.forward_features(batch.images)[:, 1:])
        flat, goal = output.flatten(0, 1), target.transpose(1, 2).flatten(0, 1)
        if imitation == "cosine":
            return nn.CosineEmbeddingLoss()(flat, goal, torch.ones(len(flat)))
        return nn.SmoothL1Loss()(flat, goal)

    config = student_config(path, 24, name="token_distillation", imitation=imitation, hidden=hidden)
    assert_same_loss_and_gradients(config, expected)


def test_features_and_tokens_are_the_sum_of_both(tmp_path: Path) -> None:
    """Of outputs by two layers on the same tokens; gradients of the common body add up."""
    path, twin_teacher = vit_teacher(tmp_path)
    batch = batch_of()
    model = build_model(student_config(path, 32, name="feature_and_token_distillation").model, 32)
    init_weights(model, 0)
    with torch.no_grad():
        tokens = twin_teacher.forward_features(renormalised(batch.images))
        features, patches = twin_teacher.forward_head(tokens, pre_logits=True), tokens[:, 1:].transpose(1, 2)
    config = student_config(path, 32, name="feature_and_token_distillation", token_weight=0.25)
    loss = objective_of(config, model, torch.device("cpu"), lambda line: None)(model, batch)
    loss.backward()
    body = timm_twin(_body_of(model))
    heads = [nn.Linear(48, 32), nn.Linear(48, 32)]
    for head, name in zip(heads, ("head", "head_patches"), strict=True):
        head.load_state_dict(model.get_submodule(name).state_dict())
    own = body.forward_features(batch.images)
    pooled = body.forward_head(own, pre_logits=True)
    expected = 1.0 - F.cosine_similarity(heads[0](pooled), features).mean()
    of_patches = heads[1](own[:, 1:]).flatten(0, 1), patches.transpose(1, 2).flatten(0, 1)
    expected = expected + 0.25 * nn.CosineEmbeddingLoss()(*of_patches, torch.ones(3 * 24))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in body.named_parameters():
        if not name.startswith("head."):
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-6, msg=name)
    for head, name in zip(heads, ("head", "head_patches"), strict=True):
        torch.testing.assert_close(found[f"{name}.weight"], head.weight.grad, rtol=1e-5, atol=1e-6)


def test_a_teacher_of_another_resolution_is_resized_and_named(tmp_path: Path) -> None:
    path, _ = vit_teacher(tmp_path, img_size=(64, 64))
    said: list[str] = []
    config = student_config(path, 32, name="token_distillation")
    model = build_model(config.model, config.num_outputs)
    init_weights(model, 0)
    objective = objective_of(config, model, torch.device("cpu"), said.append)
    assert objective(model, batch_of()).item() > 0.0
    assert any("pos_embed resized from grid (8, 8) to (4, 6)" in line for line in said), said


@pytest.mark.parametrize(
    ("changes", "width", "message"),
    [
        ({}, 48, r"objective.width: 48, but .* gives tokens of 32 numbers; set objective.width: 32"),
        ({"variant": "nano/12", "img_size": 36}, 32, r"cannot be used for images of \(32, 48\) pixels: model.img_size"),
        (
            {"pos_embed": "relative_1d", "img_size": 64},
            32,
            r"cannot be used for images .*relative_keys numbers offsets",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], width: int, message: str
) -> None:
    model = our_model(small_config(embed_dim=32, **changes), seed=5).eval()
    path = tmp_path / "teacher.safetensors"
    save_weights(path, without_head(model.state_dict()), WeightsMetadata.of(model.config, 0, *STATISTICS))
    config = student_config(path, width, name="token_distillation")
    with pytest.raises(ConfigError, match=message):
        objective_of(config, build_model(config.model, width), torch.device("cpu"), lambda line: None)
