"""The model card of an export: its programs run and agree, and its figures are the run's."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from pipelines.__main__ import main
from pretrain.models.interop import save_weights
from tests.golden.exchange import SHORT_SIDE, image_file, metadata_of, model_of
from tests.golden.test_exchange_meaning import MEANINGS
from tests.unit.pipelines.export.test_export import checkpoint

LIBRARIES = {"timm": ["timm", "transformers", "pipelines"], "hf": ["transformers", "pipelines"]}


def run_of(program: str) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(program, "README.md", "exec"), {})
    return shown.getvalue()


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", text)]


@pytest.mark.parametrize("format", LIBRARIES)
@pytest.mark.parametrize("meaning", ["softmax", "sigmoid", "numbers"])
def test_every_program_gives_the_same_answer(
    format: str, meaning: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(img_size=32, gelu="tanh")
    source = tmp_path / "weights.safetensors"
    save_weights(
        source, model.state_dict(), metadata_of(model, SHORT_SIDE, **{**MEANINGS[meaning], "precision": "fp32"})
    )
    image_file(tmp_path, 501, 333, "jpg")
    assert main(["export", str(source), "--format", format, "--out", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (tmp_path / "mine" / "README.md").read_text(), re.DOTALL)
    assert [library in program for library, program in zip(LIBRARIES[format], programs, strict=True)]
    *others, own = [run_of(program) for program in programs]
    for other in others:
        if meaning == "numbers":
            found = json.loads(other)
            values = [float(value) for value in re.findall(r": (-?[\d.e-]+)", own)]
            assert found == pytest.approx(values, rel=2e-2, abs=0.5)
        else:
            (index, score), (own_index, own_score) = numbers_in(other), numbers_in(own)
            assert index == own_index and score == pytest.approx(own_score, abs=2e-2)


@pytest.mark.parametrize("format", LIBRARIES)
def test_features_of_weights_without_a_head(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(img_size=32, gelu="tanh")
    save_weights(tmp_path / "w.safetensors", model.state_dict(), metadata_of(model, SHORT_SIDE))
    image_file(tmp_path, 40, 30, "jpg")
    out = tmp_path / "mine"
    assert main(["export", str(tmp_path / "w.safetensors"), "--format", format, "--out", str(out), "--drop-head"]) == 0
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert len(programs) == len(LIBRARIES[format]) - 1
    width = model.shape.embed_dim
    assert {run_of(program) for program in programs} == {f"torch.Size([1, {width}])\n"}


def test_results_are_those_of_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checkpoint(tmp_path, SHORT_SIDE)
    lines: list[dict[str, Any]] = [
        {"kind": "eval", "step": step, "val/top1": top1, "val/num_samples": 187, "seconds": 1.0}
        for step, top1 in ((4, 0.5), (12, 181 / 187), (16, 0.1))
    ]
    lines += [{"kind": "train", "step": step, "images_per_s": 100.0 * step, "step_s": 600.0} for step in (4, 8, 12)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    low, high = binomtest(181, 187).proportion_ci(method="wilson")
    assert "At step 12:" in text and f"| val/top1 | 96.79 % | {100 * low:.2f} … {100 * high:.2f} % |" in text
    assert "800 images/s, the median" in text and "- 2 hours of training" in text  # 12 steps of ten minutes
    assert "resize the short side to 36" in text and "[0.485, 0.456, 0.406]" in text and "learning rate 0.1" in text
