"""bench-data: what its figures mean, and that it measures a real set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines.__main__ import main
from pipelines.bench_data import cli as bench_data
from pipelines.bench_data.cli import STAGES, answer, device_rate, measure
from tests.unit.data.sets import experiment, write_set

TIMES = {"read": 100.0, "decode": 600.0, "augment": 280.0, "copy": 20.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "train", [30, 34], noise=True, image_format="jpeg")


def test_a_gpu_needs_its_rate_and_some_more() -> None:
    found = answer(TIMES, 2_000, cores=8, num_gpus=4)
    assert (found.images_per_second_per_worker, found.limit) == (pytest.approx(1000), "decode")
    assert found.num_workers == 3  # 2 processes, and a fifth more
    assert "cluster.num_workers: 3" in found.lines()[-2]
    assert "a node with 4 such GPUs needs 12 processes, this machine has 8 cores" in found.lines()[-1]


def test_enough_cores_need_no_remark_and_no_gpu_says_so() -> None:
    assert "num_workers" in answer(TIMES, 2_000, cores=12, num_gpus=4).lines()[-1]
    assert "--images-per-second" in answer(TIMES, None, cores=12, num_gpus=1).lines()[-1]


def test_every_stage_is_measured(folder: Path) -> None:
    config = experiment(folder, 64, data__train_transform={"randaugment": {}, "crop": "inception"})
    times = measure(config, 40)
    assert tuple(times) == STAGES
    assert all(spent > 0 for spent in times.values())
    assert times["augment"] > measure(experiment(folder, 64), 40)["augment"]


def test_the_devices_own_rate(folder: Path) -> None:
    assert device_rate(experiment(folder, 64, precision="fp32"), torch.device("cpu"), steps=1) > 0


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(
        f"name: x\nduration: 1 epoch\nglobal_batch_size: 16\nmodel: {{variant: mu/4, img_size: 8}}\n"
        f"data: {{shards: {folder}, num_samples: 64, num_classes: 7}}\noptim: {{lr: 1}}\n"
    )
    arguments = ["bench-data", "--config", str(config), "--num-images", "20", "--images-per-second", "100", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["microseconds"]) == set(STAGES) and found["num_workers"] >= 1
    assert main([*arguments[:5], "--images-per-second", "-1"]) == 2
    assert "not above 0" in capsys.readouterr().err
    assert bench_data.HEADROOM > 1
