"""The plain Vision Transformer of "An Image is Worth 16x16 Words" (2010.11929), as single-device code.

State-dict names are timm's; the tanh layer of the pretraining head is ``pre_logits.fc``, timm's name for it while it
had one. Nothing here waits for the device: no value is read on the host and no branch depends on a tensor's content.

Training images may have other sizes than the config's (``accept_sizes``): tables of positions are then interpolated.

Legend: B images · C H W · N patch tokens · T tokens with prefix · D width · R width of the pre-logits · K classes.
"""

from __future__ import annotations

import functools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig
from pretrain.models.layers.block import Block
from pretrain.models.layers.checkpointing import block_policy, run_block
from pretrain.models.layers.drop_path import NUM_BRANCHES
from pretrain.models.layers.head import AttentionPool, Fp32Linear, pool_tokens, without_autocast
from pretrain.models.layers.mlp import dropout
from pretrain.models.layers.norm import norm_layer
from pretrain.models.layers.parallel import ParallelBlock
from pretrain.models.layers.patch_drop import keep_rotary, keep_tokens
from pretrain.models.layers.patch_embed import patch_embed
from pretrain.models.layers.places import Places, key_bias
from pretrain.models.layers.positions import (
    Learned2d,
    MixedRope,
    add_positions,
    axial_rotary,
    learned_table,
    relative_term,
    sincos_2d,
    table_at,
)
from pretrain.models.surgery import Filter, resized_table
from pretrain.models.tensor_shapes import layer_id, num_position_rows
from pretrain.models.units import compile_units
from pretrain.models.variants import ViTShape, placement, representation_size, resolve


