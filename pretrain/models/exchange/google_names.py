"""Our tensors and Google's arrays: which makes which, there and back.

vision_transformer keeps the position embedding in Transformer/posembed_input and numbers the parts of a block as flax
counted all modules (MlpBlock_3); big_vision keeps it at the top and counts each kind of module by itself (MlpBlock_0).

Legend: D width · A heads · E head width · P patch side · C channels.
Source: vit_jax/models_vit.py; big_vision/models/vit.py; timm's ``_load_weights``, which reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.models.variants import ViTShape

Layout = Literal["vision_transformer", "big_vision"]
POSITIONS: dict[Layout, str] = {
    "vision_transformer": "Transformer/posembed_input/pos_embedding",
    "big_vision": "pos_embedding",
}
# Numbers of flax's attention, second norm and MLP in a block.
_NUMBERS: dict[Layout, tuple[int, int, int]] = {"vision_transformer": (1, 2, 3), "big_vision": (0, 1, 0)}


class Entry(NamedTuple):
    """One tensor of ours, Google's arrays that make it, and the way there and back."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[[list[Tensor]], Tensor]
    write: Callable[[Tensor, int], list[Tensor]]


def _copy(ours: str, theirs: str) -> Entry:
    return Entry(ours, (theirs,), lambda arrays: arrays[0], lambda tensor, heads: [tensor])


def _affine(ours: str, theirs: str) -> list[Entry]:
    return [_copy(f"{ours}.weight", f"{theirs}/scale"), _copy(f"{ours}.bias", f"{theirs}/bias")]


def _dense(ours: str, theirs: str) -> list[Entry]:
    """Kernel (in, out) is the transpose of our weight."""
    kernel = Entry(f"{ours}.weight", (f"{theirs}/kernel",), lambda arrays: arrays[0].T, lambda w, heads: [w.T])
    return [kernel, _copy(f"{ours}.bias", f"{theirs}/bias")]


def _projections(ours: str, theirs: str, names: tuple[str, ...]) -> list[Entry]:
    """Kernels (D, A, E) and biases (A, E), one after another in the rows of our weight (len(names)·D, D)."""

    def split(tensor: Tensor, heads: int) -> list[Tensor]:
        return list(tensor.chunk(len(names)))

    return [
        Entry(
            f"{ours}.weight",
            tuple(f"{theirs}/{name}/kernel" for name in names),
            lambda arrays: torch.cat([array.flatten(1).T for array in arrays]),
            lambda tensor, heads: [part.T.unflatten(1, (heads, -1)) for part in split(tensor, heads)],
        ),
        Entry(
            f"{ours}.bias",
            tuple(f"{theirs}/{name}/bias" for name in names),
            lambda arrays: torch.cat([array.flatten() for array in arrays]),
            lambda tensor, heads: [part.unflatten(0, (heads, -1)) for part in split(tensor, heads)],
        ),
    ]


def _output(ours: str, theirs: str) -> list[Entry]:
    """Kernel (A, E, D)."""
    kernel = Entry(
        f"{ours}.weight",
        (f"{theirs}/kernel",),
        lambda arrays: arrays[0].flatten(0, 1).T,
        lambda tensor, heads: [tensor.T.unflatten(0, (heads, -1))],
    )
    return [kernel, _copy(f"{ours}.bias", f"{theirs}/bias")]


def _mlp(ours: str, theirs: str) -> list[Entry]:
    return [*_dense(f"{ours}.fc1", f"{theirs}/Dense_0"), *_dense(f"{ours}.fc2", f"{theirs}/Dense_1")]


def _block(ours: str, theirs: str, layout: Layout) -> list[Entry]:
    attention, norm, mlp = _NUMBERS[layout]
    attended = f"{theirs}MultiHeadDotProductAttention_{attention}"
    return [
        *_affine(f"{ours}.norm1", f"{theirs}LayerNorm_0"),
        *_projections(f"{ours}.attn.qkv", attended, ("query", "key", "value")),
        *_output(f"{ours}.attn.proj", f"{attended}/out"),
        *_affine(f"{ours}.norm2", f"{theirs}LayerNorm_{norm}"),
        *_mlp(f"{ours}.mlp", f"{theirs}MlpBlock_{mlp}"),
    ]


