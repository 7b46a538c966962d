"""No word on a command line makes a command crash: it answers, or says in a line what is wrong with it."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain import run
from tests.command import ROOT
from tests.unit.fuzz.bounded import outcome

WORDS = (
    *(
        "",
        "-",
        "--",
        "x",
        "-x",
        "--x",
        "--out",
        "--json",
        "--from",
        "--config",
        "nowhere.yaml",
        "folder",
        "file",
        "/dev/null",
    ),
    *(
        "a=b",
        "=",
        "a.b.c=1",
        "optim.lr=",
        "optim.lr=1e400",
        "seed=[",
        "name={",
        "\x1b[31m",
        "é",
        "caf\udce9",
        "a" * 5000,
    ),
    *("-1", "0", "1e308", "99999999999999999999", "nan", "..", "runs/*", "http://127.0.0.1:1/x", "http://[x", "pipe:x"),
    *(
        "s3://",
        "file:///nowhere",
        "$(x)",
        "--help=1",
        "--seeds=x",
        "--workers=0",
        "--workers=-1",
        "--price=nan",
        "--k=0",
    ),
)
STAGES = ("plan", "verify", "status", "report", "chain", "average", "export", "collect", "bench-data", "dedup", "pack")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that has an empty file and an empty folder, so that nothing is found and nothing is lost."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()


def quietly(action: object, words: list[str]) -> str:
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        found = outcome(lambda: action(words), words)  # type: ignore[operator]
    assert "Traceback" not in errors.getvalue(), (words, errors.getvalue())
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_stages(stage: str) -> None:
    rng = random.Random(f"words of {stage}")
    for _ in range(60):
        quietly(main, [stage, *(rng.choice(WORDS) for _ in range(rng.randrange(5)))])


def test_the_job() -> None:
    rng = random.Random("words of the job")
    config = str(ROOT / "configs/pretrain/demo_digits.yaml")
    for _ in range(60):
        what = rng.choice(["--check", "--print-config", "--simulate=2"])
        start = ["--config", rng.choice([config, config, "file", "folder", "/dev/null", "nowhere.yaml"])]
        quietly(run.main, [*start, what, *(rng.choice(WORDS) for _ in range(rng.randrange(4)))])
