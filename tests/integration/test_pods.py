"""The pods of a manifest as processes of this machine: stopped, made again as the rules say, and complete."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pretrain.telemetry.metrics import read_metrics
from tests.command import ROOT, Commands
from tests.integration.small_run import PRETRAIN, SMALL, curve, free_port, pretrain, verdict

CONFIG = "/etc/vit-pretrain/config.yaml"


def start_pods(command: Commands, manifest: Path, attempt: int) -> list[subprocess.Popen[str]]:
    """A process for each pod, with the manifest's own command and variables."""
    config, jobs = yaml.safe_load_all(manifest.read_text())
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    path = manifest.with_name("config.yaml")
    path.write_text(config["data"]["config.yaml"])
    words = [str(path) if word == CONFIG else word for word in container["command"]]
    env: dict[str, Any] = {entry["name"]: entry.get("value") for entry in container["env"]}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}  # the pods' network is the machine's
    env |= {"VIT_PRETRAIN_RESTART_COUNT": str(attempt), "NODE_NAME": "this machine"}
    pods = range(job["completions"])
    return [command.start(*words, env={**env, "JOB_COMPLETION_INDEX": str(index)}) for index in pods]


@pytest.mark.slow
def test_a_job_set_stops_and_resumes(command: Commands, digits: None, tmp_path: Path) -> None:
    long = [*SMALL, "duration=400 steps", "checkpoint.every=50 steps"]
    command.run(*pretrain("torchrun", tmp_path / "straight", *long), check=True)
    volumes = ["--volume", f"data:{ROOT}", "--volume", f"runs:{tmp_path}", "--workdir", str(ROOT)]
    settings = [*long, f"output_dir={tmp_path}", "name=run", "cluster.num_devices=2", "cluster.device=cpu"]
    words = ["--config", PRETRAIN, "--ranks-per-node", "1", "--image", "vit", "--namespace", "research", *volumes]
    manifest = tmp_path / "job.yaml"
    command.run("python", "-m", "pipelines", "k8s", *words, "--out", manifest, *settings, check=True)
    run, codes = tmp_path / "run", list[list[int]]()
    pods = start_pods(command, manifest, 0)
    while max(read_metrics(run / "metrics.jsonl"), default=0) < 5:
        assert all(pod.poll() is None for pod in pods), [pod.communicate() for pod in pods]
        time.sleep(0.02)
    (run / "STOP").touch()
    for _ in range(2):
        for pod in pods:
            pod.communicate(timeout=280)
        codes.append([pod.returncode for pod in pods])
        pods = start_pods(command, manifest, 0) if len(codes) == 1 else pods
    assert codes == [[75, 75], [0, 0]], "stopped, then complete"
    assert verdict(run)["outcome"] == "complete"
    assert curve(run) == curve(tmp_path / "straight/run")
    (claim,) = [json.loads(path.read_text()) for path in (run / "owners").glob("00000001.json")]
    assert (claim["job_id"], claim["restart_count"]) == ("run", 0)
