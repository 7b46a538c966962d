"""Installed versions against the ranges of pyproject.toml: packages really found on the path, of any version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.doctor import software
from pipelines.nodes.checks import AMBER, GREEN, RED
from pretrain.check.experiment import check
from pretrain.check.versions import check_library, outside_range
from pretrain.config.loader import load_experiment
from pretrain.errors import SetupError

ROOT = Path(__file__).resolve().parents[3]


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    """The record of a package, as pip writes it, before all others on the path."""
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_what_is_installed_here_is_allowed() -> None:
    assert outside_range() == [] and software.versions().level == GREEN
    check_library("deepspeed")


@pytest.mark.parametrize("version", ["0.16.9", "0.17.1", "0.17.5", "0.17.6", "0.18.0", "0.18.2", "0.19.3", "0.20.0"])
def test_a_deepspeed_that_trains_wrongly_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the check before a run, which --check prints, and by doctor; with Accelerate it does not matter."""
    install(tmp_path, monkeypatch, "deepspeed", version)
    resolved = load_experiment(ROOT / "configs/pretrain/demo_digits.yaml")
    with pytest.raises(SetupError, match=rf"deepspeed {re.escape(version)} is installed, .*0\.19\.4.* is needed"):
        check(resolved)
    assert check(resolved, backend="accelerate")
    assert software.deepspeed().level == RED


def test_another_package_outside_its_range_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "pillow", "9.5.0")
    finding = software.versions()
    assert finding.level == AMBER and "pillow 9.5.0 is installed" in finding.text
    assert finding.remedy.startswith("pip install 'pillow")
    assert [package.name for package in outside_range()] == ["pillow"]
