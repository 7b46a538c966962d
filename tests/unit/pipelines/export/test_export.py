"""The export stage: what it writes is checked by the program it is for, appears whole or not at all, and says no."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.__main__ import main
from pipelines.export import verification
from pipelines.weights.network import built
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.engine.checkpoint_folder import FORMAT_VERSION, seal
from pretrain.errors import CheckpointError
from pretrain.models.exchange.formats import load_any
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata
from tests.golden.exchange import NAMES, SHORT_SIDE, images_of, logits_of, metadata_of, model_of

OUT = {"timm": "folder", "hf": "folder", "npz": "w.npz", "onnx": "m.onnx"}


def weights(folder: Path, transform: EvalTransformConfig | None = SHORT_SIDE, **changes: Any) -> tuple[Path, Any]:
    """A weights file of ours and its model."""
    model = model_of(**({"img_size": 32, "gelu": "tanh"} | changes))
    path = folder / "weights.safetensors"
    save_weights(path, model.state_dict(), metadata_of(model, transform))
    return path, model


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = main(["export", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("format", OUT)
def test_each_format_is_written_and_checked(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = weights(tmp_path)
    out = tmp_path / "exports" / OUT[format]
    code, stdout, stderr = run(capsys, source, "--format", format, "--out", out)
    assert code == 0, stderr
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in stdout
    who = {"timm": "timm", "hf": "transformers", "npz": "timm's reader of .npz", "onnx": "onnxruntime"}[format]
    assert f"checked: forward pass by {who}: outputs differ by at most" in stdout
    beside = {"npz": ["w.npz", "w.npz.json"]}.get(format, [OUT[format]])
    assert sorted(path.name for path in out.parent.iterdir()) == beside, "nothing temporary stays"
    if format != "onnx":
        assert "the same bit for bit" in stdout
        state, metadata = load_any(out, format)
        assert metadata.class_names == NAMES
        transform = metadata.eval_transform
        assert transform is not None and transform.resize_filter == SHORT_SIDE.resize_filter
        assert transform.before_crop(32) == SHORT_SIDE.before_crop(32)
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_exports_go_on_into_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = weights(tmp_path)
    for format in ("npz", "timm", "hf", "npz"):
        out = tmp_path / f"after-{source.name}-{format}{'.npz' if format == 'npz' else ''}"
        assert run(capsys, source, "--format", format, "--out", out)[0] == 0
        source = out
    state, metadata = load_any(source)
    rebuilt = built(state, metadata)
    images = images_of(model)
    torch.testing.assert_close(logits_of(rebuilt, images), logits_of(model, images), rtol=0, atol=0)


def checkpoint(folder: Path, transform: EvalTransformConfig | None) -> Path:
    """A run folder with one complete checkpoint."""
    step = folder / "run" / "checkpoints" / "step-00000012"
    step.mkdir(parents=True)
    source, _ = weights(folder, transform)
    source.rename(step / "weights.safetensors")
    config = {
        "name": "run",
        "duration": "1 steps",
        "global_batch_size": 2,
        "model": {"variant": "mu/8"},
        "data": {
            "shards": "none", "num_samples": 2, "num_classes": 2,
            "eval_transform": {"resize": "squash", "resize_filter": "bicubic_aa"},
        },
        "optim": {"lr": 0.1},
    }  # fmt: skip
    (step / "config.resolved.yaml").write_text(json.dumps(config))
    files = {name: seal(step / name) for name in ("weights.safetensors", "config.resolved.yaml")}
    (step / "COMPLETE.json").write_text(json.dumps({"format": FORMAT_VERSION, "step": 12, "files": files}))
    return folder / "run"


@pytest.mark.parametrize(
    ("transform", "mode"), [(SHORT_SIDE, "center"), (None, "squash")], ids=["said by the weights", "by the config"]
)
def test_a_run_exports_its_newest_checkpoint(
    transform: EvalTransformConfig | None, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path, transform)
    code, stdout, stderr = run(capsys, folder, "--format", "timm", "--out", tmp_path / "out")
    assert code == 0, stderr
    assert "weights from" in stdout and "step-00000012" in stdout
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["crop_mode"] == mode


@pytest.mark.parametrize("format", OUT)
def test_a_tanh_head_is_refused_or_dropped(format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = weights(tmp_path, representation_size=20)
    out = tmp_path / OUT[format]
    code, _, stderr = run(capsys, source, "--format", format, "--out", out)
    if format in ("timm", "hf"):
        assert code == 2 and "model.representation_size: 20 cannot be expressed" in stderr and "--drop-head" in stderr
        assert not out.exists()
    else:
        assert code == 0, stderr
    code, stdout, stderr = run(capsys, source, "--format", format, "--out", out, "--drop-head", "--force")
    assert code == 0, stderr
    assert "outputs differ by at most" in stdout
    if format != "onnx":
        state, metadata = load_any(out)
        assert metadata.num_classes == 0 and metadata.model.representation_size is None
        assert not any(name.startswith(("head", "pre_logits")) for name in state)


def test_bfloat16_weights_are_written_as_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(img_size=32).bfloat16()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), metadata_of(model))
    assert run(capsys, tmp_path / "w.safetensors", "--format", "hf", "--out", tmp_path / "out")[0] == 0
    assert load_any(tmp_path / "out")[0]["head.weight"].dtype == torch.float32


def test_what_stands_there_is_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = weights(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    code, _, stderr = run(capsys, source, "--format", "timm", "--out", out)
    assert code == 2 and "exists; give --force" in stderr and (out / "mine.txt").exists()
    assert run(capsys, source, "--format", "timm", "--out", out, "--force")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "weights.safetensors"]


@pytest.mark.parametrize("format", OUT)
def test_a_failed_check_publishes_nothing(
    format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model that the check compares with gets another weight behind the writer's back."""
    source, _ = weights(tmp_path)
    sample = verification._sample

    def another(model: Any, metadata: WeightsMetadata) -> tuple[torch.Tensor, torch.Tensor]:
        images, outputs = sample(model, metadata)
        return images, outputs + 1.0

    monkeypatch.setattr(verification, "_sample", another)
    if format != "onnx":  # the forward pass of the model that is read back goes through the same function
        monkeypatch.setattr(verification, "_reread", lambda *given: "skipped")
    code, _, stderr = run(capsys, source, "--format", format, "--out", tmp_path / OUT[format])
    assert code == 2 and "computes something else" in stderr and "nothing was published" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_a_tensor_that_changed_on_the_way_is_named(tmp_path: Path) -> None:
    source, model = weights(tmp_path)
    state, metadata = load_any(source)
    (tmp_path / "out").mkdir()
    from pretrain.models.exchange.timm import write_timm

    write_timm(tmp_path / "out", state, metadata)
    state["norm.bias"] = state["norm.bias"] + 1e-7
    with pytest.raises(CheckpointError, match=r"tensor norm\.bias is not what was written"):
        verification.verify(tmp_path / "out", "timm", state, metadata, model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--format", "npz", "--out", "folder"], "must end in .npz"),
        (["--format", "onnx", "--out", "w.npz"], "must end in .onnx"),
        (["--format", "timm", "--out", "w.npz"], "writes a folder"),
        (["--format", "timm", "--out", "x", "--accept-erf-gelu"], "--accept-erf-gelu belongs to --format npz"),
        (["--format", "timm", "--out", "x", "--resize", "squash", "--crop-fraction", "0.9"], "crop_fraction belongs"),
        (["--format", "timm", "--out", "x", "--resize-filter", "area"], "resize_filter: area has no counterpart"),
        (["--format", "timm", "--out", "x", "--crop-fraction", "1.5"], "less than or equal to 1"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = weights(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run(capsys, source, *options)
    assert code == 2 and words in stderr, stderr
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_what_is_not_known_must_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = weights(tmp_path, None)
    code, _, stderr = run(capsys, source, "--format", "hf", "--out", tmp_path / "out")
    assert code == 2 and "state it with --resize, --resize-filter, --crop-fraction" in stderr
    said = ["--resize", "squash", "--resize-filter", "bilinear_aa"]
    assert run(capsys, source, "--format", "hf", "--out", tmp_path / "out", *said)[0] == 0
    settings = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"height": 32, "width": 32} and settings["resample"] == 2


def test_erf_gelu_in_an_npz_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, _ = weights(tmp_path, gelu="erf")
    out = tmp_path / "w.npz"
    code, _, stderr = run(capsys, source, "--format", "npz", "--out", out)
    assert code == 2 and "model.gelu: erf" in stderr and "--accept-erf-gelu" in stderr
    assert run(capsys, source, "--format", "npz", "--out", out, "--accept-erf-gelu")[0] == 0
    assert load_any(out)[1].gelu == "erf", "the file beside says so"


def test_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = weights(tmp_path)
    code, stdout, _ = run(capsys, source, "--format", "timm", "--out", tmp_path / "out", "--json")
    result = json.loads(stdout)
    assert code == 0 and result["num_classes"] == 11 and len(result["checked"]) == 2
    assert result["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("missing", ["none", "none.safetensors"])
def test_nothing_there(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, stderr = run(capsys, tmp_path / missing, "--format", "timm", "--out", tmp_path / "out")
    assert code == 2 and "does not exist" in stderr
