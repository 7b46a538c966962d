"""The list of stages, under both names of the command."""

from __future__ import annotations

import sys

import pytest

import pretrain
from pipelines.__main__ import STAGES, main


@pytest.mark.parametrize(("typed", "program"), [("/bin/vit-pretrain", "vit-pretrain"), ("x.py", "python -m pipelines")])
def test_the_user_reads_the_command_that_was_typed(
    typed: str, program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [typed])
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"vit-pretrain {pretrain.__version__} ")
    assert main(["predcit"]) == 2
    assert capsys.readouterr().err == f"error: unknown stage 'predcit'; did you mean {program} predict?\n"
    assert main([]) == 2
    assert f"usage: {program} STAGE" in capsys.readouterr().out
    for stage in ("status", "finetune"):
        with pytest.raises(SystemExit):
            main([stage, "--help"])
        shown = capsys.readouterr().out
        assert f"usage: {program} {stage}" in shown and f"{program} {stage} " in shown.partition("example")[2]


def test_every_stage_is_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in STAGES)
    assert max(map(len, listed.splitlines())) <= 100
