"""torchvision's Vision Transformers: a safetensors file of their ``state_dict``. Read only.

The tensors do not say how many heads there are. Widths of torchvision's own models do; for another width the file's
header must (``num_heads``).

Source: torchvision/models/vision_transformer.py: GELU in its erf form, LayerNorm with epsilon 1e-6, square images,
ImageNet's mean and standard deviation in every published transform.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.models.exchange.translation import named_config, refuse_leftovers, require, square_grid
from pretrain.models.interop import check_tensors, expected_shapes, read_tensors
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.variants import Size

PROGRAM = "torchvision"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_HEADS = {768: 12, 1024: 16, 1280: 16}  # width → heads of vit_b, vit_l and vit_h
MARK = "encoder.pos_embedding"
_NAMES = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "norm": "encoder.ln",
    "pre_logits.fc": "heads.pre_logits",
    "head": "heads.head",
}
_BLOCK = {
    "norm1": ("ln_1",),
    "attn.proj": ("self_attention.out_proj",),
    "norm2": ("ln_2",),
    "mlp.fc1": ("mlp.0", "mlp.linear_1"),  # the second is how older versions named it
    "mlp.fc2": ("mlp.3", "mlp.linear_2"),
}


def read_torchvision(path: str | Path) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Reads ``safetensors.torch.save_file(vit.state_dict(), path)``.

    Raises:
        CheckpointError: not such a file, or the number of heads is unknown.
    """
    return from_tensors(*read_tensors(path), Path(path))


def from_tensors(
    theirs: Mapping[str, Tensor], header: Mapping[str, str], path: Path
) -> tuple[dict[str, Tensor], WeightsMetadata]:
    """Tensors of torchvision's names as ours.

    Args:
        theirs: a ``state_dict``.
        header: ``num_heads``, for widths that torchvision's own models do not have.
        path: the file, for errors.

    Raises:
        CheckpointError: as ``read_torchvision``.
    """
    metadata = _described(theirs, header, path)
    state, used = {}, set()
    for name in expected_shapes(metadata):
        other = _their_name(name, theirs)
        state[name] = require(theirs, other, path, PROGRAM)
        used.add(other)
    refuse_leftovers(set(theirs) - used, path, PROGRAM)
    check_tensors(state, metadata, path)
    return state, metadata


def _their_name(name: str, theirs: Mapping[str, Tensor]) -> str:
    stem, _, leaf = name.rpartition(".")
    if name in _NAMES:
        return _NAMES[name]
    if not stem.startswith("blocks."):
        return f"{_NAMES[stem]}.{leaf}"
    _, index, part = stem.split(".", 2)
    layer = f"encoder.layers.encoder_layer_{index}"
    if part == "attn.qkv":
        return f"{layer}.self_attention.in_proj_{leaf}"
    choices = [f"{layer}.{other}.{leaf}" for other in _BLOCK[part]]
    return next((choice for choice in choices if choice in theirs), choices[0])


def _described(theirs: Mapping[str, Tensor], header: Mapping[str, str], path: Path) -> WeightsMetadata:
    positions = require(theirs, MARK, path, PROGRAM).shape
    width, patch = positions[2], require(theirs, "conv_proj.weight", path, PROGRAM).shape[2]
    heads = int(header["num_heads"]) if header.get("num_heads", "").isdigit() else NUM_HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{path}: the number of attention heads of a width of {width} cannot be read from the tensors; write the "
            'file again with safetensors.torch.save_file(…, metadata={"num_heads": "…"})'
        )
    grid = square_grid(positions[1] - 1, path, MARK)
    first = _their_name("blocks.0.mlp.fc1.weight", theirs)
    mlp_dim = require(theirs, first, path, PROGRAM).shape[0]
    tanh = theirs.get("heads.pre_logits.weight")
    config = named_config(
        path,
        Size(width, sum(name.endswith(".ln_1.weight") for name in theirs), mlp_dim, heads),
        patch=patch,
        img_size=(grid[0] * patch, grid[1] * patch),
        representation_size=None if tanh is None else tanh.shape[0],
    )
    head = theirs.get("heads.head.bias")
    return WeightsMetadata.of(config, 0 if head is None else head.shape[0], MEAN, STD)
