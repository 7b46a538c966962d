"""The manifest for Kubernetes: against the published schema, and what its rules do with each exit code."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from pipelines.__main__ import main
from pipelines.k8s.cli import job_set, parser, stop_s
from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.distributed.watchdog import EXIT_HUNG

SCHEMA = Path(__file__).with_name("jobset_v0.12.0.yaml")
WORDS = ["k8s", "--image", "registry.example.com/vit:1", "--namespace", "research", "--ranks-per-node", "8"]
WORDS += ["--config", "configs/pretrain/vit_l16_i21k_90ep.yaml", "--cluster", "configs/cluster/64xa100_80.yaml"]
ON_VOLUMES = ["--volume", "data:/data", "--volume", "runs:/runs"]
PATHS = ["output_dir=/runs", "data.shards=/data/train", "evaluation.sets.val.shards=/data/val"]
EVERYTHING = ["--host-volume", "/mnt/nvme:/nvme", "--resource", "cpu=96", "--node-selector", "gpu=a100"]
EVERYTHING += ["--secret", "s3", "--workdir", "/runs"]


def documents(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the JobSet."""
    args = parser().parse_intermixed_args([*WORDS[1:], *ON_VOLUMES, *PATHS, *words])
    found = job_set(args)
    return found.config_map, found.job_set


def job_of(jobs: dict[str, Any]) -> dict[str, Any]:
    (replicated,) = jobs["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_the_published_schema_accepts_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *ON_VOLUMES, *PATHS, *EVERYTHING]) == 0
    config, jobs = yaml.safe_load_all(capsys.readouterr().out)
    validator = Draft202012Validator(yaml.safe_load(SCHEMA.read_text()))
    validator.validate(jobs)
    assert (config["kind"], jobs["apiVersion"]) == ("ConfigMap", "jobset.x-k8s.io/v1alpha2")
    for change in ({"completions": "8"}, {"backofLimit": 0}, {"template": {"spec": {}}}):
        wrong = deepcopy(jobs)
        job_of(wrong).update(change)
        with pytest.raises(ValidationError):
            validator.validate(wrong)


def outcome(jobs: dict[str, Any], code: int) -> str:
    """The effect of an exit code: the first rule of the Job that matches, then of the JobSet, as in their API."""
    job = job_of(jobs)
    if code == 0:
        return "done"
    rules = job["podFailurePolicy"]["rules"]
    assert {rule["onExitCodes"]["operator"] for rule in rules} == {"In"} and job["backoffLimit"] == 0
    action = next((rule["action"] for rule in rules if code in rule["onExitCodes"]["values"]), "Count")
    if action == "Ignore":
        return "pod again"
    reason = {"FailJob": "PodFailurePolicy", "Count": "BackoffLimitExceeded"}[action]
    policy = jobs["spec"]["failurePolicy"]
    return next((rule["action"] for rule in policy["rules"] if reason in rule["onJobFailureReasons"]), "RestartJobSet")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, "done"),
        (2, "FailJobSet"),
        (75, "pod again"),
        *((crash, "RestartJobSet") for crash in (1, EXIT_HUNG, 137, 143)),
    ],
)
def test_what_follows_an_exit_code(code: int, expected: str) -> None:
    assert outcome(documents()[1], code) == expected


def test_pods_ranks_and_names_fit_each_other() -> None:
    config, jobs = documents("cluster.phase_limits_s.save=600", *EVERYTHING)
    job = job_of(jobs)
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (8, 8, "Indexed")
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never", "or podFailurePolicy is refused"
    assert pod["terminationGracePeriodSeconds"] == 900 + 900 + 600, "a batch, a step and the save"
    assert container["resources"]["limits"] == {"cpu": "96", "nvidia.com/gpu": "8"}
    names = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"]}
    assert names == {container["name"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == volumes.keys() and mounts["shm"] == "/dev/shm"
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    (replicated,) = jobs["spec"]["replicatedJobs"]
    # JobSet's API: <jobSet.name>-<spec.replicatedJob.name>-<job-index>-<pod-index>.<subdomain>
    assert values["MASTER_ADDR"] == "vit-l16-i21k-90ep-{}-0-0.vit-l16-i21k-90ep".format(replicated["name"])
    assert values["VIT_PRETRAIN_JOB_ID"] == jobs["metadata"]["name"]
    command = " ".join(container["command"])
    assert "pipelines.k8s.node --nodes 8 --ranks 8 --start-s 1800 -- -m pretrain.run --config" in command


def test_the_pods_get_the_config_that_was_checked(tmp_path: Path) -> None:
    config = documents("optim.lr=2e-3")[0]
    path = tmp_path / "config.yaml"
    path.write_text(config["data"]["config.yaml"])
    resolved = load_experiment(path)
    assert check(resolved, world=64), "all settings are given there, which must not make one of them wrong"
    experiment = resolved.experiment
    assert experiment.cluster.num_devices == 64 and experiment.optim.lr == 2e-3
    assert stop_s(experiment) == 3600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cluster.num_devices=auto"], "cluster.num_devices is auto"),
        (["--ranks-per-node", "7"], "not a multiple of --ranks-per-node 7"),
        (["cluster.num_devices=24", "--ranks-per-node", "3"], "24"),
        (["--name", "my_run"], "'my_run' cannot name a JobSet"),
        (["data.shards=data/train"], "data.shards: data/train is relative; .*--workdir"),
        (["data.shards=/elsewhere/train"], "data.shards: /elsewhere/train is on no volume .*--volume"),
        (["output_dir=/nvme", "--host-volume", "/mnt/nvme:/nvme"], "output_dir: /nvme is a node's own folder"),
        (["checkpoint.fast={}"], "checkpoint.fast.folder: /dev/shm is deleted with its pod"),
        (["--volume", "more:/runs/"], "two volumes are mounted at /runs"),
        (["--from", "/runs/first"], "--from belongs to --stage finetune"),
        (["--resource", "nvidia.com/gpu=4"], "--resource nvidia.com/gpu is --ranks-per-node already"),
        (["data.shards=https://me:secret@host/train"], "the config has credentials, .*--secret"),
    ],
)
def test_what_would_not_work_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "job.yaml"
    assert main([*WORDS, *ON_VOLUMES, *PATHS, *words, "--out", str(out)]) == 2
    assert not out.exists()
    assert re.search(message, capsys.readouterr().err), message


def test_a_node_s_own_disk_takes_fast_checkpoints(tmp_path: Path) -> None:
    words = ["--host-volume", "/mnt/nvme:/nvme", "checkpoint.fast={folder: /nvme}"]
    pod = job_of(documents(*words)[1])["template"]["spec"]
    assert {"hostPath": {"path": "/mnt/nvme", "type": "Directory"}, "name": "volume-2"} in pod["volumes"]
