"""Arguments that all stages have in common."""

from __future__ import annotations

import pytest

from pipelines.__main__ import STAGES, main


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_option_is_refused_as_plain_text(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([stage, "--\x1b[31mred"])
    shown = capsys.readouterr().err
    assert left.value.code == 2
    assert f"python -m pipelines {stage}: error: " in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("stage", STAGES)
def test_help_ends_with_an_example(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([stage, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0
    assert f"python -m pipelines {stage} " in shown.partition("example")[2]
