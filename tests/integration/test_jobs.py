"""The two entry files under every launcher, with the same result; and their answers to bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pretrain.telemetry.metrics import read_metrics
from tests.command import Commands
from tests.integration.small_run import FINETUNE, PRETRAIN, SMALL, curve, launcher, pretrain, verdict

SMALL_FINETUNE = [*SMALL, "model.img_size=16"]
FILES = {"config.resolved.yaml", "environment.json", "metrics.jsonl", "checkpoints", "exit.json", "log.txt"}


def finetune(kind: str, folder: Path, *settings: str, ranks: int = 2) -> list[str]:
    script = ["pipelines/finetune.py", "--config", FINETUNE, *SMALL_FINETUNE, f"output_dir={folder}", "name=run"]
    return [*launcher(kind, ranks), *script, *settings]


@pytest.fixture(scope="module")
def pretrained(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a small pretraining with plain python, one rank."""
    folder = tmp_path_factory.mktemp("pretrained")
    commands = Commands()
    commands.run(*pretrain("alone", folder), check=True)
    commands.close()
    return folder / "run"


@pytest.mark.parametrize("kind", ["deepspeed", pytest.param("torchrun", marks=pytest.mark.slow), "accelerate"])
def test_pretraining_under_each_launcher(command: Commands, pretrained: Path, tmp_path: Path, kind: str) -> None:
    command.run(*pretrain(kind, tmp_path), check=True)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= FILES
    assert json.loads((run / "environment.json").read_text())["world_size"] == 2
    assert verdict(run)["outcome"] == "complete"
    ours, alone = curve(run), curve(pretrained)
    assert sorted(ours) == sorted(alone) and [row[3] for row in ours.values()] == [row[3] for row in alone.values()]
    for step in ours:
        assert ours[step][0] == pytest.approx(alone[step][0], rel=1e-5)


@pytest.mark.slow
def test_fsdp2_under_torchrun_resumes_with_deepspeed(command: Commands, digits: None, tmp_path: Path) -> None:
    """The first part of a run fully sharded with torch alone, the rest with DeepSpeed on one rank."""
    part = ["cluster.backend=fsdp2", "duration=8 steps", "optim.schedule.name=constant"]
    rest = ["optim.schedule.name=constant", "resume.allow_changes=[duration]"]
    command.run(*pretrain("torchrun", tmp_path / "a", *part), check=True)
    command.run(*pretrain("alone", tmp_path / "a", *rest), check=True)
    command.run(*pretrain("alone", tmp_path / "b", "optim.schedule.name=constant"), check=True)
    ours, alone = curve(tmp_path / "a/run"), curve(tmp_path / "b/run")
    assert [row[3] for row in ours.values()] == [row[3] for row in alone.values()] and len(ours) == 12
    for step in ours:
        assert ours[step][0] == pytest.approx(alone[step][0], rel=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("alone", marks=pytest.mark.slow),
        pytest.param("deepspeed", marks=pytest.mark.slow),
        pytest.param("torchrun", marks=pytest.mark.slow),
        "accelerate",
    ],
)
def test_finetuning_under_each_launcher(command: Commands, pretrained: Path, tmp_path: Path, kind: str) -> None:
    ranks = 1 if kind == "alone" else 2
    done = command.run(*finetune(kind, tmp_path, "--from", str(pretrained), ranks=ranks), check=True)
    assert "resized: pos_embed from grid (4, 4) to (8, 8)" in done.stdout, done.stdout
    assert "head.weight" in done.stdout, "every new and every unused tensor is listed"
    assert verdict(tmp_path / "run")["outcome"] == "complete"
    losses = [row[0] for row in curve(tmp_path / "run").values()]
    assert len(losses) == 12 and losses[0] == pytest.approx(1.609437, abs=1e-5), "a zero head starts at ln 5"


def test_finetuning_with_zero3_and_another_pooling_equals_ddp(
    command: Commands, pretrained: Path, tmp_path: Path
) -> None:
    weights = next(pretrained.glob("checkpoints/*12/weights.safetensors"))
    sharded = ["cluster.zero_stage=3", "cluster.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"]
    common = ["--from", str(weights), "model.pool=norm_avg"]
    command.run(*finetune("torchrun", tmp_path / "a", *common), check=True)
    command.run(*finetune("torchrun", tmp_path / "b", *common, "cluster.backend=deepspeed", *sharded), check=True)
    ddp, zero3 = curve(tmp_path / "a/run"), curve(tmp_path / "b/run")
    assert [row[3] for row in ddp.values()] == [row[3] for row in zero3.values()]
    for step in ddp:
        assert zero3[step][0] == pytest.approx(ddp[step][0], rel=1e-5)


def test_data_processes_change_nothing(command: Commands, pretrained: Path, tmp_path: Path) -> None:
    command.run(*pretrain("alone", tmp_path, "cluster.num_workers=2"), check=True)
    assert curve(tmp_path / "run") == curve(pretrained)


