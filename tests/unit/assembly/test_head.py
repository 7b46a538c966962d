"""A head that is taken over: its outputs are the classes of the data, row by row, or it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.assembly.head import Target
from pretrain.assembly.model import build_initialised_model
from pretrain.errors import CheckpointError
from pretrain.models.families.registry import build_model, init_weights
from pretrain.models.interop import save_weights
from pretrain.models.metadata import TargetScale, WeightsMetadata
from tests.distributed.training import CLASSES, experiment

HALF = (0.5, 0.5, 0.5)
OLD = [("n1", "cat"), ("n2", "dog"), ("n3", "crane"), ("n4", "crane"), ("n5", "fox")]
NEW = [("n5", "red fox"), ("n9", "owl"), ("n4", "crane"), ("n1", "cat"), ("n8", "elk")]
KEPT = {0: 4, 2: 3, 3: 0}  # place in NEW → place in OLD, by id


def saved(folder: Path, classes: list[tuple[str, str]] | None, name: str = "vit", **more: Any) -> dict[str, Tensor]:
    settings = experiment(**more.pop("model", {}))
    model = build_model(settings.model, CLASSES)
    init_weights(model, 7)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    if classes is not None:
        more |= {"class_ids": tuple(key for key, _ in classes), "class_names": tuple(name for _, name in classes)}
    save_weights(
        folder / "w.safetensors", model.state_dict(), WeightsMetadata.of(settings.model, CLASSES, HALF, HALF, **more)
    )
    return model.state_dict()


def started(folder: Path, head: Any, target: Target, **model: Any) -> tuple[dict[str, Tensor], list[str]]:
    said: list[str] = []
    settings = experiment(init__from=str(folder / "w.safetensors"), **model)
    net = build_initialised_model(settings, said.append, local_world=1, head=head, with_init=True, target=target)
    return net.state_dict(), said


FAMILIES: dict[str, dict[str, Any]] = {
    "ours": {},
    "distilled": {"model__distilled": True, "model__representation_size": None},
    "timm's": {
        "model": {"name": "timm/resnet18", "img_size": 32, "head_init": "normal", "kwargs": {"layers": [1, 1, 1, 1]}}
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_remap_keeps_the_rows_of_common_classes(family: str, tmp_path: Path) -> None:
    changes = FAMILIES[family]
    old = saved(tmp_path, OLD, model=changes)
    found, said = started(tmp_path, "remap", Target(NEW, None), **changes)
    fresh = build_model(experiment(**changes).model, CLASSES)
    init_weights(fresh, experiment().seed)
    initial = fresh.state_dict()
    names = [name for name in old if name.startswith(("head", "fc."))]
    assert len(names) == (4 if family == "distilled" else 2)
    for name in names:
        for row in range(CLASSES):
            expected = old[name][KEPT[row]] if row in KEPT else initial[name][row]
            assert torch.equal(found[name][row], expected), (name, row)
    assert all(torch.equal(found[name], old[name]) for name in old if name not in names)
    text = "\n".join(said)
    assert "head: 3 of 5 classes keep their rows: red fox, crane, cat" in text
    assert "head: 2 classes are new and start at their initial values: owl, elk" in text
    assert "head: 2 classes of the weights are left out: dog, crane" in text


def test_keep_takes_the_same_classes_only(tmp_path: Path) -> None:
    old = saved(tmp_path, OLD)
    found, _ = started(tmp_path, "keep", Target(OLD, None))
    assert torch.equal(found["head.weight"], old["head.weight"])
    with pytest.raises(
        CheckpointError, match=r"keep: output 0 is 'n1 cat' in the weights, 'n5 red fox' in the data; .*remap"
    ):
        started(tmp_path, "keep", Target(NEW, None))
    with pytest.raises(CheckpointError, match="the head has 5 outputs, the data 4 classes"):
        started(tmp_path, "keep", Target(OLD[:4], None), data__num_classes=4)
    started(tmp_path, "replace", Target(NEW, None))


def test_classes_without_a_name_are_not_guessed(tmp_path: Path) -> None:
    saved(tmp_path, None)
    started(tmp_path, "keep", Target(OLD, None))  # nothing contradicts them
    with pytest.raises(CheckpointError, match="remap: no class of the data, such as 'n5 red fox', is among"):
        started(tmp_path, "remap", Target(NEW, None))


def test_digits_are_the_same_by_their_number(tmp_path: Path) -> None:
    digits = [(str(number), str(number)) for number in range(10)]
    old = saved(tmp_path, digits[:5])
    found, _ = started(tmp_path, "remap", Target(digits[3:8], None))
    assert torch.equal(found["head.weight"][:2], old["head.weight"][3:])


def test_a_kept_regression_answers_in_the_same_units(tmp_path: Path) -> None:
    numbers = [(str(number), f"number {number}") for number in range(CLASSES)]
    scale, other = TargetScale.of([1.0] * 5, [2.0] * 5), TargetScale.of([-3.0, 0, 0, 0, 9], [0.5, 1, 2, 3, 4])
    old = saved(tmp_path, numbers, scale=scale, objective="regression", activation="none")
    found, said = started(tmp_path, "keep", Target(numbers, other))
    assert any("converted to the units" in line for line in said)
    features = torch.randn(3, old["head.weight"].shape[1], generator=torch.Generator().manual_seed(1))
    before = scale.restored(features @ old["head.weight"].T + old["head.bias"])
    after = other.restored(features @ found["head.weight"].T + found["head.bias"])
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
