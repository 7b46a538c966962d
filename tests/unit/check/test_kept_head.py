"""``--check`` compares the classes of a head that is kept with those of the data, as the run does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines import finetune
from pipelines.pack import cli as pack
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.models.init import initial_state
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata

MODEL = ModelConfig(variant="mu/8", img_size=16)
HALF = (0.5, 0.5, 0.5)
CONFIG = """\
name: kept
duration: 2 steps
global_batch_size: 4
precision: fp32
data: {shards: mine/train}
optim: {name: sgd, lr: 0.1}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a packed set of cats and dogs."""
    folder = tmp_path_factory.mktemp("kept")
    for index in range(8):
        path = folder / "photos" / ("cats", "dogs")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * index, dtype=np.uint8)).save(path)
    words = ["folder", str(folder / "photos"), "--out", str(folder / "mine"), "--workers", "1", "--duplicates", "keep"]
    assert pack.main(words) == 0
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.mark.parametrize("kind", ["file", "run"])
@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("cats", "dogs"), ""),
        (("dogs", "cats"), "init.head: keep: output 0 is"),
        (("cats", "dogs", "owls"), "init.head: keep: the head has 3 outputs, the data 2 classes"),
    ],
)
def test_classes_are_compared(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    names: tuple[str, ...],
    problem: str,
) -> None:
    monkeypatch.chdir(place)
    weights = tmp_path / "run" / "checkpoints" / "step-00000002" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    (weights.parent / "COMPLETE.json").write_text("{}")
    about = WeightsMetadata.of(
        MODEL, len(names), HALF, HALF, class_names=names, class_ids=names, eval_transform=EvalTransformConfig()
    )
    save_weights(weights, initial_state(MODEL, len(names), 0), about)
    source = weights if kind == "file" else tmp_path / "run"
    words = ["--config", "config.yaml", "--from", str(source), "init.head=keep", f"output_dir={tmp_path}", "--check"]
    if kind == "run":
        words += ["model.variant=mu/8", "model.img_size=16"]
    code = finetune.main(words)
    shown = capsys.readouterr()
    assert (code, problem in shown.err) == (2 if problem else 0, True), shown.err
    assert finetune.main([word.replace("=keep", "=replace") for word in words]) == 0
