"""Files of a real run: the same numbers in metrics.jsonl and in the files of Weights & Biases, and they are true."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from pretrain.telemetry.metrics import TRAIN, read_metrics
from tests.command import Commands
from tests.integration.small_run import pretrain

BLOCK, FULL, LAST = 32_768, 1, 4
VAL = "shards: data/demo/upstream/val, num_samples: 187"
OF_THE_NETWORK = {"bytes_fetched", "fetch_retries", "cache_hit_rate"}  # see test_remote_job.py
OF_OTHER_SIZES = {
    "image_size",
    "patch_size",
    "sequence_length",
    "batch_size",
    "padding",
}  # test_resolution.py, test_native_jobs.py
NEW = (
    "shards: data/demo/downstream/val, num_samples: 466, "
    "train_shards: data/demo/downstream/train, num_train_samples: 50, transform: {resize: squash}"
)
EVALUATED = [
    f"evaluation.sets={{val: {{{VAL}}}, multi: {{kind: multilabel, {VAL}}}, "
    f"few: {{kind: few_shot, shots: [1, 10], {NEW}}}, knn: {{kind: knn, {NEW}}}}}",
    "evaluation.every=6 steps",
    "optim.ema_decay=0.9",
]


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of an offline file: LevelDB's log format (blocks of 32 KiB) behind seven bytes of its own."""
    data, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # a block's end that is too short for a header is padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            yield record
            record = b""


def wandb_history(folder: Path) -> dict[int, dict[str, float]]:
    """Step → what the offline file holds of it."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    rows: dict[int, dict[str, float]] = {}
    for data in wandb_records(path):
        record = messages.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.setdefault(record.history.step.num, {}).update(row)
    return rows


def test_metrics_of_a_run(command: Commands, digits: None, tmp_path: Path) -> None:
    settings = ["telemetry.wandb={project: vit, mode: offline, tags: [test]}", "telemetry.peak_tflops=0.1", *EVALUATED]
    done = command.run(*pretrain("torchrun", tmp_path, *settings), check=True)
    run = tmp_path / "run"
    lines = read_metrics(run / "metrics.jsonl")
    assert set(lines[12]) - {"kind", "step", "time"} == set(TRAIN) - OF_THE_NETWORK - OF_OTHER_SIZES
    weights = load_file(run / "checkpoints/step-00000012/weights.safetensors")
    norm = math.sqrt(sum(float((tensor.astype("float64") ** 2).sum()) for tensor in weights.values()))
    assert lines[12]["weight_norm"] == pytest.approx(norm, rel=1e-6)
    for line in lines.values():
        assert 0 < line["mfu"] < 1 and 0 <= line["data_wait"] <= 1 and line["slowest_rank"] in (0, 1)
        assert line["images_per_s"] == pytest.approx(2 * line["images_per_s_per_device"])
        assert 0.05 < line["memory_gib"] < 8 and line["slowest_rank_ratio"] >= 1
    written = wandb_history(run)
    assert sorted(step for step, row in written.items() if "train/loss" in row) == sorted(lines)
    for step, line in lines.items():
        assert written[step]["train/loss"] == line["loss"] and written[step]["train/mfu"] == line["mfu"]
    assert written[12]["eval/val/top1"] == read_metrics(run / "metrics.jsonl", "eval")[12]["val/top1"]
    measured = read_metrics(run / "metrics.jsonl", "eval")
    assert sorted(measured) == [6, 12], "on schedule, and at the end"
    names = {name for name in measured[12] if "/" in name and not name.endswith(("num_samples", "_std"))}
    own = {"val/top1", "val/top5", "multi/precision_at_1", "multi/mAP", "multi/num_classes"}
    own |= {"few/1_shot", "few/10_shot", "knn/knn_top1", "knn/knn_top5"}
    assert names == own | {name.replace("/", "_ema/") for name in own}, "of the Polyak average too"
    assert measured[12]["multi/precision_at_1"] == measured[12]["val/top1"]
    assert "12/12  loss" in done.stdout and " left" in done.stdout


def test_an_unknown_peak_is_said_once_and_no_mfu_is_written(command: Commands, digits: None, tmp_path: Path) -> None:
    done = command.run(*pretrain("alone", tmp_path), check=True)
    assert done.stdout.count("MFU is not reported: the peak of 'cpu' is not known") == 1
    assert all("mfu" not in line for line in read_metrics(tmp_path / "run/metrics.jsonl").values())
