"""Each probe of a node finds what it is for; nvidia-smi is a script that prints what the driver would."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.nodes import checks
from pipelines.nodes.checks import AMBER, GREEN, RED
from tests.command import Commands

A100 = "NVIDIA A100-SXM4-80GB, 81920, 3"


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "level", "says"),
    [
        (f"printf '{A100}\\n{A100}\\n'", GREEN, "2 × NVIDIA A100-SXM4-80GB 81920 MiB"),
        (f"echo '{A100}'", RED, "2 GPUs needed, the driver shows 1 × NVIDIA A100"),
        (f"printf '{A100}\\nNVIDIA H100, 81559, 3\\n'", RED, "of several kinds"),
        (f"printf '{A100}\\nNVIDIA A100-SXM4-80GB, 81920, 70000\\n'", AMBER, "70000 MiB of one are in use"),
        ("echo 'Unable to determine the device handle' >&2; exit 15", RED, "Unable to determine"),
        ("sleep 20", RED, "does not answer"),
    ],
)
def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, level: str, says: str) -> None:
    driver(tmp_path, monkeypatch, script)
    monkeypatch.setattr(checks, "DRIVER_TIMEOUT_S", 0.5 if script.startswith("sleep") else 30)
    found = checks.gpus(2)
    assert (found.level, says in found.text) == (level, True), found


def test_gpus_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert checks.gpus(8).level == RED and checks.gpus(0).level == GREEN


@pytest.mark.parametrize(("needed", "level"), [(0.001, GREEN), (1e9, RED)])
def test_memory_and_space(tmp_path: Path, needed: float, level: str) -> None:
    assert checks.memory(needed).level == level
    assert checks.space(tmp_path / "runs" / "not yet there", needed).level == level


def test_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SHARED_WAIT_S", 0.3)
    assert checks.shared_folder(tmp_path, "abc").level == RED
    checks.token_path(tmp_path).parent.mkdir()
    checks.token_path(tmp_path).write_text("xyz")
    assert checks.shared_folder(tmp_path, "abc").level == RED
    assert checks.shared_folder(tmp_path, "xyz").level == GREEN


def adapters(folder: Path, monkeypatch: pytest.MonkeyPatch, ports: list[tuple[str, str]]) -> None:
    """The kernel's folder of InfiniBand adapters, each with one port of this state and rate."""
    for number, (state, rate) in enumerate(ports):
        port = folder / "infiniband" / f"mlx5_{number}" / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text(f"{rate}\n")
    monkeypatch.setattr(checks, "ADAPTERS", folder / "infiniband")
    monkeypatch.setattr(checks, "DRIVER", folder / "driver")
    monkeypatch.setattr(checks, "PEER_MEMORY", folder / "nvidia_peermem")


HDR, FDR = ("4: ACTIVE", "200 Gb/sec (4X HDR)"), ("4: ACTIVE", "56 Gb/sec (4X FDR)")


@pytest.mark.parametrize(
    ("ports", "level", "says"),
    [
        ([], GREEN, "no adapter"),
        ([HDR, HDR], GREEN, "2 × 200 Gb/sec (4X HDR)"),
        ([HDR, ("1: DOWN", "10 Gb/sec")], GREEN, "1 × 200"),
        ([("1: DOWN", "10 Gb/sec")], AMBER, "no port is active; down: mlx5_0:1"),
        ([HDR, FDR], AMBER, "1 × 56 Gb/sec"),
    ],
)
def test_infiniband(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ports: list[tuple[str, str]], level: str, says: str
) -> None:
    adapters(tmp_path, monkeypatch, ports)
    found = checks.infiniband()
    assert (found.level, says in found.text) == (level, True), found


def test_gpus_that_cannot_use_infiniband_directly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapters(tmp_path, monkeypatch, [HDR])
    checks.DRIVER.mkdir()
    assert (checks.infiniband().level, "nvidia_peermem" in checks.infiniband().remedy) == (AMBER, True)
    checks.PEER_MEMORY.mkdir()
    assert checks.infiniband().level == GREEN


@pytest.mark.parametrize(
    ("ports", "limit", "level"),
    [([], 64 << 10, GREEN), ([HDR], 64 << 10, AMBER), ([HDR], checks.resource.RLIM_INFINITY, GREEN)],
)
def test_locked_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ports: list[tuple[str, str]], limit: int, level: str
) -> None:
    adapters(tmp_path, monkeypatch, ports)
    monkeypatch.setattr(checks.resource, "getrlimit", lambda kind: (limit, limit))
    assert checks.locked_memory().level == level


@pytest.mark.parametrize(("ahead", "level"), [(0, GREEN), (60, RED), (-60, RED)])
def test_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, level: str) -> None:
    real = checks.time.time
    monkeypatch.setattr(checks.time, "time", lambda: real() + ahead)
    found = checks.clock(tmp_path)
    assert found.level == level and found.values["skew_s"] == pytest.approx(abs(ahead), abs=1)


def test_shards(command: Commands, tmp_path: Path) -> None:
    packing = ["--classes", "0-1", "--shard-samples", "100", "--out", tmp_path / "set"]
    command.run("python", "-m", "pipelines", "pack", "digits", *packing, check=True)
    folder = tmp_path / "set" / "train"
    assert checks.shards(folder).level == GREEN and checks.shards(folder).values["mb_per_s"] > 0
    last = sorted(folder.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:-512])
    assert (checks.shards(folder).level, last.name in checks.shards(folder).text) == (RED, True)
    last.unlink()
    assert "No such file" in checks.shards(folder).text
    assert checks.shards(tmp_path / "nothing").level == RED
