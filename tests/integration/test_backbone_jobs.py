"""Real jobs of the other families: a backbone of timm, a student that it teaches, and colours without labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Commands
from tests.integration.small_run import FINETUNE, SMALL, curve, pretrain, verdict

SHORT = ["duration=4 steps", "optim.schedule.warmup=1 steps"]
PVT = [
    "model=null",  # nothing of the demo's ViT stays
    "model.name=timm/pvt_v2_b0",
    "model.img_size=32",
    "model.kwargs={depths: [1, 1, 1, 1], embed_dims: [8, 16, 16, 32], num_heads: [1, 1, 2, 4]}",
]
LN_5 = 1.609437


@pytest.fixture(scope="module")
def backbone(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small PVT v2."""
    folder, commands = tmp_path_factory.mktemp("backbone"), Commands()
    done = commands.run(*pretrain("alone", folder, *SHORT, *PVT), check=True)
    commands.close()
    assert verdict(folder / "run")["outcome"] == "complete", done.stdout
    return folder / "run"


def test_a_backbone_is_finetuned_at_another_size(command: Commands, backbone: Path, tmp_path: Path) -> None:
    settings = [*SMALL, *SHORT, *PVT, "model.img_size=48", f"output_dir={tmp_path}", "name=run"]
    script = ["pipelines/finetune.py", "--config", FINETUNE, "--from", str(backbone), *settings]
    done = command.run("python", *script, check=True)
    assert "dropped: head.weight of the file is not used" in done.stdout, done.stdout
    assert curve(tmp_path / "run")[1][0] == pytest.approx(LN_5, abs=1e-5), "a zero head starts at ln 5"


@pytest.mark.slow
def test_adapters_of_a_backbone_are_trained_and_merged(command: Commands, backbone: Path, tmp_path: Path) -> None:
    lora = ["optim.lora={rank: 2, targets: [q, kv, proj, fc1, fc2]}"]
    settings = [*SMALL, *SHORT, *PVT, *lora, f"output_dir={tmp_path}", "name=run"]
    script = ["pipelines/finetune.py", "--config", FINETUNE, "--from", str(backbone), *settings]
    done = command.run("python", *script, check=True)
    assert "adapters of rank 2 on 20 layers" in done.stdout, done.stdout
    assert curve(tmp_path / "run")[1][0] == pytest.approx(LN_5, abs=1e-5), "a zero head starts at ln 5"
    scored = command.run(
        "python", "-m", "pipelines", "predict", "data/demo/downstream/val", "--from", str(tmp_path / "run"), check=True
    )
    assert scored.stdout.count("%") > 20, "the weights file is a plain network's"


def test_a_backbone_teaches_a_distilled_student(command: Commands, backbone: Path, tmp_path: Path) -> None:
    student = [
        "model.variant=mu/4",
        "model.img_size=32",
        "model.distilled=true",
        "model.pool=token",
        "evaluation.micro_batch_size=32",
    ]
    objective = [f"objective={{name: distillation, teacher: {backbone}, distillation: soft, tau: 3}}"]
    done = command.run(*pretrain("alone", tmp_path, *SHORT, *student, *objective), check=True)
    assert "teacher: timm/pvt_v2_b0 from" in done.stdout and "val/top1" in done.stdout, done.stdout
    assert verdict(tmp_path / "run")["outcome"] == "complete"


@pytest.mark.slow
def test_tokens_are_imitated_without_labels_and_the_labels_learned_after(
    command: Commands, backbone: Path, tmp_path: Path
) -> None:
    """Weights files hold no projection; fine-tuning finds the student's body in them, and a new head starts."""
    model = ["model.variant=mu/4", "model.img_size=32"]
    imitation = [f"objective={{name: token_distillation, teacher: {backbone}, width: 32}}", "evaluation={sets: null}"]
    settings = [*model, *imitation, "model.head=patches", "model.head_init=normal", "evaluation.every=null"]
    done = command.run(*pretrain("alone", tmp_path, *SHORT, *settings), check=True)
    run = tmp_path / "run"
    assert verdict(run)["outcome"] == "complete", done.stdout
    settings = [*SMALL, *SHORT, *model, f"output_dir={tmp_path}", "name=tuned"]
    script = ["pipelines/finetune.py", "--config", FINETUNE, "--from", str(run), *settings]
    done = command.run("python", *script, check=True)
    assert "new: head.weight starts at its initial value" in done.stdout
    assert "dropped" not in done.stdout, "there was no head in the file"
    assert curve(tmp_path / "tuned")[1][0] == pytest.approx(LN_5, abs=1e-5)


@pytest.mark.slow
def test_colours_are_learned_without_labels_and_the_labels_after(
    command: Commands, digits: None, tmp_path: Path
) -> None:
    settings = ["model.mask_token=true", "objective.name=masked_patches", "evaluation={sets: null, every: null}"]
    model = ["model.variant=mu/2", "model.img_size=16"]
    done = command.run(*pretrain("alone", tmp_path, *SHORT, *model, *settings), check=True)
    run = tmp_path / "run"
    assert verdict(run)["outcome"] == "complete", done.stdout
    settings = [*SMALL, *SHORT, *model, f"output_dir={tmp_path}", "name=tuned"]
    done = command.run(
        "python", "pipelines/finetune.py", "--config", FINETUNE, "--from", str(run), *settings, check=True
    )
    assert "dropped: mask_token of the file is not used" in done.stdout
    assert curve(tmp_path / "tuned")[1][0] == pytest.approx(LN_5, abs=1e-5)


@pytest.mark.slow
def test_pixels_are_reconstructed_and_the_encoder_is_fine_tuned_and_exported(
    command: Commands, digits: None, tmp_path: Path
) -> None:
    model = ["model.variant=mu/2", "model.img_size=16", "model.class_token=true", "model.pool=token"]
    decoder = ["model.decoder={embed_dim: 16, depth: 2, num_heads: 2}", "model.patch_drop=0.75", "objective.name=mae"]
    settings = [*model, *decoder, "model.pos_embed=sincos2d_mae", "evaluation={sets: null, every: null}"]
    done = command.run(*pretrain("alone", tmp_path, *SHORT, *settings), check=True)
    run = tmp_path / "run"
    assert verdict(run)["outcome"] == "complete", done.stdout
    more = ["model.pos_embed=learned_1d", f"output_dir={tmp_path}", "name=tuned"]
    script = ["pipelines/finetune.py", "--config", FINETUNE, "--from", str(run)]
    done = command.run("python", *script, *SMALL, *SHORT, *model, *more, check=True)
    assert "dropped: the decoder (31 tensors) of the file is not used" in done.stdout, done.stdout
    assert curve(tmp_path / "tuned")[1][0] == pytest.approx(LN_5, abs=1e-5)
    for format in ("timm", "hf"):
        out = ["--format", format, "--out", str(tmp_path / format), "--resize", "squash"]
        done = command.run("python", "-m", "pipelines", "export", str(run), *out, check=True)
        assert "sincos2d_mae is written as a learned table of the same numbers" in done.stdout, done.stdout


def test_check_knows_a_backbones_cost(command: Commands) -> None:
    checked = pretrain("alone", Path("runs"), *SHORT, *PVT, "--check")
    done = command.run(*checked, check=True)
    assert "timm/pvt_v2_b0 at 32×32, 0.05 M parameters without head" in done.stdout, done.stdout
    assert "memory" in done.stdout and "exaFLOPs" in done.stdout
