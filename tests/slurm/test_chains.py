"""Many jobs on a real Slurm: the fine-tuning array, the whole chain; and what is refused within seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.slurm import starts
from pretrain.telemetry.metrics import read_metrics
from tests.integration.small_run import FINETUNE, PRETRAIN, verdict
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ONE_GPU, STEPS, TINY, pretrain, reached

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY_FINETUNE = [
    "model.variant=mu/2",
    "duration=4 steps",
    "optim.schedule.warmup=1 steps",
    "telemetry.tensorboard=false",
    "checkpoint.every=4 steps",
    "cluster.num_workers=0",
]
CHAIN = """\
name: chain_test
pack:
  arguments: [digits, --classes, 0-4, --holdout, "0.2", --shard-samples, "100"]
  out: {folder}/data
  tasks: 2
  sbatch: [--cpus-per-task=1, --mem=1G, "--output={folder}/pack-%A_%a.out"]
pretrain:
  script: slurm/pretrain_vit_h.sh
  config: configs/pretrain/demo_digits.yaml
  cluster: configs/cluster/cpu.yaml
  overrides: {pretrain}
  sbatch: [--nodes=2, {one_gpu}, "--output={folder}/pretrain-%j.out"]
finetune:
  configs: [configs/finetune/demo_digits.yaml]
  lrs: ["0.01", "0.03"]
  overrides: {finetune}
  sbatch: [{one_gpu}, "--output={folder}/finetune-%A_%a.out"]
