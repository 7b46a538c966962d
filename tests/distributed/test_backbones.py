"""Every family trains through the same pipeline: pretrained, resumed on another layout, fine-tuned at another size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.training import CLASSES, experiment, train_with
from tests.pool import ROOT, Pool, RankFailureError

ALL_SHARDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
SAVE_AT, STEPS = 3, 6
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 2}
VIT = {"variant": "mu/2", "img_size": 8, "depth": 2, "head_init": "normal"}
MASKED = {"name": "masked_patches", "corrupted": 0.5}

# name → the model, and what fine-tuning changes of it
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({**VIT, "drop_path": 0.1, "representation_size": "width"}, {"img_size": 12}),
    "distilled": ({**VIT, "distilled": True}, {"img_size": 12}),
    "swin": (
        {"name": "timm/swin_tiny_patch4_window7_224", "img_size": 16, "kwargs": SWIN},
        {"img_size": 32, "kwargs": {**SWIN, "window_size": 8}},
    ),
    "pvt_v2": (
        {
            "name": "timm/pvt_v2_b0",
            "img_size": 32,
            "kwargs": {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 32], "num_heads": [1, 1, 2, 4]},
        },
        {"img_size": 48},
    ),
    "bit": (
        {
            "name": "timm/resnetv2_50x1_bit",
            "img_size": 32,
            # maps of 4×4: over one pixel a GroupNorm is so steep that rounding grows a thousandfold in five steps
            "kwargs": {"channels": [128] * 4, "stem_chs": 32, "output_stride": 8},
        },
        {"img_size": 40},
    ),
    "timm_deit": (
        {"name": "timm/deit_tiny_distilled_patch16_224", "img_size": 32, "kwargs": {"depth": 2, "embed_dim": 48}},
        {"img_size": 48},
    ),
    "hf_clip": (
        {
            "name": "hf/CLIPForImageClassification",  # its last norm does not reach the logits
            "img_size": 8,
            "kwargs": {
                "vision_config": {
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                    "patch_size": 2,
                }
            },
        },
        {"img_size": 12},
    ),
}
TWO_HEADS = ("distilled", "timm_deit")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A weights file of a small convolutional network of the same classes, trained on other statistics."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    code = f"from tests.distributed.test_backbones import write_teacher; write_teacher({str(path)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
    return str(path)


def write_teacher(path: str) -> None:
    """A frozen teacher with running statistics, as DeiT's RegNet."""
    from pretrain.config.schema.model import ModelConfig
    from pretrain.models.families.registry import build_frozen
    from pretrain.models.interop import save_weights
    from pretrain.models.metadata import WeightsMetadata

    config = ModelConfig(name="timm/resnet18", img_size=64, head_init="normal")
    about = WeightsMetadata.of(config, CLASSES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save_weights(path, build_frozen(config, CLASSES).state_dict(), about)


def settings(family: str, stage: int, micro: int, teacher: str, tuned: bool = False, **more: Any) -> Experiment:
    model, changes = FAMILIES[family]
    model = {"head_init": "normal", **model, **(changes if tuned else {})}
    sharded = {"cluster__deepspeed": ALL_SHARDED} if stage == 3 else {}
    if family in TWO_HEADS and not tuned:
        more["objective"] = {"name": "distillation", "teacher": teacher}
    if family == "bit":  # of 50 layers, each normalised: at a high rate it multiplies rounding differences
        more["optim__lr"], more["optim__eps"] = 1e-4, 1e-3
    return experiment(model=model, cluster__zero_stage=stage, cluster__micro_batch_size=micro, **sharded, **more)


def losses(pool: Pool, config: Experiment, kind: str = "deepspeed", **options: Any) -> dict[int, float]:
    results = pool.run(train_with, config, kind, {"steps": STEPS, **options}, timeout_s=120)
    assert all(result["losses"] == results[0]["losses"] for result in results)
    return results[0]["losses"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_life(pool1: Pool, pool2: Pool, tmp_path: Path, teacher: str, family: str) -> None:
    """Pretrain on two ranks, resume on one rank at another stage, fine-tune the result at another resolution."""
    folder = str(tmp_path)
    straight = losses(pool2, settings(family, 1, 4, teacher), folder=folder, save_at=SAVE_AT)
    assert straight[STEPS - 1] != straight[1]
    resumed = losses(pool1, settings(family, 3, 8, teacher), folder=folder, resume=True)
    assert list(resumed) == list(range(SAVE_AT, STEPS))
    assert list(resumed.values()) == pytest.approx([straight[step] for step in resumed], rel=2e-5)
    weights = str(tmp_path / "checkpoints" / f"step-{SAVE_AT:08d}" / "weights.safetensors")
    tuned = settings(family, 2, 4, teacher, tuned=True, model__head_init="zero", optim__weight_decay=0.0)
    fine = losses(pool2, tuned, "deepspeed", weights=weights)
    assert fine[0] == pytest.approx(1.6094379, rel=1e-5), "ln 5: a new head of zeros"
    assert fine[STEPS - 1] < fine[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_gives_the_same_losses(pool2: Pool, teacher: str, family: str) -> None:
    plain = losses(pool2, settings(family, 0, 4, teacher))
    for stage, micro, kind in ((1, 4, "deepspeed"), (3, 2, "deepspeed"), (0, 4, "accelerate"), (0, 2, "fsdp2")):
        values = losses(pool2, settings(family, stage, micro, teacher), kind)
        assert list(values.values()) == pytest.approx(list(plain.values()), rel=2e-5), (stage, micro, kind)


@pytest.mark.parametrize(
    ("family", "stage"),
    [
        ("swin", 3),
        ("hf_clip", 3),
        *(
            pytest.param(family, stage, marks=pytest.mark.slow)
            for family, stage in [("swin", 1), ("pvt_v2", 3), ("bit", 1), ("distilled", 3), ("timm_deit", 1)]
        ),
    ],
)
def test_activation_checkpointing_changes_nothing(pool2: Pool, teacher: str, family: str, stage: int) -> None:
    plain = losses(pool2, settings(family, stage, 4, teacher))
    kept = losses(pool2, settings(family, stage, 4, teacher, cluster__activation_checkpointing="full"))
    assert list(kept.values()) == pytest.approx(list(plain.values()), rel=1e-5)


COMPILED = [("swin", 3, "deepspeed", "none"), ("hf_clip", 3, "deepspeed", "full"), ("pvt_v2", 0, "fsdp2", "full")]
COMPILED += [
    ("bit", 1, "deepspeed", "none"),
    ("timm_deit", 0, "accelerate", "none"),
    ("hf_clip", 0, "fsdp2", "every_2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "stage", "kind", "policy"), COMPILED)
def test_compilation_changes_nothing(
    pool2: Pool, teacher: str, family: str, stage: int, kind: str, policy: str
) -> None:
    plain = losses(pool2, settings(family, stage, 4, teacher), kind)
    changes = {"cluster__compile": True, "cluster__activation_checkpointing": policy}
    compiled = losses(pool2, settings(family, stage, 4, teacher, **changes), kind)
    assert list(compiled.values()) == pytest.approx(list(plain.values()), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "distilled"])
def test_low_precision_stays_near(pool2: Pool, teacher: str, family: str) -> None:
    exact = losses(pool2, settings(family, 1, 4, teacher))
    for stage, precision in ((1, "bf16"), (3, "bf16"), (0, "autocast")):
        values = losses(pool2, settings(family, stage, 4, teacher, precision=precision))
        assert list(values.values()) == pytest.approx(list(exact.values()), rel=5e-2) and values != exact


def test_timms_drop_path_is_the_same_after_a_resume_of_the_same_layout(
    pool2: Pool, tmp_path: Path, teacher: str
) -> None:
    config = settings("swin", 1, 4, teacher, model__drop_path=0.5)
    straight = losses(pool2, config, folder=str(tmp_path), save_at=SAVE_AT)
    resumed = losses(pool2, config, folder=str(tmp_path), resume=True)
    assert resumed == {step: straight[step] for step in range(SAVE_AT, STEPS)}
    assert straight[2] != losses(pool2, settings("swin", 1, 4, teacher))[2], "something is dropped"


def test_masked_patches_do_not_depend_on_the_layout(pool1: Pool, pool2: Pool, tmp_path: Path) -> None:
    model = {**VIT, "mask_token": True}

    def masked(stage: int, micro: int) -> Experiment:
        sharded = {"cluster__deepspeed": ALL_SHARDED} if stage == 3 else {}
        return experiment(
            model=model, objective=MASKED, cluster__zero_stage=stage, cluster__micro_batch_size=micro, **sharded
        )

    straight = losses(pool2, masked(0, 4), folder=str(tmp_path), save_at=SAVE_AT)
    assert straight[0] == pytest.approx(6.24, abs=0.3), "about ln 512"
    for pool, stage, micro in ((pool2, 3, 2), (pool1, 1, 8)):
        assert list(losses(pool, masked(stage, micro)).values()) == pytest.approx(list(straight.values()), rel=2e-5)
    resumed = losses(pool1, masked(3, 4), folder=str(tmp_path), resume=True)
    assert list(resumed.values()) == pytest.approx([straight[step] for step in resumed], rel=2e-5)
    weights = str(tmp_path / "checkpoints" / f"step-{SAVE_AT:08d}" / "weights.safetensors")
    fine = losses(pool2, experiment(model={**VIT, "img_size": 12, "head_init": "zero"}), weights=weights)
    assert fine[0] == pytest.approx(1.6094379, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data__num_classes": 7}, "knows 5 classes, data.num_classes is 7"),
        ({"objective": {"name": "distillation", "teacher": "nowhere"}}, "nowhere does not exist"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(pool1: Pool, teacher: str, change: dict, message: str) -> None:
    model, objective = FAMILIES["distilled"][0], {"name": "distillation", "teacher": teacher}
    config = experiment(**{"model": model, "objective": objective, "cluster__micro_batch_size": 8, **change})
    with pytest.raises(RankFailureError) as caught:
        losses(pool1, config)
    assert message in str(caught.value)
