"""The completion script, in a real bash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.command import ROOT


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "vit-pretrain.bash"
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("pipelines.__main__.tell", lambda text, **_: written.append(text))
        assert main(["--print-completion", "bash"]) == 0
    path.write_text("\n".join(written))
    return path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["pre"], {"predict", "pretrain"}),
        (["export", "--form"], {"--format"}),
        (["export", "--format", "h"], {"hf"}),
        (["finetune", "--fr"], {"--from"}),
        (["plan", "--config", "conf"], {"configs"}),
        (["pack", "digits"], {"digits"}),
    ],
)
def test_bash_completes(script: Path, typed: list[str], offered: set[str]) -> None:
    words = " ".join(["vit-pretrain", *typed])
    ask = f"""source {script}
COMP_WORDS=({words}); COMP_CWORD={len(typed)}; COMP_LINE="{words}"; COMP_POINT=${{#COMP_LINE}}
$(complete -p vit-pretrain | sed 's/.*-F \\([^ ]*\\).*/\\1/') vit-pretrain {typed[-1]} 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {word.rstrip("/ ") for word in done.stdout.split()} == offered


def test_a_shell_without_completion_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["fish"], []):
        assert main(["--print-completion", *words]) == 2
        assert capsys.readouterr().err == "error: --print-completion takes one shell: bash, zsh, tcsh\n"