class VisionTransformer(nn.Module):
    """Patches → tokens → blocks → pooled vector → logits.

    ``config``, ``shape`` and ``num_classes`` describe it; ``shapes`` has the shape for each size of images and patches
    that it takes. Weights are torch's defaults until
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
        self.shapes = {Tiling(shape.img_size): shape}
        self.filter: Filter = "bilinear_corners"
        self.checkpointing, self.compiled = "none", False
        self.uses_generator = model.dropout > 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.embed_dim)) if model.class_token else None
        self.reg_token = _learned_tokens(model.num_registers, shape.embed_dim)
        self.pos_embed_placement = placement(model)
        self.pos_embed = None
        if model.pos_embed in ("learned_1d", "learned_2d") and self.pos_embed_placement != "every_layer":
            self.pos_embed = learned_table(model.pos_embed, shape.grid, shape.embed_dim, num_position_rows(model))
        self.patch_embed = patch_embed(shape, can_resample=bool(model.patch_sizes))
        shared = self.pos_embed_placement == "every_layer_shared"
        self.shared_rel_pos = relative_term(model, shape) if shared else None
        self.rope = MixedRope(model, shape) if model.rope == "mixed" else None
        self.pos_drop = dropout(model.dropout)
        self.blocks = nn.ModuleList(_BLOCKS[model.block](shape, model) for _ in range(shape.depth))
        norm = norm_layer(model, shape.embed_dim)
        pool_first = model.pool == "avg_norm"
        self.norm = nn.Identity() if pool_first else norm
        self.fc_norm = norm if pool_first else nn.Identity()
        self.attn_pool = AttentionPool(shape, model) if model.pool == "map" else None
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

    def units(self) -> list[str]:
        """Names of the modules whose weights are gathered together where they are sharded: the blocks."""
        return [f"blocks.{index}" for index in range(self.shape.depth)]

    def accept_sizes(self, tilings: Sequence[Tiling], filter: Filter) -> None:
        """Takes images and patches of these sizes too; ``filter`` resizes positions (``surgery.resize_pos_embed``).

        Raises:
            ConfigError: a patch does not divide a size.
        """
        self.filter = filter
        for tiling in tilings:
            self.shapes[tiling] = resolve(self.config.at_tiling(tiling))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles the blocks (see ``units.compile_units``); they share one graph, as only their weights differ.

        With the policy ``selective`` the recomputation is inside the graph, where the operations are visible.
        """
        self.compiled = True

        def selective(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return functools.partial(run_block, "selective", forward, uses_rng=self.uses_generator)

        compile_units(self, backend, around=selective if self.checkpointing == "selective" else None)

    def forward(
        self,
        images: Tensor,
        drop_path: Tensor | None = None,
        *,
        kept: Tensor | None = None,
        grids: Tensor | None = None,
        patch: int | None = None,
    ) -> Tensor:
        """Logits of normalised images.

        Args:
            images: floats (B, C, H, W) of the config's size or an accepted one, already normalised.
            drop_path: None, or a factor for each branch of each block, (B, depth, 2) of 0 or 1 / keep.
            kept: None, or the patches that enter the blocks, int64 (B, K) (see ``layers.patch_drop``).
            grids: None, or rows and columns of the patches of images that keep their aspect ratio, int64 (B, 2); then
                ``images`` are strips of N patches, (B, C, P, N · P) (see ``data.images.native``).
            patch: side of the patches in pixels, an accepted one; None: the config's.

        Returns:
            fp32 (B, K), also with bfloat16 weights and under autocast.
        """
        if grids is None:
            return self.forward_head(self.forward_features(images, drop_path, kept, patch=patch))
        places = Places.of(grids, images.shape[3] // self.shape.patch[1])
        return self.forward_head(self.forward_features(images, drop_path, places=places), valid=places.valid)

    def forward_features(
        self,
        images: Tensor,
        drop_path: Tensor | None = None,
        kept: Tensor | None = None,
        places: Places | None = None,
        patch: int | None = None,
    ) -> Tensor:
        """Tokens after the last block and, unless ``pool: avg_norm`` norms after pooling, the norm: (B, T, D)."""
        x, shape = self._embed(images, places, patch), self.shape_at(images, patch, as_strips=places is not None)
        return self.forward_tokens(x if kept is None else self._keep(x, kept), drop_path, kept, places, shape)

    # many: padded sequences have places instead of a shape of their own
    def forward_tokens(
        self,
        x: Tensor,
        drop_path: Tensor | None = None,
        kept: Tensor | None = None,
        places: Places | None = None,
        shape: ViTShape | None = None,
    ) -> Tensor:
        """All blocks and the final norm on embedded tokens (B, T, D), of which only ``kept`` are there.

        ``shape`` is the geometry of the images that they come from; None: the config's.
        """
        tokens = self._run_blocks(x, drop_path, shape or self.shape, kept, places)
        (last,) = deque(tokens, maxlen=1)  # keeps only the last block's tokens
        return self.norm(last)

    def forward_intermediates(self, images: Tensor) -> list[Tensor]:
        """Tokens after each block, prefix included, before any final norm: ``depth`` tensors (B, T, D)."""
        return list(self._run_blocks(self._embed(images), None, self.shape_at(images)))

    def patch_map(self, tokens: Tensor) -> Tensor:
        """Patch tokens of (B, T, D), in their places: (B, D, h, w), for dense heads."""
        patches = tokens[:, self.shape.num_prefix_tokens :]
        return patches.transpose(1, 2).unflatten(2, self.shape.grid)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False, valid: Tensor | None = None) -> Tensor:
        """Pools tokens (B, T, D) and maps them to logits (B, K), or with ``pre_logits`` to the head's input (B, R).

        Everything after the pooling is fp32, a mean over tokens too; attention pooling computes as a block does. Of
        padded sequences only the patches that ``valid`` marks are pooled, bool (B, N).
        """
        if self.attn_pool is None:
            pooled = pool_tokens(tokens, self.config.pool, self.shape.num_prefix_tokens, valid)
        else:
            bias = None if valid is None else key_bias(valid, 0, tokens.dtype)
            pooled = self.attn_pool(tokens[:, self.shape.num_prefix_tokens :], bias).float()
        with without_autocast(tokens.device):
            features = self.pre_logits(self.fc_norm(pooled))
            return features if pre_logits else self.head(features)

    def prefix_tokens(self) -> list[Tensor]:
        """The learned tokens (1, ·, D) before the patches, in the order of the position embedding."""
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def embed_patches(self, images: Tensor, patch: int | None = None, *, as_strips: bool = False) -> Tensor:
        """Patch embeddings without positions: (B, N, D)."""
        self.shape_at(images, patch, as_strips=as_strips)
        images = images.to(self.patch_embed.proj.weight.dtype)
        return self.patch_embed(images) if patch is None else self.patch_embed(images, patch)

    def add_prefix_and_positions(
        self, patches: Tensor, places: Places | None = None, shape: ViTShape | None = None
    ) -> Tensor:
        """The input of the first block, (B, T, D), from patch embeddings (B, N, D); ``shape`` as in forward_tokens."""
        prefix = [token.expand(patches.shape[0], -1, -1) for token in self.prefix_tokens()]
        x = torch.cat([*prefix, patches], dim=1)
        if self.pos_embed_placement == "stem":
            positions = self._added_positions(x, shape or self.shape, places)
            x = positions(x, places) if isinstance(positions, Learned2d) else add_positions(x, positions)
        return self.pos_drop(x.to(self.patch_embed.proj.weight.dtype))  # under autocast the stream stays fp32

    def shape_at(self, images: Tensor, patch: int | None = None, *, as_strips: bool = False) -> ViTShape:
        """The shape for images (B, C, H, W), cut into patches of this side; None: the config's, also for strips."""
        if as_strips:
            assert images.shape[2] == self.shape.patch[0], f"strips of {self.shape.patch} expected, not {images.shape}"
            return self.shape
        found = Tiling((images.shape[2], images.shape[3]), patch)
        assert found in self.shapes, f"images of {' or '.join(map(str, self.shapes))} expected, not {found}"
        return self.shapes[found]

    def _embed(self, images: Tensor, places: Places | None = None, patch: int | None = None) -> Tensor:
        shape = self.shape_at(images, patch, as_strips=places is not None)
        return self.add_prefix_and_positions(
            self.embed_patches(images, patch, as_strips=places is not None), places, shape
        )

    def _keep(self, x: Tensor, kept: Tensor) -> Tensor:
        return keep_tokens(x, kept, self.shape.num_prefix_tokens)

    def _added_positions(self, x: Tensor, shape: ViTShape, places: Places | None = None) -> Tensor | nn.Module | None:
        """The positions that ``add_positions`` adds to tokens x at the stem or before every block."""
        kind = self.config.pos_embed
        if kind.startswith("sincos2d_"):
            form = kind.removeprefix("sincos2d_")
            return sincos_2d(form, shape.grid, shape.embed_dim, x.device, places).to(x.dtype)
        if places is not None and isinstance(self.pos_embed, Tensor):
            return table_at(self.pos_embed, self.shape.grid, places)
        if self.pos_embed is None or shape.grid == self.shape.grid:
            return self.pos_embed
        assert not isinstance(self.pos_embed, nn.Module), "the family refuses other tables for several sizes"
        prefix = self.shape.num_prefix_tokens if self.config.pos_embed_prefix else 0
        return resized_table(self.pos_embed, self.shape.grid, shape.grid, prefix, self.filter)

    def _rotary(
        self, x: Tensor, shape: ViTShape, kept: Tensor | None, places: Places | None
    ) -> Sequence[Tensor | None]:
        """Cosines and sines for queries and keys of each block."""
        if self.rope is not None:
            return self.rope(x, shape).unbind(0)
        shared = axial_rotary(self.config, shape, x.device, places) if self.config.rope == "axial" else None
        if shared is not None and kept is not None:
            shared = keep_rotary(shared, kept, self.shape.num_prefix_tokens)
        return [shared] * self.shape.depth

    def _run_blocks(
        self,
        x: Tensor,
        drop_path: Tensor | None,
        shape: ViTShape,
        kept: Tensor | None = None,
        places: Places | None = None,
    ) -> Iterator[Tensor]:
        """Tokens after each block, one block at a time."""
        expected = (x.shape[0], self.shape.depth, NUM_BRANCHES)
        assert drop_path is None or drop_path.shape == expected, f"drop_path is {drop_path.shape}, not {expected}"
        bias = None if self.shared_rel_pos is None else self.shared_rel_pos(x)
        if places is not None:
            bias = key_bias(places.valid, self.shape.num_prefix_tokens, x.dtype)
        rotary, added = self._rotary(x, shape, kept, places), None
        if self.pos_embed_placement == "every_layer_shared":
            added = self._added_positions(x, shape)
        uses_rng = self.training and self.uses_generator
        for index, block in enumerate(self.blocks):
            scales = None if drop_path is None else drop_path[:, index]
            policy = block_policy(self.checkpointing, index)
            policy = "none" if self.compiled and policy == "selective" else policy  # it is inside the graph
            x = run_block(policy, block, add_positions(x, added), scales, bias, rotary[index], uses_rng=uses_rng)
            yield x


_BLOCKS: dict[str, Callable[[ViTShape, ModelConfig], nn.Module]] = {"sequential": Block, "parallel": ParallelBlock}


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
