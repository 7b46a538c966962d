"""The meaning of outputs survives every way out: the answers are those of the run folder, and the library's.

The reference is transformers' own image-classification pipeline where there is one; elsewhere the run folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.__main__ import main
from pretrain.models.interop import save_weights
from pretrain.models.metadata import TargetScale
from tests.golden.exchange import NAMES, SQUASH, image_file, logits_of, metadata_of, model_of, our_input

COPIES = {"copy": "copied.safetensors", "timm": "timm", "hf": "hf", "npz": "w.npz"}
SCALE = TargetScale.of([30.0, -2.0, 0.0, 5.0, 1e3, 1, 1, 1, 1, 1, 7], [12.0, 0.5, 1.0, 3.0, 50.0, 1, 1, 1, 1, 1, 2])
MEANINGS: dict[str, dict[str, Any]] = {
    "softmax": {"objective": "softmax", "activation": "softmax", "precision": "bf16"},
    "sigmoid": {"objective": "sigmoid", "activation": "sigmoid", "precision": "fp32"},
    "numbers": {"objective": "regression", "activation": "none", "scale": SCALE, "precision": "fp32"},
    "names in common": {"objective": "softmax", "activation": "softmax", "class_ids": ("x",) * 11},
}


def answers(capsys: pytest.CaptureFixture[str], source: Path, photo: Path) -> tuple[dict[str, float], str]:
    capsys.readouterr()
    assert main(["predict", str(photo), "--from", str(source), "--format", "jsonl"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    return content.get("values") or {one["name"]: one["score"] for one in content["predictions"]}, captured.err


@pytest.mark.parametrize(
    ("way", "meaning"),
    [(way, meaning) for meaning in ("sigmoid", "numbers") for way in COPIES]
    + [("timm", "softmax"), ("hf", "softmax"), ("timm", "names in common")],
)
def test_a_copy_answers_as_the_run(way: str, meaning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, photo = model_of(img_size=32, gelu="tanh"), image_file(tmp_path, 57, 43)
    source, out = tmp_path / "weights.safetensors", tmp_path / COPIES[way]
    save_weights(source, model.state_dict(), metadata_of(model, SQUASH, **MEANINGS[meaning]))
    if way == "copy":
        shutil.copy(source, out)
    else:
        assert main(["export", str(source), "--format", way, "--out", str(out)]) == 0
    wanted, _ = answers(capsys, source, photo)
    if meaning == "sigmoid":  # torch's own, of the model itself
        assert max(wanted.values()) == pytest.approx(best_sigmoid(model, photo), abs=1e-5)
    found, said = answers(capsys, out, photo)
    assert "is assumed" not in said
    assert list(found) == list(wanted) and len(found) == (11 if meaning == "numbers" else 5)
    assert list(found.values()) == pytest.approx(list(wanted.values()), rel=1e-5, abs=1e-6)
    if way == "hf" and meaning != "names in common":
        theirs = transformers_answers(out, photo, "none" if meaning == "numbers" else None)
        assert set(found) <= set(theirs)
        close: dict[str, Any] = {"rel": 1e-3, "abs": 2e-2 if meaning != "numbers" else 0.5}  # pixels of another library
        assert [theirs[name] for name in found] == pytest.approx(list(found.values()), **close)


def test_transformers_reads_the_activation_of_a_timm_folder(tmp_path: Path) -> None:
    """By its wrapper of timm's models, which names classes by their ids."""
    model, photo = model_of(img_size=32, pool="norm_avg", class_token=False), image_file(tmp_path, 57, 43)
    source, out = tmp_path / "weights.safetensors", tmp_path / "timm"
    save_weights(source, model.state_dict(), metadata_of(model, SQUASH, **MEANINGS["sigmoid"]))
    assert main(["export", str(source), "--format", "timm", "--out", str(out)]) == 0
    theirs = transformers_answers(out, photo, None)
    assert max(theirs.values()) == pytest.approx(best_sigmoid(model, photo), abs=2e-2)
    assert sum(theirs.values()) != pytest.approx(1, abs=0.05)


def best_sigmoid(model: Any, photo: Path) -> float:
    pixels = our_input(photo, metadata_of(model, SQUASH))
    return float(logits_of(model, pixels).sigmoid().max())


def transformers_answers(folder: Path, photo: Path, function: str | None) -> dict[str, float]:
    from transformers import pipeline

    pipe: Any = pipeline("image-classification", model=str(folder), device="cpu", dtype=torch.float32)
    chosen = {} if function is None else {"function_to_apply": function}
    return {one["label"]: one["score"] for one in pipe(str(photo), top_k=len(NAMES), **chosen)}
