"""The average stage: the mean of every tensor, and only of weights that have one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.__main__ import main
from pretrain.models.interop import load_weights, save_weights
from tests.golden.exchange import SHORT_SIDE, metadata_of, model_of


def save(path: Path, scale: float, **changes: Any) -> Path:
    model = model_of(img_size=32, **changes)
    state = {name: tensor * scale for name, tensor in model.state_dict().items()}
    save_weights(path, state, metadata_of(model, SHORT_SIDE))
    return path


def test_the_mean_of_every_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [save(tmp_path / f"{scale}.safetensors", scale) for scale in (1.0, 2.0, 6.0)]
    out = tmp_path / "soups" / "mean.safetensors"
    assert main(["average", *map(str, sources), "--out", str(out)]) == 0
    mean, about = load_weights(out)
    one, also_about = load_weights(sources[0])
    assert about == also_about and mean.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(mean[name], tensor * 3.0, rtol=1e-6, atol=0)
    again = tmp_path / "again.safetensors"
    assert main(["average", *map(str, reversed(sources)), "--out", str(again)]) == 0
    assert all(torch.equal(tensor, mean[name]) for name, tensor in load_weights(again)[0].items())


@pytest.mark.parametrize(
    ("changes", "out", "message"),
    [
        ({"gelu": "tanh"}, "out.safetensors", "its model.gelu is tanh, that of"),
        ({}, "out.npz", "must end in .safetensors"),
        ({}, "a.safetensors", "exists"),
    ],
)
def test_what_has_no_mean_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, out: str, message: str
) -> None:
    sources = [save(tmp_path / "a.safetensors", 1.0), save(tmp_path / "b.safetensors", 1.0, **changes)]
    assert main(["average", *map(str, sources), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
