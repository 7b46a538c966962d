"""Every ViT-like architecture that timm has registered, shrunk, saved by timm, read here, and written back for timm.

A model keeps everything that its name stands for (norms, activations, pooling, positions, windows), but has one block
per stage and few channels.

Legend: K classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models._registry import _model_to_module
from torch import Tensor

from pipelines.export.verification import loaded_by_timm
from pipelines.weights.network import built
from pretrain.errors import UserError
from pretrain.models.exchange.onnx import Features
from pretrain.models.exchange.timm import read_timm, write_timm
from tests.golden.exchange import LOGITS, filled

HYBRIDS = "vision_transformer_hybrid"
# timm's source file → how the table calls those of its models that have no row of their own
GROUPS = {
    "vision_transformer": "ViT",
    HYBRIDS: "hybrid ViT",
    "vision_transformer_relpos": "ViT with relative positions",
    "vision_transformer_sam": "SAM",
    "deit": "DeiT, DeiT III",
    "eva": "ViT with rotary positions",
    "beit": "BEiT",
    "swin_transformer": "Swin",
    "swin_transformer_v2": "Swin V2",
    "swin_transformer_v2_cr": "Swin V2 (CR)",
    "hiera": "Hiera",
    "naflexvit": "NaFlexViT",
    "cait": "CaiT",
    "xcit": "XCiT",
    "pit": "PiT",
    "pvt_v2": "PVT v2",
    "twins": "Twins",
    "convit": "ConViT",
    "tnt": "TNT",
    "vitamin": "ViTamin",
    "hieradet_sam2": "Hiera of SAM 2",
}
NUM_CLASSES = 5
_WINDOWS = {"embed_dim": 32, "num_heads": (1, 2, 2, 4)}
# Arguments of timm's constructors, tried in this order: the first that an architecture takes.
_SHRINKS: tuple[dict[str, Any], ...] = (
    {"depth": 1, "embed_dim": 64, "num_heads": 2},
    {"depth": 1, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 1},
    {"depth": 1, "embed_dim": 96, "num_heads": 2},  # a gated MLP of 16 / 3 times the width
    {"depths": (1, 1, 1, 1), **_WINDOWS},
    {"stages": (1, 1, 1, 1), "embed_dim": 32, "num_heads": 1},
    {"depth": 1},
    {"depths": (1, 1, 1, 1)},
    {"depth": (1, 1, 1)},
    {"stages": (1, 1, 1, 1), "embed_dim": 32, "num_heads": 1, "global_att_blocks": (2,)},
)


def names_of(group: str) -> list[str]:
    """The registered architectures of one of timm's source files."""
    return [name for name in timm.list_models() if group_of(name) == group]


def group_of(name: str) -> str:
    """The source file of an architecture."""
    return _model_to_module[name]


def shrunk(name: str, num_classes: int) -> Any:
    """A small model of a registered architecture, with random numbers in every parameter, in evaluation mode."""
    failures: list[str] = []
    for size in _SHRINKS:
        try:
            model: Any = timm.create_model(name, num_classes=num_classes, **_small_input(name), **size)
        except (TypeError, AssertionError, RuntimeError, ValueError) as error:
            failures.append(f"{size}: {error}")
            continue
        return filled(model)
    raise AssertionError(f"{name} cannot be shrunk: {failures}")


def _small_input(name: str) -> dict[str, Any]:
    config: Any = timm.get_pretrained_cfg(name)
    group = group_of(name)
    if group == HYBRIDS:
        return {"img_size": 64}
    is_large = config.input_size[1] > 256 and config.fixed_input_size
    return {"img_size": 224} if is_large and not group.startswith(("swin", "hiera")) else {}


class Outcome(NamedTuple):
    """The result for one architecture: the family that reads it, or the reason why it is refused."""

    name: str
    family: str | None
    reason: str = ""


def outcome(name: str, num_classes: int) -> Outcome:
    """Saves a shrunk model by timm, reads it, compares outputs, writes it for timm and compares again."""
    theirs = shrunk(name, num_classes)
    with tempfile.TemporaryDirectory() as place:
        saved, written = Path(place) / "saved", Path(place) / "written"
        timm.models.save_for_hf(theirs, str(saved), safe_serialization=True)
        written.mkdir()
        try:
            state, metadata = read_timm(saved)
            # Fifty standardised convolutions: timm's own rounding in fp32 is off by 3e-5 of a hybrid's features.
            dtype = torch.float64 if group_of(name) == HYBRIDS else torch.float32
            images = torch.randn(2, 3, *metadata.img_size, generator=torch.Generator().manual_seed(0)).to(dtype)
            expected = _outputs(theirs.to(dtype), images)
            ours = built(state, metadata).to(dtype)
            _compare("ours", _outputs(ours if num_classes else Features(ours), images), expected)
            write_timm(written, state, metadata)
            _compare("timm's, of our export,", _outputs(loaded_by_timm(written)[1].to(dtype), images), expected)
        except UserError as error:
            return Outcome(name, None, str(error).replace(str(saved), "FOLDER"))
    return Outcome(name, metadata.model.name.partition("/")[0])


@torch.no_grad()
def _outputs(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return model(images)


def _compare(whose: str, found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-3, "outputs that are all alike would prove nothing"
    torch.testing.assert_close(found.double(), expected.double(), **LOGITS, msg=lambda text: f"{whose} outputs: {text}")