"""


def ended(cluster: Cluster, job: str) -> set[str]:
    """The states of all tasks of an array at its end."""

    def states() -> set[str] | None:
        lines = cluster.run("scontrol", "show", "job", "-o", job).stdout.splitlines()
        found = {line.partition("JobState=")[2].split()[0] for line in lines if line}
        alive = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}
        return None if found & alive else found

    return cluster.until(states, f"array {job} to end", timeout_s=600)


def test_the_sweep_waits_for_what_it_starts_from(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    parent = cluster.submit("--nodes=1", "--wrap=sleep 1")
    after = [f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes", "--array=0-1", *ONE_GPU]
    words = ["slurm/finetune.sh", straight, FINETUNE, "lrs=0.01,0.03", *TINY_FINETUNE, f"output_dir={tmp_path}"]
    array = cluster.submit(*after, *words)
    assert ended(cluster, array) == {"COMPLETED"}, [cluster.log(f"{array}_{task}") for task in (0, 1)]
    for lr in ("0.01", "0.03"):
        run = tmp_path / f"demo_digits_lr{lr}"
        assert verdict(run)["outcome"] == "complete"
        assert f"lr: {lr}" in (run / "config.resolved.yaml").read_text()


def test_the_trials_of_a_sweep_are_an_array(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    """The job behind the array finds its trials done, and runs the best of them alone."""
    sets = {"dev": {"shards": "data/demo/downstream/val", "num_samples": 466}}
    sweep = {"grid": {"optim.lr": [1e-7, 0.003]}, "dev": {"evaluation.sets": sets}, "num_seeds": 1}
    config = tmp_path / "digits.yaml"
    config.write_text(json.dumps({"extends": str(Path(FINETUNE).resolve()), "sweep": sweep}))
    settings = [*TINY_FINETUNE, "--out", tmp_path / "out"]
    array = cluster.submit("--array=0-1", *ONE_GPU, "slurm/sweep.sh", straight, config, *settings)
    after = [f"--dependency=afterany:{array}", "--cpus-per-task=1", "--mem=1G"]
    words = ["slurm/stage.sh", "sweep", "--config", config, "--from", straight, *settings]
    job = cluster.submit(*after, *words)
    assert ended(cluster, array) == {"COMPLETED"}, [cluster.log(f"{array}_{task}") for task in (0, 1)]
    before = {name: (tmp_path / "out" / name / "metrics.jsonl").read_bytes() for name in ("dev_lr1e-07", "dev_lr0.003")}
    assert cluster.wait(job)["JobState"] == "COMPLETED", cluster.log(job)
    assert all((tmp_path / "out" / name / "metrics.jsonl").read_bytes() == text for name, text in before.items())
    result = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [trial["name"] for trial in result["trials"]] == list(before) and len(result["runs"]) == 1
    beyond = cluster.submit("--array=2", *ONE_GPU, "slurm/sweep.sh", straight, config, *settings)
    assert ended(cluster, beyond) == {"FAILED"}
    assert "--trial 2: the sweep's trials are 0 to 1" in cluster.log(f"{beyond}_2")


def test_evaluation_on_two_ranks(cluster: Cluster, straight: Path, tmp_path: Path) -> None:
    """The job measures what the run itself measured at its end."""
    two = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
    words = ["data/demo/upstream/val", "--from", straight, "--device", "cpu", "--out", tmp_path / "out"]
    job = cluster.submit(*two, "slurm/evaluate.sh", *words)
    assert cluster.wait(job)["JobState"] == "COMPLETED", cluster.log(job)
    measured = read_metrics(straight / "metrics.jsonl", "eval")[STEPS]["val/top1"]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["top1"] == pytest.approx(measured)


def test_a_failed_parent_takes_its_children_along(cluster: Cluster, tmp_path: Path) -> None:
    parent = cluster.submit("--nodes=1", "--wrap=exit 3")
    after = [f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes", "--array=0-1", *ONE_GPU]
    array = cluster.submit(*after, "slurm/finetune.sh", tmp_path, FINETUNE, "lrs=0.01,0.03")
    assert ended(cluster, array) == {"CANCELLED"}


def test_the_whole_chain(cluster: Cluster, tmp_path: Path) -> None:
    """Pack → merge → pretrain, requeued once on the way → sweep; called again in the middle and at the end."""
    shards = f"{tmp_path}/data"
    settings = [*TINY, f"output_dir={tmp_path}", "name=run", f"data.shards={shards}/train"]
    settings.append(f"evaluation.sets.val.shards={shards}/val")
    text = CHAIN.format(
        folder=tmp_path,
        pretrain=json.dumps(settings),
        finetune=json.dumps([*TINY_FINETUNE, f"output_dir={tmp_path}/transfer"]),
        one_gpu=", ".join(ONE_GPU),
    )
    (tmp_path / "chain.yaml").write_text(text)
    (tmp_path / "runs").mkdir()
    call = ["python", "-m", "pipelines", "chain", "--config", tmp_path / "chain.yaml"]
    env = {"CHAINS_FOLDER": str(tmp_path / "runs")}
    first = cluster.run(*call, env=env).stdout
    jobs = {line.split()[0]: line.split()[2].rstrip(",") for line in first.splitlines()}
    assert list(jobs) == ["pack", "merge", "pretrain", "finetune"]
    assert cluster.run(*call, env=env).stdout.count("is on its way") == 4, "called again: nothing twice"

    cluster.until(lambda: reached(tmp_path / "run", 3), "step 3", jobs["pretrain"], timeout_s=600)
    cluster.run("scancel", "--batch", "--signal=USR1", jobs["pretrain"])
    assert ended(cluster, jobs["finetune"]) == {"COMPLETED"}, [
        path.read_text() for path in sorted(tmp_path.glob("*.out"))
    ]
    assert len(starts.starts(tmp_path / "run")) == 2, "the signal to the batch shell went on to the ranks"
    for run in ("run", "transfer/demo_digits_lr0.01", "transfer/demo_digits_lr0.03"):
        assert verdict(tmp_path / run)["outcome"] == "complete"
    last = cluster.run(*call, env=env).stdout.splitlines()
    assert [line.split() for line in last] == [[name, "done"] for name in jobs]


REFUSED = {
    "no config": (["configs/pretrain/nothing.yaml"], {}, "cannot read the config"),
    "a wrong key": ([PRETRAIN, "optim.lrr=1"], {}, "optim.lrr: unknown key; did you mean optim.lr?"),
    "GPUs that do not fit": ([PRETRAIN, "global_batch_size=63"], {}, "63 is odd"),
    "no shards": ([PRETRAIN, "data.shards=data/nothing"], {}, "no shards in data/nothing"),
    "no site file": ([PRETRAIN], {"SITE_FILE": "slurm/nothing.sh"}, "no site file at slurm/nothing.sh"),
}


def test_bad_input_is_refused_within_seconds(cluster: Cluster, tmp_path: Path) -> None:
    """The job ends with 2 and the reason, before a node has done anything."""
    env = {"CLUSTER": "configs/cluster/cpu.yaml"}
    jobs = {}
    for what, (words, more, _) in REFUSED.items():
        script = ["slurm/pretrain_vit_h.sh", *words, f"output_dir={tmp_path}", "cluster.num_workers=0"]
        jobs[what] = cluster.submit("--nodes=1", *ONE_GPU, *script, env={**env, **more})
    jobs["3 of 4 nodes"] = pretrain(cluster, tmp_path, nodes="3")
    says = {what: text for what, (_, _, text) in REFUSED.items()}
    says["3 of 4 nodes"] = "3 ranks cannot share 8 lanes of a global batch of 64; valid world sizes:"
    for what, job in jobs.items():
        record = cluster.wait(job)
        assert (record["JobState"], record["ExitCode"], record["Restarts"]) == ("FAILED", "2:0", "0"), what
        assert says[what] in cluster.log(job) and "Traceback" not in cluster.log(job), cluster.log(job)
    assert not (tmp_path / "run").exists()


SCRIPTS = (
    "pretrain_vit_h.sh",
    "pretrain_vit_l.sh",
    "finetune.sh",
    "sweep.sh",
    "pack_shards.sh",
    "evaluate.sh",
    "stage.sh",
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_sbatch_accepts_the_script(cluster: Cluster, script: str) -> None:
    nodes = ["--nodes=4"] if script.startswith("pretrain") else []
    memory = ["--mem=4G"] if script in ("pack_shards.sh", "stage.sh") else []
    done = cluster.run("sbatch", "--test-only", *nodes, *memory, f"slurm/{script}", check=False)
    assert done.returncode == 0 and "to start at" in done.stderr, done.stderr


def test_sbatch_refuses_more_nodes_than_there_are(cluster: Cluster) -> None:
    done = cluster.run("sbatch", "--test-only", "slurm/pretrain_vit_h.sh", check=False)
    assert done.returncode != 0 and "allocation failure" in done.stderr