def _map_head(ours: str, theirs: str) -> list[Entry]:
    attended = f"{theirs}/MultiHeadDotProductAttention_0"
    return [
        _copy(f"{ours}.latent", f"{theirs}/probe"),
        *_projections(f"{ours}.q", attended, ("query",)),
        *_projections(f"{ours}.kv", attended, ("key", "value")),
        *_output(f"{ours}.proj", f"{attended}/out"),
        *_affine(f"{ours}.norm", f"{theirs}/LayerNorm_0"),
        *_mlp(f"{ours}.mlp", f"{theirs}/MlpBlock_0"),
    ]


def _convolution(ours: str, theirs: str) -> Entry:
    """Kernel (P, P, C, D)."""
    return Entry(
        ours,
        (f"{theirs}/kernel",),
        lambda arrays: arrays[0].permute(3, 2, 0, 1),
        lambda tensor, heads: [tensor.permute(2, 3, 1, 0)],
    )


def _group_norm(ours: str, theirs: str) -> list[Entry]:
    """Scale and bias (1, 1, 1, C), as the released files have them."""

    def write(tensor: Tensor, heads: int) -> list[Tensor]:
        return [tensor[None, None, None]]

    leaves = (("weight", "scale"), ("bias", "bias"))
    return [
        Entry(f"{ours}.{leaf}", (f"{theirs}/{other}",), lambda arrays: arrays[0].flatten(), write)
        for leaf, other in leaves
    ]


def _stem(stem_blocks: tuple[int, ...]) -> Iterator[Entry]:
    """The ResNet of a hybrid, under timm's names."""
    root = "patch_embed.backbone"
    yield _convolution(f"{root}.stem.conv.weight", "conv_root")
    yield from _group_norm(f"{root}.stem.norm", "gn_root")
    for stage, num_units in enumerate(stem_blocks):
        for unit in range(num_units):
            ours, theirs = f"{root}.stages.{stage}.blocks.{unit}", f"block{stage + 1}/unit{unit + 1}"
            for part in (1, 2, 3):
                yield _convolution(f"{ours}.conv{part}.weight", f"{theirs}/conv{part}")
                yield from _group_norm(f"{ours}.norm{part}", f"{theirs}/gn{part}")
            yield _convolution(f"{ours}.downsample.conv.weight", f"{theirs}/conv_proj")
            yield from _group_norm(f"{ours}.downsample.norm", f"{theirs}/gn_proj")


def entries(layout: Layout, shape: ViTShape) -> Iterator[Entry]:
    """Everything that either program can have; a model takes the entries whose tensors it has."""
    yield _copy("cls_token", "cls")
    yield _copy("pos_embed", POSITIONS[layout])
    yield from _stem(shape.stem_blocks)
    yield _convolution("patch_embed.proj.weight", "embedding")
    yield _copy("patch_embed.proj.bias", "embedding/bias")
    for index in range(shape.depth):
        yield from _block(f"blocks.{index}", f"Transformer/encoderblock_{index}/", layout)
    yield from _affine("norm", "Transformer/encoder_norm")
    if layout == "big_vision":
        yield from _map_head("attn_pool", "MAPHead_0")
    yield from _dense("pre_logits.fc", "pre_logits")
    yield from _dense("head", "head")


def block_array(layout: Layout, name: str) -> str:
    """The array ``name`` ("attention/…" or "mlp/…") of the first block."""
    attention, _, mlp = _NUMBERS[layout]
    parts = {"attention": f"MultiHeadDotProductAttention_{attention}", "mlp": f"MlpBlock_{mlp}"}
    part, _, rest = name.partition("/")
    return f"Transformer/encoderblock_0/{parts[part]}/{rest}"
