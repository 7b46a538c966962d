"""A step that went non-finite on two ranks is kept and run again in one process, which names the tensor and the image.

Healthy steps are replayed too: their losses are those in the log.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.__main__ import main
from pipelines.sources.array_sets import encode_grey
from pretrain.engine.capture import captures_of
from pretrain.telemetry.metrics import read_metrics
from tests.faults.job import Faults, job
from tests.pool import Pool

PLANTED = "blocks.1.mlp.fc1"
SETTINGS = [
    "duration=8 steps",
    "model.drop_path=0.2",
    "model.dropout=0.1",
    "cluster.micro_batch_size=16",
    "guard.max_consecutive_skips=9",
]


def replay(words: list[str]) -> tuple[int, Any]:
    """The exit code of ``replay``, and its result or its error."""
    import contextlib
    import io

    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(["replay", *words])
    lines = out.getvalue().splitlines()
    return code, errors.getvalue() if code else json.loads(lines[-1]) if "--json" in words else lines


@pytest.fixture(scope="module")
def run(digits: None, pool2: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints at steps 4 and 8; a weight of the second block is far too large from step 7 on."""
    folder = tmp_path_factory.mktemp("replayed")
    done = pool2.run(job, str(folder), SETTINGS, Faults(scaled=(6, f"{PLANTED}.weight", 1e39)))[0]
    assert done["outcome"] == "complete", done["reason"]
    return folder / "run"


@pytest.mark.parametrize(("step", "kind", "begun"), [(2, "seed", 0), (6, "checkpoint", 4)])
def test_a_healthy_step_has_the_loss_of_the_log(run: Path, pool1: Pool, step: int, kind: str, begun: int) -> None:
    code, found = pool1.run(replay, [str(run), "--step", str(step), "--json"])[0]
    assert code == 0, found
    logged = read_metrics(run / "metrics.jsonl")[step]
    assert (found["from"]["kind"], found["from"]["step"]) == (kind, begun)
    assert found["loss"] == pytest.approx(logged["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(logged["grad_norm"], rel=1e-3)
    assert found["first"] is None and found["compared_steps"] == step - begun


@pytest.mark.parametrize("step", [7, 8])
def test_a_weight_that_overflows_is_named(run: Path, pool1: Pool, step: int) -> None:
    assert [path.name[:13] for path in captures_of(run)] == ["step-00000007", "step-00000008"]
    assert [(path / "slices").is_dir() for path in captures_of(run)] == [True, False], "no weight has changed"
    assert not math.isfinite(read_metrics(run / "metrics.jsonl")[step]["loss"])
    code, found = pool1.run(replay, [str(run), "--step", str(step), "--json"])[0]
    assert code == 0, found
    assert found["from"]["kind"] == "capture" and (found["ranks"], found["micro_batches"]) == (2, 2)
    first = found["first"]
    assert (first["phase"], first["tensor"]) == ("forward", f"output of {PLANTED}")
    assert (first["rank"], first["micro_batch"]) == (0, 0)
    assert not math.isfinite(found["loss"])


def test_the_image_is_named(pool2: Pool, pool1: Pool, tmp_path: Path) -> None:
    """Of 64 images one is white, and grey is 0 for the model: only the white patches overflow a weight of 1e38."""
    for number in range(64):
        folder = tmp_path / "images" / ("light" if number % 2 else "dark")
        folder.mkdir(parents=True, exist_ok=True)
        shade = 255 if number == 41 else 127
        (folder / f"{number:02d}.png").write_bytes(encode_grey(np.full((8, 8), shade, np.uint8)))
    assert main(["pack", "folder", str(tmp_path / "images"), "--out", str(tmp_path / "set")]) == 0
    shards = ["data.shards=" + str(tmp_path / "set/train"), "data.num_samples=64", "data.num_classes=2"]
    mean = f"data.mean={[127 / 255] * 3}"
    settings = [*SETTINGS[3:], *shards, mean, "evaluation.sets=null", "global_batch_size=64", "duration=2 steps"]
    done = pool2.run(job, str(tmp_path), settings, Faults(filled=(1, "patch_embed.proj.weight", 1e38)))[0]
    assert done["outcome"] == "complete", done["reason"]
    code, lines = pool1.run(replay, [str(tmp_path / "run"), "--step", "2"])[0]
    assert code == 0, lines
    (first,) = [line for line in lines if "first not finite" in line]
    assert "output of patch_embed.proj (forward, rank " in first
    (sample,) = [line for line in lines if line.startswith("  sample")]
    assert sample.endswith("(light/41.png)")


@pytest.mark.parametrize(
    ("step", "message"),
    [("0", "--step 0: the first step is 1"), ("99", "is not in the log")],
)
def test_steps_that_cannot_be_replayed(run: Path, pool1: Pool, step: str, message: str) -> None:
    code, error = pool1.run(replay, [str(run), "--step", step])[0]
    assert code == 2 and message in error
