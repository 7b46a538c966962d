"""``python -m pipelines doctor``: this machine itself, and every level and exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.doctor import cli as doctor
from pipelines.doctor import software, speed
from pipelines.nodes.checks import AMBER, GREEN, RED, Finding

SOFT_PROBES = ["python", "torch", "deepspeed", "versions", "gpus", "links", "memory", "shared_memory", "space", "clock"]
SOFT_PROBES += ["locked_memory", "infiniband", "decoding", "open_files", "slurm"]


@pytest.mark.slow
def test_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything is really asked: two processes meet, a product is computed, a file is written."""
    code = doctor.main(["--run", str(tmp_path), "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {finding["probe"]: finding for finding in found}
    assert {*SOFT_PROBES, "disk", "gemm", "memory_bandwidth", "all_reduce"} <= by_name.keys()
    for name in ("python", "torch", "deepspeed", "gemm", "memory_bandwidth", "all_reduce"):
        assert by_name[name]["level"] == GREEN, by_name[name]
    assert by_name["gemm"]["values"]["rate"] > 0 and by_name["all_reduce"]["values"]["rate"] > 0
    levels = {finding["level"] for finding in found}
    assert code == (2 if RED in levels else 1 if AMBER in levels else 0)


@pytest.mark.parametrize(
    ("rate", "known", "level"),
    [(250, 312, GREEN), (150, 312, AMBER), (40, 312, RED), (0.01, None, GREEN)],
)
def test_against_a_known_rate(rate: float, known: float | None, level: str) -> None:
    finding = speed.against("gemm", f"{rate}", rate, known, speed.GEMM_LEVELS, "look at it")
    assert finding.level == level
    assert (finding.remedy == "look at it") == (level in (AMBER, RED))


@pytest.mark.parametrize(("levels", "code"), [([GREEN, GREEN], 0), ([GREEN, AMBER], 1), ([AMBER, RED, GREEN], 2)])
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], levels: list[str], code: int
) -> None:
    findings = [Finding(f"p{index}", level, "text [with brackets]", "remedy") for index, level in enumerate(levels)]
    monkeypatch.setattr(doctor, "examine", lambda args: iter(findings))
    assert doctor.main([]) == code
    out = capsys.readouterr().out
    assert "text [with brackets]" in out and "→ remedy" in out and f"{levels.count(RED)} red" in out


def test_a_missing_extension_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert software.decoding().level == GREEN, "setup.sh builds it and installs isal"
    monkeypatch.setattr("pretrain.data.images.restarts._native", None)
    finding = software.decoding()
    assert finding.level == AMBER and "without the C extension for restart markers images" in finding.text


def test_gpus_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU driver here")
    assert doctor.main(["--quick", "--gpus", "8", "--run", str(tmp_path)]) == 2
    assert "8 GPUs needed, but there is no nvidia-smi" in capsys.readouterr().out


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.resource, "getrlimit", lambda kind: (1024, 1 << 20))
    finding = software.open_files()
    assert finding.level == AMBER and finding.remedy == "ulimit -n 4096 before the start"


def test_a_disk_that_cannot_be_written(tmp_path: Path) -> None:
    assert speed.disk(tmp_path).level in (GREEN, AMBER)
    assert speed.disk(Path("/proc/nothing")).level == RED
