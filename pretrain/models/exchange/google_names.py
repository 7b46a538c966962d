"""Conversion between our tensors and Google's arrays, in both directions.

The released files of vision_transformer keep the position embedding in Transformer/posembed_input and number the parts
of a block as flax once counted all modules (MlpBlock_3). big_vision keeps it at the top and counts each kind of module
separately (MlpBlock_0), as flax does now; so a file that today's vision_transformer writes has the numbers of the one
and the positions of the other. ``names_of`` finds what a file has.

Legend: D width · A heads · E head width · P patch side · C channels.
Source: vit_jax/models_vit.py; big_vision/models/vit.py; timm's ``_load_weights``, which reads both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pretrain.models.variants import ViTShape

Layout = Literal["vision_transformer", "big_vision"]


class Names(NamedTuple):
    """The differences between the files of the two programs, and of their versions.

    Attributes:
        positions: name of the position table; "": none, positions are computed.
        attention, norm, mlp: flax's indices of the attention, second norm and MLP of a block.
        pooling: prefix of the names of the MAP head.
    """

    positions: str
    attention: int
    norm: int
    mlp: int
    pooling: str = "MAPHead_0/"


VIT_JAX_POSITIONS = "Transformer/posembed_input/pos_embedding"
# As they are written; timm reads both.
NAMES: dict[Layout, Names] = {
    "vision_transformer": Names(VIT_JAX_POSITIONS, 1, 2, 3),
    "big_vision": Names("pos_embedding", 0, 1, 0),
}


def names_of(arrays: Collection[str]) -> Names:
    """The naming scheme of a file.

    Source: big_vision/models/vit.py, fix_old_checkpoints; flax.training.checkpoints.convert_pre_linen.
    """
    places = (VIT_JAX_POSITIONS, "Transformer/pos_embedding", "pos_embedding")  # the second: big_vision before 2022
    counted_together = any("/MlpBlock_3/" in name for name in arrays)
    base = NAMES["vision_transformer" if counted_together else "big_vision"]
    return base._replace(
        positions=next((name for name in places if name in arrays), ""),
        pooling="" if "probe" in arrays else base.pooling,  # inlined while ViT-G was developed
    )


class Entry(NamedTuple):
    """One of our tensors, the corresponding arrays of Google's, and the conversions between them."""

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


def _block(ours: str, theirs: str, names: Names) -> list[Entry]:
    attended = f"{theirs}MultiHeadDotProductAttention_{names.attention}"
    return [
        *_affine(f"{ours}.norm1", f"{theirs}LayerNorm_0"),
        *_projections(f"{ours}.attn.qkv", attended, ("query", "key", "value")),
        *_output(f"{ours}.attn.proj", f"{attended}/out"),
        *_affine(f"{ours}.norm2", f"{theirs}LayerNorm_{names.norm}"),
        *_mlp(f"{ours}.mlp", f"{theirs}MlpBlock_{names.mlp}"),
    ]


def _map_head(ours: str, theirs: str) -> list[Entry]:
    attended = f"{theirs}MultiHeadDotProductAttention_0"
    return [
        _copy(f"{ours}.latent", f"{theirs}probe"),
        *_projections(f"{ours}.q", attended, ("query",)),
        *_projections(f"{ours}.kv", attended, ("key", "value")),
        *_output(f"{ours}.proj", f"{attended}/out"),
        *_affine(f"{ours}.norm", f"{theirs}LayerNorm_0"),
        *_mlp(f"{ours}.mlp", f"{theirs}MlpBlock_0"),
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


def entries(names: Names, shape: ViTShape) -> Iterator[Entry]:
    """All entries of either program; a model uses those whose tensors it has."""
    yield _copy("cls_token", "cls")
    yield _copy("pos_embed", names.positions)
    yield from _stem(shape.stem_blocks)
    yield _convolution("patch_embed.proj.weight", "embedding")
    yield _copy("patch_embed.proj.bias", "embedding/bias")
    for index in range(shape.depth):
        yield from _block(f"blocks.{index}", f"Transformer/encoderblock_{index}/", names)
    yield from _affine("norm", "Transformer/encoder_norm")
    yield from _map_head("attn_pool", names.pooling)
    yield from _dense("pre_logits.fc", "pre_logits")
    yield from _dense("head", "head")


def block_array(names: Names, name: str) -> str:
    """The array ``name`` ("attention/…" or "mlp/…") of the first block."""
    parts = {"attention": f"MultiHeadDotProductAttention_{names.attention}", "mlp": f"MlpBlock_{names.mlp}"}
    part, _, rest = name.partition("/")
    return f"Transformer/encoderblock_0/{parts[part]}/{rest}"
