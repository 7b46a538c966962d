"""A run folder read from outside: every state, and what a kill leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from pipelines.__main__ import main
from pipelines.report.events import incidents
from pipelines.runs.run_record import RunRecord, find_runs
from pipelines.slurm import starts
from pipelines.terminal.output import duration
from pretrain.config.loader import load_experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.engine.run_folder import COMPLETE, RunFolder, Verdict, record_event
from pretrain.errors import ConfigError
from pretrain.models.init import initial_state
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata
from tests.unit.pipelines.run_folders import write_run

DIGITS = "configs/pretrain/demo_digits.yaml"


def write_metrics(run: Path, steps: range, **more: float) -> None:
    lines = [
        {
            "kind": "train",
            "step": step,
            "time": 1000.0 + step,
            "loss": 2.0,
            "step_s": 0.5,
            "images_per_s": 128.0,
            **more,
        }
        for step in steps
    ]
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def launched(run: Path) -> None:
    record_event(RunFolder(run).history, "launch", 30)


def beat(run: Path, phase: str, step: int = 3) -> None:
    (run / "heartbeats").mkdir(exist_ok=True)
    fields = {"rank": 0, "host": "node1", "pid": 1, "step": step, "phase": phase, "phase_s": 1.0, "count": 3}
    (run / "heartbeats" / "node-00000.json").write_text(json.dumps({"beats": [fields]}))


def lease(run: Path, age_s: float) -> None:
    owner = {"job_id": "7", "restart_count": 0, "host": "node1", "pid": 1, "heartbeat": time.time() - age_s}
    (run / "lock.json").write_text(json.dumps(owner))


def verdict(run: Path, outcome: str, reason: str = "", step: int = 3) -> None:
    (run / "exit.json").write_text(json.dumps({"outcome": outcome, "reason": reason, "step": step}))


def end(decision: str, reason: str = "the step left with 143 and no verdict", outcome: str = "crash") -> starts.End:
    return starts.End("7", 0, 2, 143, outcome, decision, reason, 1500.0)


def begun(step: int = 0, log: str = "", at: float = 1400.0) -> starts.Start:
    return starts.Start("7", 0, ("node1",), 8, 8, step, log, at)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda run: verdict(run, "complete"), "complete"),
        (lambda run: verdict(run, "fatal"), "fatal"),
        (lambda run: verdict(run, "requeue"), "stopped"),
        (lambda run: (lease(run, 1), beat(run, "step")), "running"),
        (lambda run: (lease(run, 1), beat(run, "start")), "starting"),
        (lambda run: (lease(run, 30), beat(run, "step")), "silent"),
        (lambda run: (lease(run, 600), beat(run, "step")), "crashed"),
        (lambda run: write_metrics(run, range(1, 3)), "crashed"),
        (lambda run: starts.append(run, begun()), "waiting"),
        (lambda run: starts.append(run, begun(at=time.time())), "starting"),
        (lambda run: (starts.append(run, begun()), starts.append(run, end("requeue"))), "waiting"),
        (lambda run: (starts.append(run, begun()), starts.append(run, end("restart"))), "starting"),
        (lambda run: (starts.append(run, begun()), starts.append(run, end("give_up"))), "crashed"),
        (lambda run: (verdict(run, "requeue"), starts.append(run, end("leave", outcome="fatal"))), "fatal"),
    ],
)
def test_state(tmp_path: Path, make: object, expected: str) -> None:
    make(tmp_path)  # type: ignore[operator]
    assert RunRecord.read(tmp_path).state == expected


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda run: beat(run, "step", step=47), 47),  # the lines end at step 40
        (lambda run: beat(run, "step", step=33), 40),  # nodes publish their heartbeats every 10 s
        (lambda run: beat(run, "start", step=0), 40),
        (lambda run: verdict(run, "requeue", step=44), 44),
        (lambda run: (verdict(run, "requeue", step=44), lease(run, 1)), 40),  # of the start before
        (lambda run: (launched(run), beat(run, "step", step=31)), 31),  # resumed from step 30
    ],
)
def test_the_newest_step_is_that_of_no_log_line_alone(tmp_path: Path, make: object, expected: int) -> None:
    write_metrics(tmp_path, range(10, 41, 10))
    make(tmp_path)  # type: ignore[operator]
    assert RunRecord.read(tmp_path).step == expected


def test_step_time_left_and_incidents(tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text(load_experiment(DIGITS, overrides=["duration=100 steps"]).to_yaml())
    write_metrics(tmp_path, range(1, 31))
    for entry in (begun(), end("requeue"), begun(step=20, at=1600.0)):
        starts.append(tmp_path, entry)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "resume", "step": 20, "time": 1700.0, "samples": 1280}) + "\n")
        file.write(
            json.dumps({"kind": "train", "step": 21, "time": 1800.0, "loss": 1.5, "step_s": 0.5, "bad_samples": 2})
        )
        file.write('\n{"kind": "train", "step": 22, "ti')
    record = RunRecord.read(tmp_path)
    assert (record.step, record.num_steps) == (21, 100), "it went back to the checkpoint of step 20"
    assert record.eta_s == pytest.approx(79 * 0.5)
    assert record.num_restarts == 1
    kinds = [(incident.kind, incident.step) for incident in incidents(record)]
    assert kinds == [("end", 2), ("restart", 20), ("resume", 20), ("bad_samples", 21)]


def test_the_last_error(tmp_path: Path) -> None:
    log = tmp_path / "job.out"
    log.write_text("step 1\nerror: an old one\nmore\nerror: rank 3 on node2: out of memory\nsrun: error: left\n")
    starts.append(tmp_path, begun(log=str(log)))
    starts.append(tmp_path, end("give_up"))
    assert RunRecord.read(tmp_path).last_error == "rank 3 on node2: out of memory"
    log.unlink()
    assert RunRecord.read(tmp_path).last_error == "the step left with 143 and no verdict"
    verdict(tmp_path, "fatal", "no space left on /scratch")
    assert RunRecord.read(tmp_path).last_error == "no space left on /scratch"
    verdict(tmp_path, "complete")
    assert RunRecord.read(tmp_path).last_error is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        verdict(tmp_path / name, "fatal", "no space left")
    write_metrics(tmp_path / "one", range(1, 4))
    assert len(find_runs(tmp_path)) == 2
    assert main(["status", str(tmp_path / "one")]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path / 'one'}: fatal" in text and "loss 2.0000, 128 images/s" in text and "no space left" in text
    assert main(["status", str(tmp_path), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["run"]).name for line in lines] == ["one", "two"] and lines[0]["step"] == 3


def test_copies_in_an_object_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest copy, and why a later one failed; a run without a mirror shows nothing about it."""
    problem = "step 100 is not in s3://bucket/runs/one/checkpoints: rank 1 on n2: HTTP 403"
    copies = [("copy", 50, {}), ("copy", 100, {"problem": problem})]
    write_run(tmp_path / "one", "checkpoint.mirror=s3://bucket/runs", happened=copies)
    write_run(tmp_path / "two", "checkpoint.mirror=s3://bucket/runs", steps=range(1, 2))
    write_run(tmp_path / "three", steps=range(1, 2))
    assert main(["status", str(tmp_path / "one")]) == 0
    told = capsys.readouterr().out
    assert "  mirror      step 50 in s3://bucket/runs/one/checkpoints, copied " in told and problem in told
    assert [(one.step, one.text) for one in incidents(RunRecord.read(tmp_path / "one")) if one.kind == "copy"] == [
        (100, problem)
    ]
    main(["status", str(tmp_path / "two")])
    assert "  mirror      no copy in s3://bucket/runs/two/checkpoints yet" in capsys.readouterr().out
    main(["status", str(tmp_path / "three")])
    assert "mirror" not in capsys.readouterr().out


