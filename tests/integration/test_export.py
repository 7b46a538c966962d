"""A run goes out into every format, and fine-tuning starts from each with the same first loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import Commands
from tests.integration.small_run import FINETUNE, SMALL, curve, pretrain

OUT = {"timm": "folder", "hf": "folder", "npz": "w.npz"}
# Settings that each of the formats can express.
EXPRESSIBLE = ["model.pool=token", "model.gelu=tanh", "data.eval_transform.resize_filter=bilinear_aa"]


@pytest.fixture(scope="module")
def pretrained(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    commands = Commands()
    commands.run(*pretrain("alone", folder, *EXPRESSIBLE), check=True)
    commands.close()
    return folder / "run"


@pytest.fixture(scope="module")
def losses_from_the_run(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    commands = Commands()
    losses = finetuned(commands, pretrained, tmp_path_factory.mktemp("direct"))
    commands.close()
    return losses


def finetuned(command: Commands, source: Path, folder: Path) -> list[float]:
    settings = [*SMALL, *EXPRESSIBLE, "model.img_size=16", "duration=3 steps", "optim.schedule.warmup=1 steps"]
    script = ["pipelines/finetune.py", "--config", FINETUNE, *settings, f"output_dir={folder}", "name=run"]
    done = command.run("python", *script, "--from", source, check=True)
    assert "resized: pos_embed from grid (4, 4) to (8, 8)" in done.stdout, done.stdout
    return [row[0] for row in curve(folder / "run").values()]


@pytest.mark.parametrize("format", OUT)
def test_fine_tuning_starts_from_an_export_as_from_the_run(
    format: str, command: Commands, pretrained: Path, losses_from_the_run: list[float], tmp_path: Path
) -> None:
    out = tmp_path / OUT[format]
    drop = ["--drop-head"] if format == "timm" else []  # fine-tuning replaces the head, so it needs none
    done = command.run("python", "-m", "pipelines", "export", pretrained, "--format", format, "--out", out, *drop)
    assert done.returncode == 0, done.stderr
    assert "the same bit for bit" in done.stdout and "outputs differ by at most" in done.stdout
    assert finetuned(command, out, tmp_path) == losses_from_the_run
