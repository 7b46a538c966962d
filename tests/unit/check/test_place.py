"""--check finds what would fail at the start of the run: a folder that cannot be made, a loss that cannot fall."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from tests.integration.small_run import PRETRAIN

EMA = "optim.ema_decay=0.9"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["name=" + "a" * 201], "name:"),
        (["data.num_classes=1"], "data.num_classes: 1; objective.name: softmax"),
        (
            ["checkpoint.keep_best=val/top7"],
            "checkpoint.keep_best: val/top7 is not measured; possible: val/top1, val/top5",
        ),
        (["checkpoint.keep_best=test/top1"], "checkpoint.keep_best: test/top1 is not measured"),
        (["checkpoint.keep_best=val_ema/top1"], "checkpoint.keep_best: val_ema/top1 is not measured"),
        (["data.repeated_augmentation=9"], "data.repeated_augmentation: 9 copies"),
        (
            [
                "data.shards=null",
                "data.mixture=[{shards: a, num_samples: 400, weight: 1}, {shards: b, num_samples: 314, weight: 1e-9}]",
            ],
            "less than a millionth",
        ),
        (["resume.from=FOLDER"], "holds no complete checkpoint"),
        (["resume.from=FOLDER/nowhere"], "does not exist"),
        (["output_dir=FILE"], "is not a folder"),
        (["output_dir=FILE/below"], "is not a folder"),
        (["output_dir=FOLDER", "name=file"], "is a file"),
        (["output_dir=" + "/a" * 2030], "bytes, and 4096 are possible"),
        (["output_dir=" + "a" * 300], "File name too long"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, overrides: list[str], words: str) -> None:
    (tmp_path / "file").write_text("")
    given = [text.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path)) for text in overrides]
    with pytest.raises(ConfigError) as caught:
        check(load_experiment(PRETRAIN, overrides=["output_dir=runs", *given]))
    assert words in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written to"):
        check(load_experiment(PRETRAIN, overrides=[f"output_dir={tmp_path}/x"]))


@pytest.mark.parametrize(
    "overrides",
    [
        ["name=" + "a" * 200],
        ["checkpoint.keep_best=val/top1"],
        ["checkpoint.keep_best=val_ema/top5", EMA],
        [
            "data.num_classes=1",
            "objective.name=sigmoid",
            "data.shards=none",
            "evaluation.sets={}",
            "evaluation.every=null",
        ],
    ],
)
def test_what_can_be_run_is_not(tmp_path: Path, overrides: list[str]) -> None:
    assert check(load_experiment(PRETRAIN, overrides=[f"output_dir={tmp_path}/new/runs", *overrides]))
    assert not list(tmp_path.iterdir()), "nothing is made"
