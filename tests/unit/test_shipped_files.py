"""Recipes by name, as configs and under ``extends``."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.sweep.cli import parser, read_sweep
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from pretrain.shipped_files import CONFIGS, located, recipes
from tests.command import ROOT


def test_a_recipe_is_the_shipped_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = ROOT / "configs/pretrain/vit_h14_jft300m.yaml"
    monkeypatch.chdir(ROOT)
    assert located("recipe:vit_h14_jft300m") == "configs/pretrain/vit_h14_jft300m.yaml"
    monkeypatch.chdir(tmp_path)
    for name in ("vit_h14_jft300m", "pretrain/vit_h14_jft300m", "pretrain/vit_h14_jft300m.yaml"):
        assert Path(located(f"recipe:{name}")) == path
    assert located("mine/recipe.yaml") == "mine/recipe.yaml"
    assert len(recipes()) == len(list(CONFIGS.rglob("*.yaml"))) > 90


def test_a_config_may_extend_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: recipe:vit_b16_i1k\nname: mine\n")
    mine, theirs = load_experiment(tmp_path / "mine.yaml"), load_experiment("recipe:vit_b16_i1k")
    assert mine.experiment.name == "mine" and theirs.experiment.name != "mine"
    assert mine.digest == theirs.digest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo_digits", "several recipes.*recipe:finetune/demo_digits or recipe:pretrain/demo_digits"),
        ("vit_h14_jft300", "did you mean recipe:pretrain/vit_h14_jft300m"),
        ("vit", "no such recipe in .*/configs; "),
        ("../pyproject", "no such recipe"),
    ],
)
def test_a_wrong_name_is_an_error_with_the_right_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(f"recipe:{name}")


def test_a_sweep_of_a_recipe_has_its_name() -> None:
    args = parser().parse_intermixed_args(["--config", "recipe:cifar10", "--from", "runs/l16"])
    assert read_sweep(args).folder == Path("runs/l16_transfer/cifar10")
