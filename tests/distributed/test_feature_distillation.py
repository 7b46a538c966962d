"""Students of a frozen teacher's features and tokens: equal losses on any layout, and resumes to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.test_equality_laws import losses, settings
from tests.distributed.training import train_with
from tests.pool import Pool

WIDTH = 24
OBJECTIVES: dict[str, dict[str, Any]] = {
    "features": {"objective": {"name": "feature_distillation", "width": WIDTH}},
    "tokens": {
        "objective": {"name": "token_distillation", "width": WIDTH, "imitation": "smooth_l1"},
        "model__head": "patches",
    },
    "features and tokens": {
        "objective": {"name": "feature_and_token_distillation", "width": WIDTH, "token_weight": 0.5},
        "model__head": "pooled_and_patches",
        "model__representation_size": None,
    },
}
NAMES = [*OBJECTIVES, pytest.param("two views", marks=pytest.mark.slow)]
OBJECTIVES["two views"] = {"objective": {**OBJECTIVES["features"]["objective"], "teacher_view": "second"}}
LAYOUTS = [(1, 2, "deepspeed"), (2, 4, "deepspeed"), (3, 2, "deepspeed"), (0, 2, "accelerate")]


def write_teacher(path: str) -> None:
    """A headless Vision Transformer of another width, grid and normalisation than the student's."""
    from pretrain.config.schema.model import ModelConfig
    from pretrain.models.families.registry import build_model, init_weights
    from pretrain.models.interop import save_weights, without_head
    from pretrain.models.metadata import WeightsMetadata

    config = ModelConfig(variant="mu/4", img_size=8, embed_dim=WIDTH, pool="norm_avg", class_token=False)
    net = build_model(config, 1)
    init_weights(net, 1)
    about = WeightsMetadata.of(config, 0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save_weights(path, without_head(net.state_dict()), about)


@pytest.fixture(scope="module")
def teacher(pool1: Pool, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")
    pool1.run(write_teacher, path)
    return path


def of_teacher(name: str, teacher: str, stage: int, micro: int) -> Experiment:
    chosen = OBJECTIVES[name]
    return settings(stage, micro, **{**chosen, "objective": {**chosen["objective"], "teacher": teacher}})


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_gives_the_losses_of_one_rank(pool1: Pool, pool2: Pool, teacher: str, name: str) -> None:
    expected = losses(pool1, of_teacher(name, teacher, 0, 8))
    assert expected[9] < 0.98 * expected[1], "the student must learn, or equality says nothing"
    for stage, micro, kind in LAYOUTS:
        found = losses(pool2, of_teacher(name, teacher, stage, micro), kind)
        assert found == pytest.approx(expected, rel=1e-5), (stage, micro, kind)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_resumes(pool1: Pool, pool2: Pool, tmp_path: Path, teacher: str, name: str) -> None:
    """Its projection is in the checkpoint: the same layout continues to the bit, another one to 1e-5."""
    config, folder = of_teacher(name, teacher, 2, 4), {"folder": str(tmp_path)}
    straight = pool2.run(train_with, config, "deepspeed", {"steps": 6, "save_at": 3, **folder})[0]
    same = pool2.run(train_with, config, "deepspeed", {"steps": 6, "resume": True, **folder})[0]
    assert same["losses"] == {step: straight["losses"][step] for step in (3, 4, 5)}
    assert same["weights"] == straight["weights"]
    other = pool1.run(train_with, of_teacher(name, teacher, 3, 8), "deepspeed", {"steps": 6, "resume": True, **folder})
    assert list(other[0]["losses"].values()) == pytest.approx(list(same["losses"].values()), rel=1e-5)
