"""Resolved configs of other versions: what is passed over, what is refused, and who is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain import __version__
from pretrain.config.loader import load_experiment, load_saved, read_settings, writer_of
from pretrain.errors import ConfigError

DIGITS = "configs/pretrain/demo_digits.yaml"


def saved(tmp_path: Path, old: str = "", new: str = "") -> Path:
    """A resolved config with one thing changed, as another version might have written it."""
    text = load_experiment(DIGITS).to_yaml()
    assert old in text
    path = tmp_path / "config.resolved.yaml"
    path.write_text(text.replace(old, new, 1) if old else text)
    return path


def test_a_config_of_this_version_is_read_as_it_is(tmp_path: Path) -> None:
    assert load_saved(saved(tmp_path)).experiment == load_experiment(DIGITS).experiment
    assert writer_of(saved(tmp_path)) == __version__


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cluster:\n", "cluster:\n  gone: 3\n"),
        ("telemetry:\n", "telemetry:\n  log_every_step: true\n"),
        ("  collective_timeout_s: ", "  collective_timeout_s: 1 #"),  # the limits below it are longer
    ],
)
def test_what_decides_no_result_is_passed_over(tmp_path: Path, old: str, new: str) -> None:
    path = saved(tmp_path, old, new)
    with pytest.raises(ConfigError):
        load_experiment(path)
    found = load_saved(path)
    assert found.digest == load_experiment(DIGITS).digest and found.experiment.cluster.stage == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("optim:\n", "optim:\n  lookahead: true\n", r"optim\.lookahead: unknown key"),
        ("version: 1", "version: 7", r"version"),
        ("seed: 0", "seed: [", r"not valid YAML"),
    ],
)
@pytest.mark.parametrize("writer", ["0.0.9", None])
def test_what_decides_it_is_refused_with_key_line_and_version(
    tmp_path: Path, old: str, new: str, message: str, writer: str | None
) -> None:
    path = saved(tmp_path, old, new)
    header = f"# vit-pretrain {__version__}\n"
    path.write_text(path.read_text().replace(header, f"# vit-pretrain {writer}\n" if writer else ""))
    named = writer or "an earlier version"
    with pytest.raises(ConfigError, match=rf"was written by {named} and is not valid in {__version__}: .*{message}"):
        load_saved(path)


def test_settings_can_be_shown_without_being_valid(tmp_path: Path) -> None:
    settings = read_settings(saved(tmp_path, "optim:\n", "optim:\n  lookahead: true\n"))
    assert settings["optim"]["lookahead"] is True and settings["duration"] == "400 steps" and settings["seed"] == 0