@pytest.mark.parametrize(("made", "says"), [(False, "does not exist"), (True, "is not a run folder")])
def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], made: bool, says: str) -> None:
    path = tmp_path / "run"
    if made:
        path.mkdir()
    assert main(["status", str(path)]) == 2
    assert says in capsys.readouterr().err
    with pytest.raises(ConfigError, match=says):
        RunRecord.read(path)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (65, "1 min 5 s"), (7500, "2 h 5 min"), (90000, "1 d 1 h"), (2.25, "2.2 s"), (59.7, "1 min 0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("command", ["status", "watch", "report"])
def test_a_config_of_another_version_is_named_and_gone_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    run = write_run(tmp_path / "old", verdict=Verdict(COMPLETE, "all steps done", 100))
    text = (run / "config.resolved.yaml").read_text()
    (run / "config.resolved.yaml").write_text(text.replace("optim:\n", "optim:\n  lookahead: true\n"))
    out = tmp_path / "report.html"
    assert main([command, str(run), *(["--out", str(out)] if command == "report" else [])]) == 0
    said = capsys.readouterr().out + (out.read_text() if command == "report" else "")
    assert "complete" in said and ("100 of 100" in said or "100 / 100" in said)
    if command == "watch":
        assert "not valid in this version" in said
    else:
        assert "optim.lookahead: unknown key" in said and "was written by 0.1.0" in said


@pytest.mark.parametrize("arguments", [["predict", "IMAGE", "--from"], ["export", "--format", "timm", "--out", "x"]])
def test_a_stage_that_needs_the_config_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    model = ModelConfig(variant="mu/8", img_size=32)
    folder = tmp_path / "run/checkpoints/step-00000100"
    folder.mkdir(parents=True)
    about = WeightsMetadata.of(model, 5, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    save_weights(folder / "weights.safetensors", initial_state(model, 5, seed=0), about)
    config = load_experiment(DIGITS).to_yaml().replace("optim:\n", "optim:\n  lookahead: true\n")
    (folder / "config.resolved.yaml").write_text(config)
    weights = str(folder / "weights.safetensors")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    arguments = [str(tmp_path / "image.png") if word == "IMAGE" else word for word in arguments]
    place = [*arguments, weights] if arguments[-1] == "--from" else [arguments[0], weights, *arguments[1:]]
    assert main(place) == 2
    assert "optim.lookahead: unknown key" in capsys.readouterr().err
