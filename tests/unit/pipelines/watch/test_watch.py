"""``python -m pipelines watch``: what it shows of runs in every state, and that it ends with them."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.watch import cli as watch
from pretrain.engine.run_folder import COMPLETE, FATAL, Verdict
from pretrain.errors import ConfigError
from tests.unit.pipelines.run_folders import write_run


def test_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "done", verdict=Verdict(COMPLETE, "all steps done", 100))
    write_run(tmp_path / "ill", steps=range(1, 31), verdict=Verdict(FATAL, "no space", 30))
    going = write_run(tmp_path / "going", steps=range(1, 41))
    lease = {"job_id": "local", "restart_count": 0, "host": "h", "pid": 1, "heartbeat": time.time()}
    (going / "lock.json").write_text(json.dumps(lease))
    assert watch.main([str(tmp_path), "--once"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "complete" in rows["done"] and "100 / 100" in rows["done"] and "val/top1 0.5000" in rows["done"]
    assert "fatal" in rows["ill"] and "no space" in rows["ill"] and "30 / 100" in rows["ill"]
    assert "40 / 100" in rows["going"] and "30 s" in rows["going"]  # 60 steps of 0.5 s are left
    assert "128" in rows["going"] and "10%" in rows["going"]


def test_eighty_columns_show_every_total(tmp_path: Path) -> None:
    write_run(tmp_path / "vit_l16_imagenet21k", "duration=123_456 steps", verdict=Verdict(FATAL, "no space " * 9, 100))
    write_run(tmp_path / "demo", steps=range(1, 41))
    for width in (60, 80, 120, 160):
        console = Console(width=width, file=io.StringIO())
        console.print(watch.table(watch.look([tmp_path]), width))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert "100 / 123,456" in shown and "40 / 100" in shown, shown
        assert "vit_l16_imagenet21k" in shown and "…" not in shown, shown
        assert "time left" in shown and ("loss" in shown or width <= 80)


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run appears while ``watch`` sleeps, and the table shows it."""
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            write_run(tmp_path / "later", verdict=Verdict(COMPLETE, "all steps done", 100))

    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    monkeypatch.setattr(watch.time, "sleep", nap)
    monkeypatch.setattr(watch, "Console", lambda **settings: console)
    assert watch.main([str(tmp_path / "later"), "--interval", "0.25"]) == 0
    assert naps == [0.25, 0.25]
    assert "100 / 100" in console.file.getvalue()  # type: ignore[attr-defined]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        watch.main([str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match="is not a run folder"):
        watch.main([str(tmp_path)])
    with pytest.raises(ConfigError, match="--interval 0"):
        watch.main([str(tmp_path), "--interval", "0"])
