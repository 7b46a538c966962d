"""The probe batch takes its samples as training does, and never ends the run that it protects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.config.loader import load_experiment
from pretrain.models.families.registry import build_model
from tests.faults.job import checkpoint_steps, job
from tests.integration.small_run import PRETRAIN, SMALL
from tests.pool import Pool
from tests.unit.data.sets import NUM_CLASSES, colour_of, labels_of, write_set
from tests.unit.data.workers.test_reader import damage

SIZES = [20, 20]
NUM = sum(SIZES)


def settings(shards: Path, num_samples: int, *more: str) -> list[str]:
    """A job on a coded set instead of the digits; the batch is as small as the set."""
    of_set = [f"data.shards={shards}", f"data.num_samples={num_samples}", f"data.num_classes={NUM_CLASSES}"]
    small = ["global_batch_size=4", "data.lanes=2", "duration=8 steps", "evaluation.sets={}"]
    return [*of_set, *small, "cluster.backend=accelerate", *more]


def run(pool: Pool, folder: Path, given: list[str]) -> dict[str, Any]:
    return pool.run(job, str(folder), given)[0]


def marker(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"run/checkpoints/step-{step:08d}/COMPLETE.json").read_text())


def loss_of(folder: Path, given: list[str], step: int, samples: list[int]) -> float:
    """The mean cross-entropy of these samples under the weights of a checkpoint, from the colours that they have."""
    config = load_experiment(PRETRAIN, overrides=[*SMALL, *given]).experiment
    model = build_model(config.model, config.num_outputs).eval()
    model.load_state_dict(load_file(folder / f"run/checkpoints/step-{step:08d}/weights.safetensors"))
    colours = torch.tensor([colour_of(sample) for sample in samples], dtype=torch.float32)
    images = ((colours / 255 - 0.5) / 0.5)[:, :, None, None].expand(-1, -1, 8, 8)
    labels = torch.tensor([labels_of(sample)[0] for sample in samples])
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(images), labels))


def drop_list(folder: Path, *keys: str) -> Path:
    path = folder / "drop.jsonl"
    path.write_text("".join(json.dumps({"shard": "shard-000000.tar", "key": key}) + "\n" for key in keys))
    return path


@pytest.mark.parametrize("case", ["intact", "bad", "dropped", "few"])
def test_the_probe_is_the_loss_of_the_samples_that_training_draws(pool1: Pool, tmp_path: Path, case: str) -> None:
    num = 5 if case == "few" else NUM
    shards = write_set(tmp_path / "set", [num] if case == "few" else SIZES)
    more, samples = ["data.max_bad_sample_rate=0.1"], list(range(8))
    if case == "bad":
        damage(shards, 1, 2)
        samples = [0, 3, 3, 3, 4, 5, 6, 7]  # training puts the next good one of the shard in their place
    if case == "dropped":
        damage(shards, 2)
        path = drop_list(tmp_path, "000000002", "000000005")
        more, num, samples = [f"data.drop_list={path}"], NUM - 2, [0, 1, 3, 4, 6, 7, 8, 9]
    if case == "few":
        samples = list(range(5))
    given = settings(shards, num, *more)
    done = run(pool1, tmp_path, given)
    assert done["outcome"] == "complete", done["reason"]
    assert checkpoint_steps(tmp_path / "run") == [4, 8]
    found = marker(tmp_path, 8)
    assert found["probe_samples"] == samples
    assert found["probe_loss"] == pytest.approx(loss_of(tmp_path, given, 8, samples), rel=1e-5)
    warned = [line for line in done["said"] if "probe batch" in line]
    assert len(warned) == (1 if case == "bad" else 0), warned


def test_a_subset_is_probed_by_its_own_samples(pool1: Pool, tmp_path: Path) -> None:
    shards = write_set(tmp_path / "set", SIZES)
    given = settings(shards, NUM, "data.subset=50 %", "duration=40 steps", "checkpoint.every=40 steps")
    assert run(pool1, tmp_path, given)["outcome"] == "complete"
    samples = marker(tmp_path, 40)["probe_samples"]
    assert len(samples) == 8 and samples != list(range(8))
    assert marker(tmp_path, 40)["probe_loss"] == pytest.approx(loss_of(tmp_path, given, 40, samples), rel=1e-5)


def test_a_sample_that_goes_bad_between_a_save_and_the_resume(pool1: Pool, tmp_path: Path) -> None:
    shards = write_set(tmp_path / "set", SIZES)
    given = settings(shards, NUM, "data.max_bad_sample_rate=0.1", "resume.allow_changes=[duration]")
    assert run(pool1, tmp_path, [*given, "duration=4 steps"])["outcome"] == "complete"
    damage(shards, 2)
    done = run(pool1, tmp_path, given)
    assert (done["outcome"], done["step"]) == ("complete", 8), done["reason"]
    assert any("not compared" in line and "other samples" in line for line in done["said"])
    assert not any("starting from" in line for line in done["said"]), "it resumed"


def test_a_probe_that_cannot_be_read_is_a_warning_on_every_rank(pool2: Pool, tmp_path: Path) -> None:
    """The first shard has no good sample at all; the few samples of this run come from the second one."""
    shards = write_set(tmp_path / "set", [8, 400])
    damage(shards, *range(8))
    given = settings(shards, 408, "duration=1 steps", "optim.schedule.warmup=0 steps", "checkpoint.every=1 steps")
    done = run(pool2, tmp_path, given)
    assert done["outcome"] == "complete", done["reason"]
    assert marker(tmp_path, 1)["probe_loss"] is None
    assert any("without a probe batch" in line for line in done["said"])
    resumed = run(pool2, tmp_path, given)
    assert (resumed["outcome"], resumed["step"]) == ("complete", 1), resumed["reason"]
    assert any("the checkpoint has none" in line for line in resumed["said"])