BAD = {
    "misspelt key": (["optim.lrr=1e-3"], "optim.lrr", "optim.lr"),
    "ranks": (["cluster.num_devices=7"], "7", "ranks"),
    "no data": (["data.shards=data/nowhere"], "data/nowhere", "pipelines pack"),
    "classes": (["data.num_classes=7"], "num_classes", "5"),
    "patch": (["model.img_size=9"], "img_size", "9"),
    "weights": (["init.from=nowhere.safetensors"], "nowhere.safetensors", "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_few_lines(command: Commands, digits: None, tmp_path: Path, case: str) -> None:
    settings, *words = BAD[case]
    refused = command.run("python", "pretrain/run.py", "--config", PRETRAIN, f"output_dir={tmp_path}", *settings)
    assert refused.returncode == 2, refused.stdout
    assert all(word in refused.stderr for word in words), refused.stderr
    assert "Traceback" not in refused.stderr and len(refused.stderr.splitlines()) <= 8
    assert not list(tmp_path.iterdir()), "nothing is half-written"


def test_a_large_job_on_paper(command: Commands) -> None:
    h14 = ["python", "pretrain/run.py", "--config", "configs/pretrain/vit_h14_jft300m.yaml"]
    shown = command.run(*h14, "--simulate", "512", "cluster.micro_batch_size=8", check=True).stdout
    assert "rank 0 of 512" in shown and "all_reduce      1.2 GiB per step: gradients" in shown
    refused = command.run(*h14, "--simulate", "100")
    assert refused.returncode == 2 and "valid world sizes: 1, 2, 4, 8" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert command.run(*h14, "--simulate", "8", "--check").returncode == 2


def test_check_and_print_config(command: Commands, tmp_path: Path) -> None:
    checked = command.run(
        "python", "pretrain/run.py", "--config", PRETRAIN, "--check", "data.shards=nowhere", check=True
    )
    assert "data not found, not checked" in checked.stdout
    refused = command.run(
        "python", "pretrain/run.py", "--config", PRETRAIN, "--check", "--require-data", "data.shards=nowhere"
    )
    assert refused.returncode == 2 and "nowhere" in refused.stderr
    printed = command.run("python", "pretrain/run.py", "--config", PRETRAIN, "--print-config", "seed=5", check=True)
    again = tmp_path / "again.yaml"
    again.write_text(printed.stdout)
    same = command.run("python", "pretrain/run.py", "--config", again, "--print-config", "--local_rank=0", check=True)
    assert same.stdout == printed.stdout and "seed: 5" in printed.stdout


def test_the_polyak_average_is_evaluated_saved_and_fine_tuned_from(
    command: Commands, pretrained: Path, tmp_path: Path
) -> None:
    done = command.run(*pretrain("alone", tmp_path / "a", "optim.ema_decay=0.9"), check=True)
    assert "val/top1" in done.stdout and "val_ema/top1" in done.stdout
    assert list((tmp_path / "a/run").glob("checkpoints/step-00000012/weights_ema.safetensors"))
    source = ["--from", str(tmp_path / "a/run"), "init.weights=ema"]
    tuned = command.run(*finetune("alone", tmp_path / "b", *source), check=True)
    assert "step-00000012/weights_ema.safetensors" in tuned.stdout
    refused = command.run(*finetune("alone", tmp_path / "c", "--from", str(pretrained), "init.weights=ema"))
    assert refused.returncode == 2 and "has no Polyak average" in refused.stderr


@pytest.mark.slow
def test_the_average_of_schedule_free_is_evaluated_and_exported(
    command: Commands, digits: None, tmp_path: Path
) -> None:
    settings = ["optim.name=schedule_free", "optim.schedule.name=constant", "optim.lr=0.01", "evaluation.every=6 steps"]
    done = command.run(*pretrain("torchrun", tmp_path, *settings, "cluster.zero_stage=2"), check=True)
    assert "val/top1" in done.stdout and "val_ema" not in done.stdout
    run = tmp_path / "run"
    measured = read_metrics(run / "metrics.jsonl", "eval")[12]
    split = ["python", "-m", "pipelines", "evaluate", "data/demo/upstream/val", "--from", run, "--json"]
    exported = json.loads(command.run(*split, check=True).stdout)
    for metric in ("top1", "top5"):
        assert exported[metric] == pytest.approx(measured[f"val/{metric}"], abs=1e-4)
    weights = load_file(run / "checkpoints/step-00000012/weights.safetensors")
    norm = math.sqrt(sum(float((tensor.astype("float64") ** 2).sum()) for tensor in weights.values()))
    assert read_metrics(run / "metrics.jsonl")[12]["weight_norm"] != pytest.approx(norm, rel=1e-4), "of those trained"


def test_a_reader_that_has_heard_enough_is_no_error(command: Commands) -> None:
    script = f"python pretrain/run.py --config {PRETRAIN} --print-config | head -1; exit ${{PIPESTATUS[0]}}"
    done = command.run("bash", "-c", script)
    assert done.stdout.startswith("# vit-pretrain ") and done.stderr == "", done.stderr
    assert done.returncode in (0, 141)  # 0 where the pipe took all of it
