"""A checkpoint that timm's own saver wrote for its training script is read from its file alone."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.utils import CheckpointSaver

from pipelines.weights.network import built
from pretrain.errors import CheckpointError
from pretrain.models.exchange.formats import load_any
from tests.golden.exchange import LOGITS, filled

# The options of the script's parser, none of them stated.
UNSTATED: dict[str, Any] = {
    "num_classes": None, "gp": None, "in_chans": None, "img_size": None, "input_size": None, "crop_pct": None,
    "mean": None, "std": None, "interpolation": "", "model_kwargs": {}, "lr": 0.1, "device": "cuda",
}  # fmt: skip


def saved(folder: Path, name: str, **options: Any) -> tuple[Any, Path]:
    """timm's model, and the file of its checkpoint."""
    args = Namespace(**{**UNSTATED, "model": name, **options})
    given = {"num_classes": args.num_classes, "global_pool": args.gp}
    net = filled(timm.create_model(name, **{k: v for k, v in given.items() if v is not None}, **args.model_kwargs))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    saver = CheckpointSaver(net, optimizer, args=args, checkpoint_dir=str(folder), recovery_dir=str(folder))
    saver.save_checkpoint(3, metric=71.5)
    return net, folder / "last.pth.tar"


@pytest.mark.parametrize(
    ("name", "options", "read_as"),
    [
        ("vit_tiny_patch16_224", {"num_classes": 5, "model_kwargs": {"img_size": 32, "depth": 1}, "gp": "avg"}, "vit"),
        ("vit_tiny_patch16_224.augreg_in21k", {"num_classes": 5, "model_kwargs": {"depth": 1}}, "vit"),
        ("resnet10t", {"num_classes": 7, "img_size": 64, "mean": (0.1, 0.2, 0.3), "crop_pct": 1.0}, "timm/resnet10t"),
    ],
)
def test_the_file_is_enough(name: str, options: dict[str, Any], read_as: str, tmp_path: Path) -> None:
    net, path = saved(tmp_path, name, **options)
    said: list[str] = []
    state, metadata = load_any(path, say=said.append)
    assert metadata.model.name == read_as and metadata.num_classes == options["num_classes"]
    expected = resolve_data_config({"img_size": 64, **options} if "mean" in options else {}, model=net)
    assert (metadata.mean, metadata.std) == (tuple(expected["mean"]), tuple(expected["std"]))
    assert metadata.eval_transform is not None
    images = torch.randn(2, 3, *metadata.img_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(built(state, metadata)(images), net(images), **LOGITS)
    assert any("timm's training script, of" in line for line in said)
    assert any("tensors under 'state_dict'; not read:" in line for line in said)


def test_arguments_that_do_not_fit_the_tensors_are_named(tmp_path: Path) -> None:
    _, path = saved(tmp_path, "vit_tiny_patch16_224", num_classes=5, model_kwargs={"img_size": 32, "depth": 1})
    content = torch.load(path, weights_only=False)
    content["args"].model_kwargs = {"img_size": 32, "depth": 2}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"timm cannot load these weights as the vit_tiny_patch16_224"):
        load_any(path)
