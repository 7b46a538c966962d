"""The architecture."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pretrain.config.families import FAMILIES, FamilyTraits, family_name, forms_where, known_forms
from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Probability, Strict

# Placements of each kind of position embedding; the first is the default. A fixed embedding is the same in every layer,
# so it has no per-layer tables.
POS_EMBED_PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "learned_1d": ("stem", "every_layer", "every_layer_shared"),
    "learned_2d": ("stem", "every_layer", "every_layer_shared"),
    "sincos2d_big_vision": ("stem", "every_layer_shared"),
    "sincos2d_timm": ("stem", "every_layer_shared"),
    "sincos2d_mae": ("stem", "every_layer_shared"),
    "relative_1d": ("every_layer",),
    "relative_bias": ("every_layer", "every_layer_shared"),
}


# Settings for training only; a file for inference need not carry them, and a fine-tuning chooses its own.
TRAINING_ONLY = frozenset(
    {"dropout", "drop_path", "drop_path_shape", "patch_drop", "patch_sizes", "head_init", "head_bias", "mask_token"}
    | {"decoder"}
)


class DecoderConfig(Strict):
    """The decoder of a masked autoencoder; its blocks are of the encoder's kind, with an MLP four times as wide."""

    embed_dim: PositiveInt = Field(default=512, description="Width of the decoder.")
    depth: PositiveInt = Field(default=8, description="Number of its blocks.")
    num_heads: PositiveInt = Field(default=16, description="Attention heads of each block.")

    @model_validator(mode="after")
    def _width_can_be_divided(self) -> DecoderConfig:
        if self.embed_dim % 4 or self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim: {self.embed_dim} must be divisible by 4 (its positions) and by num_heads: {self.num_heads}"
            )
        return self


