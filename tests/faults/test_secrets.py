"""A password and a signature in the address of a set are used, and are in no file that a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pretrain.config.loader import load_experiment
from pretrain.data.storage.packed_set import open_packed
from pretrain.errors import ConfigError
from tests.faults.job import checkpoint_steps, job
from tests.faulty_server import folder_server, running
from tests.pool import Pool
from tests.unit.data.sets import NUM_CLASSES, write_set

SECRET = "hUnter2xSECRETx"


def files_with_secret(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_a_run_keeps_no_secret_and_resumes(
    pool1: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "web/train", [20, 20])
    folder = tmp_path / "runs"
    with running(folder_server(tmp_path / "web")) as server:
        shards = f"{server.url}/train?X-Amz-Signature={SECRET}"
        settings = [f"data.shards={shards}", "data.num_samples=40", f"data.num_classes={NUM_CLASSES}"]
        settings += ["global_batch_size=4", "data.lanes=2", "evaluation.sets={}", "resume.allow_changes=[duration]"]
        settings += [f"cluster.cache.dir={tmp_path / 'cache'}"]
        first = pool1.run(job, str(folder), [*settings, "duration=4 steps"])[0]
        assert first["outcome"] == "complete", first["reason"]
        done = pool1.run(job, str(folder), [*settings, "duration=8 steps"])[0]
    assert (done["outcome"], done["step"]) == ("complete", 8), done["reason"]
    assert any("resuming" in line for line in done["said"])
    assert checkpoint_steps(folder / "run") == [4, 8]
    assert main(["report", str(folder / "run"), "--out", str(tmp_path / "out/report.html")]) == 0
    assert not files_with_secret(folder) and not files_with_secret(tmp_path / "out")
    assert not files_with_secret(tmp_path / "cache")
    assert not any(SECRET in line for line in [*first["said"], *done["said"]])
    assert "X-Amz-Signature=***" in (folder / "run/config.resolved.yaml").read_text()
    saved = load_experiment(folder / "run/config.resolved.yaml").experiment
    with pytest.raises(ConfigError, match="lacks its credentials"):
        open_packed(saved.data.sources[0].shards, saved.cluster)
    assert SECRET not in capsys.readouterr().out


def test_an_old_record_with_secrets_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs of older versions kept everything: a report and a status of them show nothing of it."""
    run = tmp_path / "run"
    run.mkdir()
    settings = ["data.shards=https://h/x", "evaluation.sets={}"]
    text = load_experiment("configs/pretrain/demo_digits.yaml", overrides=settings).to_yaml()
    (run / "config.resolved.yaml").write_text(text.replace("https://h/x", f"https://ann:{SECRET}@h/x"))
    command = ["python", "pretrain/run.py", f"data.shards=https://ann:{SECRET}@h/x"]
    launch = {"kind": "launch", "step": 0, "time": 1.0, "command": command, "world_size": 1}
    (run / "history.jsonl").write_text(json.dumps(launch) + "\n")
    (run / "environment.json").write_text(json.dumps({"command": command}))
    (run / "metrics.jsonl").write_text("")
    assert main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 0
    assert SECRET not in (tmp_path / "report.html").read_text()
    assert "https://***@h/x" in (tmp_path / "report.html").read_text()
    main(["status", str(run)])
    main(["status", str(run), "--json"])
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err


def test_an_error_about_a_place_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    for place in (
        f"https://ann:{SECRET}@127.0.0.1:1/x",
        f"ftp://ann:{SECRET}@h/x",
        f"http://127.0.0.1:1/x?sig={SECRET}",
    ):
        assert main(["verify", place]) != 0
    captured = capsys.readouterr()
    assert SECRET not in captured.out + captured.err and "***" in captured.err
