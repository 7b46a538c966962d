"""The architecture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pretrain.config.families import FAMILIES, FamilyTraits, family_name, forms_where, known_forms
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Probability, Strict

# Placements of each kind of position embedding; the first is the default. A fixed embedding is the same in every layer,
# so it has no per-layer tables.
POS_EMBED_PLACEMENTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "learned_1d": ("stem", "every_layer", "every_layer_shared"),
    "learned_2d": ("stem", "every_layer", "every_layer_shared"),
    "sincos2d_big_vision": ("stem", "every_layer_shared"),
    "sincos2d_timm": ("stem", "every_layer_shared"),
    "relative_1d": ("every_layer",),
    "relative_bias": ("every_layer", "every_layer_shared"),
    "rope_2d": (),
}


class ModelConfig(Strict):
    """The architecture. Vision Transformer variants are named as in the paper: ``H/14`` is Huge with patch size 14."""

    name: str = Field(
        default="vit",
        description="vit (ours, see variant), or timm/NAME for a timm classifier, such as timm/pvt_v2_b2.",
    )
    kwargs: dict[str, Any] = Field(
        default_factory=dict, description="timm/… only: passed to timm.create_model unchanged, such as window_size."
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
    num_registers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Learned register tokens after the class token; excluded from pooling."
    )
    layer_scale: PositiveFloat | None = Field(
        default=None, description="LayerScale: initial per-channel factor on each branch; null: none."
    )
    qk_norm: bool = Field(default=False, description="LayerNorm of each head's queries and keys before the product.")
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
        "relative_1d",
        "relative_bias",
        "rope_2d",
    ] = Field(
        default="learned_1d",
        description="Kind of position embedding. Added to tokens: learned_1d (a row per token), learned_2d (half the "
        "channels by row, half by column), sincos2d_big_vision and sincos2d_timm (fixed; their frequencies differ). "
        "In attention: relative_1d (the paper's relative keys), relative_bias (a bias per head and 2-D offset, "
        "timm's), rope_2d (rotary by row and column, timm's).",
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
    rope_temperature: PositiveFloat = Field(
        default=10_000.0, description="rope_2d only: base b of the n frequencies b^(-k/n), k = 0 … n - 1."
    )
    rope_grid: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="rope_2d only: scale positions as if the grid (h, w) were this one, such as the pretraining grid "
        "when fine-tuning at another resolution; null: positions are patch indices.",
    )
    head: Literal["pooled", "dense"] = Field(
        default="pooled",
        description="pooled: logits per image. dense: logits per pixel, from a linear layer on each patch token and "
        "bilinear interpolation, for objective.name: segmentation.",
    )
    representation_size: PositiveInt | Literal["width"] | None = Field(
        default=None,
        description="Width of the tanh layer before the head (the paper's pretraining head); null: linear head.",
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
    gelu: Literal["erf", "tanh"] = Field(default="erf", description="Form of GELU: timm's erf, or flax's tanh.")
    layer_norm_eps: PositiveFloat = Field(default=1e-6, description="Epsilon of every LayerNorm.")

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
        return self

    @model_validator(mode="after")
    def _dense_head_has_patch_tokens(self) -> ModelConfig:
        if self.head == "dense":
            others = {
                "pool: map": self.pool == "map",
                "representation_size": self.representation_size is not None,
                "distilled": self.distilled,
                "mask_token": self.mask_token,
            }
            ignored = [name for name, given in others.items() if given]
            if ignored:
                raise ValueError(
                    f"head: dense is one layer on each patch token; {ignored[0]} would be ignored: remove it"
                )
        return self

    @model_validator(mode="after")
    def _position_settings_fit(self) -> ModelConfig:
        kind, placement = self.pos_embed, self.pos_embed_placement
        for names, owner in ((("pos_embed_prefix",), "learned_1d"), (("rope_temperature", "rope_grid"), "rope_2d")):
            changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if changed and kind != owner:
                raise ValueError(f"{changed[0]} belongs to pos_embed: {owner}; with {kind} it would be ignored")
        allowed = POS_EMBED_PLACEMENTS[kind]
        if placement is not None and placement not in allowed:
            choices = f"choose {' or '.join(allowed)}" if allowed else "remove it"
            raise ValueError(f"pos_embed_placement: {placement} has no meaning with pos_embed: {kind}; {choices}")
        return self
