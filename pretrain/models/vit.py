"""The plain Vision Transformer of "An Image is Worth 16x16 Words" (2010.11929), as single-device code.

State-dict names are timm's; the tanh layer of the pretraining head is ``pre_logits.fc``, timm's name for it while it
had one. Nothing here waits for the device: no value is read on the host and no branch depends on a tensor's content.

Legend: B images · C H W · N patch tokens · T tokens with prefix · D width · R width of the pre-logits · K classes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.block import NUM_BRANCHES, Block, dropout
from pretrain.models.layers.checkpointing import block_policy, run_block
from pretrain.models.layers.embed import add_positions, learned_table, patch_embed, rotary_2d, sincos_2d
from pretrain.models.layers.pool import AttentionPool, pool_tokens
from pretrain.models.layers.precision import Fp32Linear, LayerNorm, without_autocast
from pretrain.models.layers.relative import relative_term
from pretrain.models.variants import layer_id, num_position_rows, placement, representation_size, resolve


class VisionTransformer(nn.Module):
    """Patches → tokens → blocks → pooled vector → logits.

    ``config``, ``shape`` and ``num_classes`` describe it. Weights are torch's defaults until
    ``pretrain.models.init.init_weights`` or a weights file sets them.

    Args:
        model: the architecture.
        num_classes: K, the width of the head.

    Raises:
        ConfigError: the architecture is impossible (see ``variants.resolve``).
    """

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__()
        shape = resolve(model)
        self.config, self.shape, self.num_classes = model, shape, num_classes
        self.checkpointing = "none"
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.embed_dim)) if model.class_token else None
        self.reg_token = _learned_tokens(model.num_registers, shape.embed_dim)
        self.pos_embed_placement = placement(model)
        self.pos_embed = None
        if model.pos_embed in ("learned_1d", "learned_2d") and self.pos_embed_placement != "every_layer":
            self.pos_embed = learned_table(model.pos_embed, shape.grid, shape.embed_dim, num_position_rows(model))
        self.patch_embed = patch_embed(shape)
        shared = self.pos_embed_placement == "every_layer_shared"
        self.shared_rel_pos = relative_term(model, shape) if shared else None
        self.pos_drop = dropout(model.dropout)
        self.blocks = nn.ModuleList(Block(shape, model) for _ in range(shape.depth))
        norm = LayerNorm(shape.embed_dim, eps=model.layer_norm_eps)
        pool_first = model.pool == "avg_norm"
        self.norm = nn.Identity() if pool_first else norm
        self.fc_norm = norm if pool_first else nn.Identity()
        pools = model.pool == "map"
        map_args = (shape.embed_dim, shape.num_heads, shape.mlp_dim, model.gelu, model.layer_norm_eps)
        self.attn_pool = AttentionPool(*map_args) if pools else None
        hidden = representation_size(model)
        self.pre_logits = nn.Identity() if hidden is None else _tanh_layer(shape.embed_dim, hidden)
        self.head = Fp32Linear(hidden or shape.embed_dim, num_classes)

    def set_grad_checkpointing(self, policy: bool | str = True) -> None:
        """Sets the activation-checkpointing policy of the blocks (see ``layers.checkpointing``); True is full."""
        names = {True: "full", False: "none"}
        self.checkpointing = names[policy] if isinstance(policy, bool) else policy

    def layer_ids(self) -> dict[str, int]:
        """Parameter name → layer, for layer-wise decay of the learning rate (see ``layer_id``)."""
        return {name: layer_id(name, self.shape.depth) for name, _ in self.named_parameters()}

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles the blocks one by one with static shapes; they share one graph, as only their weights differ.

        Call it after the engine has wrapped the model. Names, weights and state dict are unchanged; a batch of another
        size (such as evaluation's) triggers another compilation.
        """
        for block in self.blocks:
            block.compile(backend=backend, dynamic=False, fullgraph=True)

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Logits of normalised images.

        Args:
            images: floats (B, C, H, W) of the config's size, already normalised.
            drop_path: None, or a factor for each branch of each block, (B, depth, 2) of 0 or 1 / keep.

        Returns:
            fp32 (B, K), also with bfloat16 weights and under autocast.
        """
        return self.forward_head(self.forward_features(images, drop_path))

    def forward_features(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """Tokens after the last block and, unless ``pool: avg_norm`` norms after pooling, the norm: (B, T, D)."""
        return self.forward_tokens(self._embed(images), drop_path)

    def forward_tokens(self, x: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """All blocks and the final norm on embedded tokens (B, T, D)."""
        (last,) = deque(self._run_blocks(x, drop_path), maxlen=1)  # keeps only the last block's tokens
        return self.norm(last)

    def forward_intermediates(self, images: Tensor) -> list[Tensor]:
        """Tokens after each block, prefix included, before any final norm: ``depth`` tensors (B, T, D)."""
        return list(self._run_blocks(self._embed(images), None))

    def patch_map(self, tokens: Tensor) -> Tensor:
        """Patch tokens of (B, T, D), in their places: (B, D, h, w), for dense heads."""
        patches = tokens[:, self.shape.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.shape.grid)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools tokens (B, T, D) and maps them to logits (B, K), or with ``pre_logits`` to the head's input (B, R).

        Everything after the pooling is fp32, a mean over tokens too; attention pooling computes as a block does.
        """
        if self.attn_pool is None:
            pooled = pool_tokens(tokens, self.config.pool, self.shape.num_prefix_tokens)
        else:
            pooled = self.attn_pool(tokens[:, self.shape.num_prefix_tokens :]).float()
        with without_autocast(tokens.device):
            features = self.pre_logits(self.fc_norm(pooled))
            return features if pre_logits else self.head(features)

    def prefix_tokens(self) -> list[Tensor]:
        """The learned tokens (1, ·, D) before the patches, in the order of the position embedding."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def embed_patches(self, images: Tensor) -> Tensor:
        """Patch embeddings without positions: (B, N, D)."""
        assert images.shape[2:] == self.shape.img_size, f"images of {self.shape.img_size} expected, not {images.shape}"
        return self.patch_embed(images.to(self.patch_embed.proj.weight.dtype))

    def add_prefix_and_positions(self, patches: Tensor) -> Tensor:
        """The input of the first block, (B, T, D), from patch embeddings (B, N, D)."""
        prefix = [token.expand(patches.shape[0], -1, -1) for token in self.prefix_tokens()]
        x = torch.cat([*prefix, patches], dim=1)
        if self.pos_embed_placement == "stem":
            x = add_positions(x, self._added_positions(x))
        return self.pos_drop(x.to(self.patch_embed.proj.weight.dtype))  # under autocast the stream stays fp32

    def _embed(self, images: Tensor) -> Tensor:
        return self.add_prefix_and_positions(self.embed_patches(images))

    def _added_positions(self, x: Tensor) -> Tensor | nn.Module | None:
        """The positions that ``add_positions`` adds to tokens x at the stem or before every block."""
        kind = self.config.pos_embed
        if kind not in ("sincos2d_big_vision", "sincos2d_timm"):
            return self.pos_embed
        form = "timm" if kind == "sincos2d_timm" else "big_vision"
        table = sincos_2d(form, self.shape.grid, self.shape.embed_dim, x.device)
        return table.to(x.dtype)

    def _rotary(self, x: Tensor) -> Tensor | None:
        if self.config.pos_embed != "rope_2d":
            return None
        shape, config = self.shape, self.config
        head_dim = shape.embed_dim // shape.num_heads
        prefix = shape.num_prefix_tokens
        return rotary_2d(shape.grid, prefix, head_dim, config.rope_temperature, config.rope_grid, x.device)

    def _run_blocks(self, x: Tensor, drop_path: Tensor | None) -> Iterator[Tensor]:
        """Tokens after each block, one block at a time."""
        expected = (x.shape[0], self.shape.depth, NUM_BRANCHES)
        assert drop_path is None or drop_path.shape == expected, f"drop_path is {drop_path.shape}, not {expected}"
        bias = None if self.shared_rel_pos is None else self.shared_rel_pos(x)
        rotary, added = self._rotary(x), None
        if self.pos_embed_placement == "every_layer_shared":
            added = self._added_positions(x)
        uses_rng = self.training and self.config.dropout > 0
        for index, block in enumerate(self.blocks):
            scales = None if drop_path is None else drop_path[:, index]
            policy = block_policy(self.checkpointing, index)
            x = run_block(policy, block, add_positions(x, added), scales, bias, rotary, uses_rng=uses_rng)
            yield x


def _learned_tokens(count: int, embed_dim: int) -> nn.Parameter | None:
    return nn.Parameter(torch.zeros(1, count, embed_dim)) if count else None


def _tanh_layer(embed_dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict([("fc", Fp32Linear(embed_dim, hidden)), ("act", nn.Tanh())]))


def build_vit(model: ModelConfig, num_classes: int) -> VisionTransformer:
    """A Vision Transformer on torch's default device (``with torch.device("meta")`` costs no memory).

    Raises:
        ConfigError: the architecture is impossible.
    """
    return VisionTransformer(model, num_classes)
