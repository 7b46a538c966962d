"""transformers' names of a Vision Transformer's tensors, and ours.

A file has the names of the version that wrote it: one before 5 says ``encoder.layer.0.attention.attention.query``,
a module of version 5 ``layers.0.attention.q_proj``. The table has every form; no two of them mean different tensors.

Legend: D width · P patch side · C channels · N patch tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# full match of their name without its prefix → ours; a piece of a fused tensor ends in its letter
_LEAF = r"\.(weight|bias)"
_BLOCK = r"(?:encoder\.|model\.)?layers?\.(\d+)\."
_RULES: tuple[tuple[str, str], ...] = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.register_tokens", "reg_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.position_embeddings|embeddings\.position_embedding\.weight", "pos_embed"),
    (rf"embeddings\.(?:patch_embeddings\.projection|patch_embedding){_LEAF}", r"patch_embed.proj.\1"),
    (rf"(?:layernorm|post_layernorm){_LEAF}", r"norm.\1"),
    (rf"pooler\.dense{_LEAF}", r"pre_logits.fc.\1"),
    (r"head\.probe", "attn_pool.latent"),
    (r"head\.attention\.in_proj_(weight|bias)", r"attn_pool.qkv.\1"),
    (rf"head\.attention\.out_proj{_LEAF}", r"attn_pool.proj.\1"),
    (rf"head\.layernorm{_LEAF}", r"attn_pool.norm.\1"),
    (rf"head\.mlp\.fc([12]){_LEAF}", r"attn_pool.mlp.fc\1.\2"),
    (rf"{_BLOCK}(?:layernorm_before|norm1|layer_norm1){_LEAF}", r"blocks.\1.norm1.\2"),
    (rf"{_BLOCK}(?:layernorm_after|norm2|layer_norm2){_LEAF}", r"blocks.\1.norm2.\2"),
    (rf"{_BLOCK}attention\.attention\.(q)uery{_LEAF}", r"blocks.\1.attn.\2.\3"),
    (rf"{_BLOCK}attention\.attention\.(k)ey{_LEAF}", r"blocks.\1.attn.\2.\3"),
    (rf"{_BLOCK}attention\.attention\.(v)alue{_LEAF}", r"blocks.\1.attn.\2.\3"),
    (rf"{_BLOCK}(?:attention|self_attn)\.([qkv])_proj{_LEAF}", r"blocks.\1.attn.\2.\3"),
    (rf"{_BLOCK}(?:attention\.output\.dense|attention\.o_proj|self_attn\.out_proj){_LEAF}", r"blocks.\1.attn.proj.\2"),
    (rf"{_BLOCK}(?:intermediate\.dense|mlp\.fc1){_LEAF}", r"blocks.\1.mlp.fc1.\2"),
    (rf"{_BLOCK}(?:output\.dense|mlp\.fc2){_LEAF}", r"blocks.\1.mlp.fc2.\2"),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
)
_COMPILED = tuple((re.compile(pattern), ours) for pattern, ours in _RULES)


def our_name(theirs: str) -> str | None:
    """Our name of a tower's tensor, without the prefix of the class around the tower; None: it has no place."""
    for pattern, ours in _COMPILED:
        match = pattern.fullmatch(theirs)
        if match is not None:
            return match.expand(ours)
    return None


def joined(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with queries, keys and values in one tensor of a block, and queries apart in attention pooling.

    Args:
        found: tensors by the names of ``our_name``.
    """
    state = dict(found)
    for name in found:
        if "blocks." in name and ".attn.q." in name:
            parts = [name.replace(".attn.q.", f".attn.{piece}.") for piece in "qkv"]
            if all(part in found for part in parts):
                state[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat([state.pop(part) for part in parts])
        elif name.startswith("attn_pool.qkv."):
            fused, leaf = state.pop(name), name.rpartition(".")[2]
            width = fused.shape[0] // 3
            state[f"attn_pool.q.{leaf}"], state[f"attn_pool.kv.{leaf}"] = fused[:width], fused[width:]
    return state


def as_convolution(weight: Tensor, patch: int) -> Tensor:
    """The kernel (D, C, P, P) of a dense layer (D, P·P·C) on patches whose pixels are rows, columns, channels."""
    return weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2).contiguous()