class ModelConfig(Strict):
    """The architecture. Vision Transformer variants are named as in the paper: ``H/14`` is Huge with patch size 14."""

    name: str = Field(
        default="vit",
        description="vit (ours, see variant), timm/NAME for a timm classifier, such as timm/pvt_v2_b2, or hf/NAME for "
        "a class of transformers, such as hf/DINOv3ViTModel.",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="timm/… and hf/… only: passed to timm.create_model, or to the config class of transformers, "
        "unchanged, such as window_size.",
    )
    variant: str = Field(
        default="",
        description="vit only: size and patch, such as B/16, L/16 or H/14; sizes are the keys of "
        "pretrain/models/variants.py. R50+B/16 is the hybrid: a ResNet-50 of total stride 16 (or 32) makes the feature "
        "map that is cut into patches.",
    )
    img_size: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        default=224,
        description="Input resolution in pixels: one number, or [height, width]. The patch size must divide it.",
    )
    embed_dim: PositiveInt | None = Field(default=None, description="Width D; overrides the variant's.")
    depth: Annotated[int, Field(gt=0, le=1000)] | None = Field(
        default=None, description="Number of blocks; overrides the variant's."
    )
    num_heads: PositiveInt | None = Field(default=None, description="Attention heads; overrides the variant's.")
    mlp_dim: PositiveInt | None = Field(default=None, description="Hidden width of the MLP; overrides the variant's.")
    class_token: bool = Field(default=True, description="Prepend a learned class token. Needed by pool: token.")
    distilled: bool = Field(
        default=False,
        description="DeiT's distillation token with its own head; the prediction averages both heads' logits.",
    )
    mask_token: bool = Field(
        default=False, description="A learned [mask] embedding, for objective.name: masked_patches."
    )
    decoder: DecoderConfig | None = Field(
        default=None, description="The light decoder of objective.name: mae ({} for the paper's); null: none."
    )
    num_registers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Learned register tokens after the class token; excluded from pooling."
    )
    layer_scale: PositiveFloat | None = Field(
        default=None, description="LayerScale: initial per-channel factor on each branch; null: none."
    )
    block: Literal["sequential", "parallel"] = Field(
        default="sequential",
        description="sequential: attention, then MLP. parallel: both read the same normed tokens, by one dense layer "
        "(ViT-22B, timm's SBB pwee).",
    )
    norm: Literal["layer_norm", "rms_norm"] = Field(
        default="layer_norm", description="Kind of every norm: LayerNorm, or RMSNorm (no mean, no bias)."
    )
    mlp: Literal["mlp", "swiglu"] = Field(
        default="mlp",
        description="Each block's MLP: dense, GELU, dense; or gated by SiLU (SwiGLU, packed as timm's), whose first "
        "layer is twice mlp_dim wide.",
    )
    qkv_bias: bool = Field(
        default=True, description="Biases of queries, keys and values in the blocks (and of gated_attention's gate)."
    )
    qk_norm: bool = Field(default=False, description="Norm of each head's queries and keys before the product.")
    gated_attention: bool = Field(
        default=False,
        description="Multiply each block's attention by a sigmoid gate of its input before the output projection.",
    )
    pool: Literal["token", "norm_avg", "avg_norm", "map"] = Field(
        default="token",
        description="Input of the head. token: the class token after the final norm; norm_avg: the mean of the normed "
        "patch tokens (big_vision); avg_norm: the norm of their mean (timm's default for avg); map: attention pooling "
        "of the normed patch tokens by a learned query, then an MLP (Scaling ViT).",
    )
    pos_embed: Literal[
        "none",
        "learned_1d",
        "learned_2d",
        "sincos2d_big_vision",
        "sincos2d_timm",
        "sincos2d_mae",
        "relative_1d",
        "relative_bias",
    ] = Field(
        default="learned_1d",
        description="Kind of position embedding. Added to tokens: learned_1d (a row per token), learned_2d (half the "
        "channels by row, half by column), sincos2d_big_vision, sincos2d_timm and sincos2d_mae (fixed; their "
        "frequencies or order differ). In attention: relative_1d (the paper's relative keys), relative_bias (a bias "
        "per head and 2-D offset, timm's). Rotary positions are a setting of their own, rope.",
    )
    pos_embed_placement: Literal["stem", "every_layer", "every_layer_shared"] | None = Field(
        default=None,
        description="Added kinds: at the stem (the default), before every block by tables of their own, or before "
        "every block by one table (ViT, D.4). Relative kinds: every_layer (the default); relative_bias may be shared.",
    )
    pos_embed_prefix: bool = Field(
        default=True,
        description="learned_1d only: class and register tokens also have rows (the paper); false: patches only "
        "(big_vision, DeiT III; timm's no_embed_class).",
    )
    rope: Literal["axial", "mixed"] | None = Field(
        default=None,
        description="Rotary positions of queries and keys, beside an added pos_embed (or with pos_embed: none). "
        "axial: half the channels turn by row, half by column (EVA-02); mixed: each pair of channels turns by its own "
        "learned mixture of both (RoPE-ViT). Class, distillation and register tokens are not turned.",
    )
    rope_temperature: PositiveFloat | None = Field(
        default=None,
        description="rope only: base b of the n frequencies b^(-k/n), k = 0 … n - 1, at the start if they are learned; "
        "null: 10,000 (axial) or 10 (mixed).",
    )
    rope_grid: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="rope only: scale positions as if the grid (h, w) were this one, such as the pretraining grid "
        "when fine-tuning at another resolution; null: positions are patch indices.",
    )
    rope_register_temperature: PositiveFloat | None = Field(
        default=None,
        description="rope: axial only: register tokens turn too, on a square grid of their own, with this base (ViT-5: "
        "100); null: they do not turn.",
    )
    head: Literal["pooled", "dense", "patches", "pooled_and_patches"] = Field(
        default="pooled",
        description="pooled: logits per image. dense: logits per pixel, from a linear layer on each patch token and "
        "bilinear interpolation, for objective.name: segmentation. patches: the same without interpolation, for "
        "objective.name: token_distillation. pooled_and_patches: outputs of the image, and of each patch by a second "
        "layer, for objective.name: feature_and_token_distillation.",
    )
    representation_size: PositiveInt | Literal["width"] | None = Field(
        default=None,
        description="Width of the tanh layer before the head: the paper's pretraining head, or the hidden layer of a "
        "distillation's projection; null: linear head.",
    )
    head_bias: float = Field(default=0.0, description="Initial bias of the head; -10 for a sigmoid over many classes.")
    head_init: Literal["zero", "normal"] = Field(
        default="zero", description="Initial weights of the head: zero (the paper's code) or Gaussian with std 0.01."
    )
    dropout: Probability = Field(
        default=0.0,
        description="Dropout after every dense layer except qkv and after the position embedding (the paper's).",
    )
    drop_path: Probability = Field(
        default=0.0, description="Stochastic depth: rate of the last block or of all blocks."
    )
    drop_path_shape: Literal["linear", "constant"] = Field(
        default="linear",
        description="vit only: drop_path increases linearly from 0 in the first block (timm, DeiT), or is the rate of "
        "every block (constant, DeiT III).",
    )
    patch_drop: Probability = Field(
        default=0.0,
        description="Share of the patches that are left out of each training image, after positions are added "
        "(timm's patch_drop_rate). The patches are a function of seed and slot; evaluation sees all.",
    )
    patch_sizes: tuple[PositiveInt, ...] = Field(
        default=(),
        description="Sides of the patches in training, of which one is drawn for each batch by seed and step "
        "(FlexiViT): kernels and positions are resized from those of the variant's patch, which evaluation and saved "
        "weights have. Empty: the variant's patch.",
    )
    gelu: Literal["erf", "tanh"] = Field(default="erf", description="Form of GELU: timm's erf, or flax's tanh.")
    layer_norm_eps: PositiveFloat = Field(default=1e-6, description="Epsilon of every norm.")

    @property
    def family(self) -> FamilyTraits:
        """The settings that this model's family reads, and its capabilities."""
        name = family_name(self.name)
        assert name is not None, "validated below"
        return FAMILIES[name]

    @property
    def label(self) -> str:
        """The shortest name that distinguishes this model within its family."""
        return self.variant or self.name

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def patch(self) -> int:
        """vit only: side of a patch in pixels."""
        return int(self.variant.rpartition("/")[2])

    def at_tiling(self, tiling: Tiling) -> ModelConfig:
        """The same architecture for images and patches of one size."""
        update: dict[str, Any] = {"img_size": tiling.size, "patch_sizes": ()}
        if tiling.patch is not None:
            update["variant"] = f"{self.variant.rpartition('/')[0]}/{tiling.patch}"
        return self.model_copy(update=update)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """One object per family, with the keys that it reads.

        ``anyOf`` rather than ``oneOf``: a file may inherit ``name`` through ``extends``, and then several can match.
        Other keys may have their default, for a file that resets an inherited value; they are ``patternProperties``
        because editors do not complete those.
        """
        written = handler(schema)
        section = handler.resolve_ref_schema(written)
        keys = section.pop("properties")
        del keys["name"]["default"]
        form = {name: section.pop(name) for name in ("type", "additionalProperties")}
        section["anyOf"] = [
            form
            | {
                "properties": {"name": keys["name"] | family.name_schema()}
                | {key: value for key, value in keys.items() if key in family.keys},
                "patternProperties": {
                    f"^{key}$": {"const": value.get("default", {})}
                    for key, value in keys.items()
                    if key not in family.keys | {"name"}
                },
            }
            for family in FAMILIES.values()
        ]
        return written

    @model_validator(mode="after")
    def _settings_belong_to_the_family(self) -> ModelConfig:
        if family_name(self.name) is None:
            raise ValueError(f"name: unknown architecture {self.name!r}; known are {known_forms()}")
        family = self.family
        for key, remedy in family.needed.items():
            if not getattr(self, key):
                raise ValueError(f"{key}: is missing; {remedy}")
        for key, field in type(self).model_fields.items():
            if key in family.keys | {"name"} or getattr(self, key) == field.get_default(call_default_factory=True):
                continue
            owners = forms_where(lambda other, key=key: key in other.keys)
            hint = ": see model.kwargs" if "kwargs" in family.keys else ""
            raise ValueError(f"{key} belongs to name: {owners}; with {self.name} it would be ignored{hint}")
        refused = sorted(set(family.refused_kwargs) & set(self.kwargs))
        if refused:
            remedy = family.refused_kwargs[refused[0]]
            raise ValueError(f"kwargs.{refused[0]} is set by the engine ({remedy}); remove it here")
        return self

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> ModelConfig:
        if self.drop_path_shape == "constant" and not self.drop_path:
            raise ValueError("drop_path_shape: constant belongs to drop_path; with drop_path: 0 it would be ignored")
        if self.pool == "token" and not self.class_token:
            raise ValueError("pool: token needs class_token: true (or choose pool: norm_avg or avg_norm)")
        if self.distilled and (self.pool != "token" or self.representation_size is not None or self.mask_token):
            raise ValueError("distilled: true needs pool: token, a linear head and no mask_token")
        if self.distilled and self.num_registers:
            raise ValueError("distilled: true has no num_registers; remove one of the two")
        if self.mlp == "swiglu" and self.gelu != "erf" and self.pool != "map":
            raise ValueError(f"gelu: {self.gelu} would be ignored: mlp: swiglu has SiLU; remove gelu, or set mlp: mlp")
        return self

    @model_validator(mode="after")
    def _patches_are_cut(self) -> ModelConfig:
        if len(set(self.patch_sizes)) < len(self.patch_sizes):
            raise ValueError(f"patch_sizes: {list(self.patch_sizes)}; list each side once")
        if self.patch_sizes and "+" in self.variant:
            raise ValueError(f"patch_sizes: {self.variant} has a ResNet of one stride before its patches; remove it")
        return self

    @model_validator(mode="after")
    def _parallel_blocks_are_timms(self) -> ModelConfig:
        if self.block == "parallel":
            others = {
                "mlp: swiglu": self.mlp == "swiglu",
                "qkv_bias: false": not self.qkv_bias,
                "gated_attention": self.gated_attention,
                f"pos_embed: {self.pos_embed}": self.pos_embed.startswith("relative"),
                "pos_embed_placement: every_layer": self.pos_embed_placement == "every_layer",
            }
            for name, given in others.items():
                if given:
                    raise ValueError(f"block: parallel has no {name}; remove it, or set block: sequential")
        return self

    @model_validator(mode="after")
    def _all_patches_are_there_where_needed(self) -> ModelConfig:
        if self.patch_drop:
            needing = {
                f"head: {self.head}": self.head != "pooled",
                "mask_token": self.mask_token,
                f"pos_embed: {self.pos_embed}": self.pos_embed.startswith("relative"),
                f"pos_embed_placement: {self.pos_embed_placement}": self.pos_embed_placement not in (None, "stem"),
                "rope: mixed": self.rope == "mixed",
            }
            for name, given in needing.items():
                if given:
                    raise ValueError(
                        f"patch_drop does not work with {name}, which needs every patch; remove one of them"
                    )
        return self

    @model_validator(mode="after")
    def _decoder_has_an_encoder_for_it(self) -> ModelConfig:
        if self.decoder is None:
            return self
        others = {
            "a hybrid, whose convolutions see every pixel": self.variant.startswith("R50+"),
            "distilled": self.distilled,
            "mask_token": self.mask_token,
            "representation_size": self.representation_size is not None,
            f"head: {self.head}": self.head != "pooled",
            f"pool: {self.pool}": self.pool not in ("token", "norm_avg"),
        }
        for name, given in others.items():
            if given:
                raise ValueError(
                    f"decoder does not work with {name}: it reads the normed patch tokens in place of a head; "
                    "remove one of them (pool: token and norm_avg work)"
                )
        return self

    @model_validator(mode="after")
    def _dense_head_has_patch_tokens(self) -> ModelConfig:
        if self.head != "pooled":
            others = {
                "pool: map": self.pool == "map" and self.head != "pooled_and_patches",
                "representation_size": self.representation_size is not None and self.head != "patches",
                "distilled": self.distilled,
                "mask_token": self.mask_token,
            }
            ignored = [name for name, given in others.items() if given]
            if ignored:
                raise ValueError(f"head: {self.head} is on each patch token; {ignored[0]} would be ignored: remove it")
        return self

    @model_validator(mode="after")
    def _position_settings_fit(self) -> ModelConfig:
        kind, placement = self.pos_embed, self.pos_embed_placement
        if not self.pos_embed_prefix and kind != "learned_1d":
            raise ValueError(f"pos_embed_prefix belongs to pos_embed: learned_1d; with {kind} it would be ignored")
        allowed = POS_EMBED_PLACEMENTS[kind]
        if placement is not None and placement not in allowed:
            choices = f"choose {' or '.join(allowed)}" if allowed else "remove it"
            raise ValueError(f"pos_embed_placement: {placement} has no meaning with pos_embed: {kind}; {choices}")
        return self

    @model_validator(mode="after")
    def _rope_settings_fit(self) -> ModelConfig:
        if self.rope is not None and self.pos_embed.startswith("relative"):
            raise ValueError(f"rope and pos_embed: {self.pos_embed} both act in attention; set pos_embed: none")
        needed = {"rope_temperature": ("axial", "mixed"), "rope_grid": ("axial", "mixed")}
        for name, owners in (needed | {"rope_register_temperature": ("axial",)}).items():
            if getattr(self, name) is not None and self.rope not in owners:
                raise ValueError(f"{name} belongs to rope: {' or '.join(owners)}; without it, it would be ignored")
        registers = self.num_registers
        if self.rope_register_temperature is not None and (not registers or math.isqrt(registers) ** 2 != registers):
            raise ValueError(
                f"rope_register_temperature: {registers} registers are not a square grid; set num_registers to 1, 4, 9 "
                "or another square"
            )
        return self
