"""Our own Vision Transformers: ``model.name: vit``. Everything but the networks is in closed form, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models import cost
from pretrain.models.families.protocol import Family, Footprint, Geometry, Precision, Shapes, TimmTwin
from pretrain.models.tensor_shapes import DECODER, layer_id, parameter_shapes
from pretrain.models.variants import decoder_model, placement, resolve, rope_temperature

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import Filter, SurgeryOptions, SurgeryReport


_HEADS = ("head.", "head_dist.", "head_patches.")
_NOT_CAST = (*_HEADS, "pre_logits.", "patch_embed.backbone.", f"{DECODER}pred.")


class VitFamily:
    """See ``protocol.Family``."""

    def summary(self, model: ModelConfig) -> str:
        """Variant, resolution and number of tokens."""
        shape = resolve(model)
        kept = f", {shape.num_trained_tokens} of them in training" if model.patch_drop else ""
        return f"{model.variant} at {shape.img_size[0]}×{shape.img_size[1]}: {shape.num_tokens} tokens{kept}"

    def geometry(self, model: ModelConfig) -> Geometry:
        """See ``protocol.Family``; all facts are known."""
        shape = resolve(model)
        return Geometry(
            img_size=shape.img_size,
            patch=shape.patch,
            grid=shape.grid,
            num_prefix_tokens=shape.num_prefix_tokens,
            pool=model.pool,
            gelu=model.gelu,
            layer_norm_eps=model.layer_norm_eps,
        )

    def require_same(self, theirs: ModelConfig, ours: ModelConfig) -> None:
        """Image size, patch size, head and pooling may differ, but not the meaning of the other tensors."""
        _require_same_settings(theirs, ours)
        _require_same_shape(theirs, ours)
        _require_same_sequence(theirs, ours)

    def tensor_shapes(self, model: ModelConfig, num_classes: int) -> Shapes:
        """Parameters; there are no other tensors."""
        shapes = parameter_shapes(model, max(1, num_classes))
        if num_classes:
            return shapes
        return {name: shape for name, shape in shapes.items() if not name.startswith(_HEADS)}

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """None: LayerNorm and GroupNorm have no running statistics."""
        return ()

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """See ``tensor_shapes.layer_id``."""
        depth = resolve(model).depth
        return {name: layer_id(name, depth) for name in parameter_shapes(model, num_classes)}

    def attention_heads(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Those of the blocks, and of attention pooling; parallel blocks have no layer of attention alone."""
        shape = resolve(model)
        modules = [f"blocks.{index}.attn" for index in range(shape.depth) if model.block == "sequential"]
        heads = dict.fromkeys([*modules, "attn_pool"] if model.pool == "map" else modules, shape.num_heads)
        if model.decoder is not None:
            of_decoder = self.attention_heads(decoder_model(model), num_classes)
            heads |= {DECODER + name: number for name, number in of_decoder.items()}
        return heads

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """See ``cost.num_parameters``."""
        return cost.num_parameters(model, num_classes, with_head=with_head)

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """See ``cost.forward_macs``."""
        return cost.forward_macs(model, num_classes, with_head=with_head)

    def weight_macs(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """See ``cost.weight_macs``."""
        return cost.weight_macs(model, num_classes)

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """See ``cost.recomputed_macs``."""
        return cost.recomputed_macs(model, checkpointing)

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """See ``cost.footprint``."""
        return cost.footprint(model, num_classes, precision=precision, checkpointing=checkpointing)

    def cast_names(self, model: ModelConfig, num_classes: int) -> frozenset[str]:
        """All matrices and convolutions but those computed in fp32, or whose kernels are computed from weights."""
        names = parameter_shapes(model, num_classes)
        not_cast = (*_NOT_CAST, "patch_embed.") if model.patch_sizes else _NOT_CAST
        layers = {
            name.removesuffix(".weight")
            for name, shape in names.items()
            if name.endswith(".weight") and len(shape) > 1 and not name.startswith(not_cast)
        }
        return frozenset(name for name in names if name.rpartition(".")[0] in layers)

    def units(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """The blocks, also those of a decoder."""
        blocks = tuple(f"blocks.{index}" for index in range(resolve(model).depth))
        decoder = () if model.decoder is None else self.units(decoder_model(model), num_classes)
        return (*blocks, *(DECODER + name for name in decoder))

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Never: positions belong to one grid."""
        return False

    def fixed_size_because(self, model: ModelConfig) -> str | None:
        """Tables in the blocks, relative terms and tables by row and column are of one grid."""
        if model.pos_embed in ("learned_2d", "relative_1d", "relative_bias"):
            return f"model.pos_embed: {model.pos_embed} belongs to one grid of patches"
        if placement(model) == "every_layer":
            return "model.pos_embed_placement: every_layer has a table of one grid in each block"
        return None

    def accept_sizes(self, net: nn.Module, tilings: Sequence[Tiling], filter: Filter) -> None:
        """See ``VisionTransformer.accept_sizes``."""
        net.accept_sizes(tilings, filter)  # type: ignore[operator]

    def build(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """A VisionTransformer, or the subclass that the head or the training needs."""
        from pretrain.models import vit_tasks
        from pretrain.models.vit import VisionTransformer

        if model.decoder is not None:
            from pretrain.models.masked_autoencoder import MaskedAutoencoder

            return MaskedAutoencoder(model, num_classes)
        if model.head != "pooled":
            kinds = {
                "dense": vit_tasks.DenseTransformer,
                "patches": vit_tasks.PatchTransformer,
                "pooled_and_patches": vit_tasks.PooledAndPatchTransformer,
            }
            return kinds[model.head](model, num_classes)
        if model.distilled:
            return vit_tasks.DistilledVisionTransformer(model, num_classes)
        return (vit_tasks.MaskedPatchTransformer if model.mask_token else VisionTransformer)(model, num_classes)

    def build_frozen(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """The same."""
        return self.build(model, num_classes)

    def init_weights(self, net: nn.Module, seed: int) -> None:
        """Each tensor by its name (see ``models.init``)."""
        from pretrain.models.init import init_weights

        init_weights(net, seed)

    def uses_generator(self, net: nn.Module) -> bool:
        """Element dropout alone, also that of adapters; drop-path masks are arguments."""
        return bool(net.uses_generator)

    def classifiers(self, net: nn.Module) -> list[nn.Module]:
        """``head``, and of a distilled model ``head_dist``; an autoencoder's ``head`` returns its input."""
        return [layer for name in ("head", "head_dist") if (layer := getattr(net, name, None)) is not None]

    def patch_features(self, net: nn.Module, images: Tensor) -> Tensor:
        """After the final norm, also that of ``pool: avg_norm``."""
        return net.patch_map(net.fc_norm(net.forward_features(images)))  # type: ignore[operator]

    def adapt(
        self, state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
    ) -> tuple[dict[str, Tensor], SurgeryReport]:
        """See ``vit_surgery.adapt``."""
        from pretrain.models.families.vit_surgery import adapt

        return adapt(state, source, net, options)

    def timm_twin(self, model: ModelConfig) -> TimmTwin:
        """See ``exchange.timm_vit.vit_twin``."""
        from pretrain.models.exchange.timm_vit import vit_twin

        return vit_twin(model)

    def write_huggingface(self, folder: Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
        """See ``exchange.huggingface_writer.write_vit``."""
        from pretrain.models.exchange.huggingface_writer import write_vit

        write_vit(folder, state, metadata)


FAMILY: Family = VitFamily()


def _require_same_settings(theirs: ModelConfig, ours: ModelConfig) -> None:
    """Settings that the shapes of the tensors would not show, or would show less clearly."""
    if theirs.distilled != ours.distilled:
        raise CheckpointError(
            f"the weights are of a model with{'' if theirs.distilled else 'out'} a distillation token; set "
            f"model.distilled: {str(theirs.distilled).lower()}, or name other weights"
        )
    learned = theirs.pos_embed.startswith("sincos2d_") and ours.pos_embed == "learned_1d"  # from the fixed table
    for name, found, wanted in (
        ("num_registers", theirs.num_registers, ours.num_registers),
        ("block", theirs.block, ours.block),
        ("norm", theirs.norm, ours.norm),
        ("mlp", theirs.mlp, ours.mlp),
        ("qkv_bias", theirs.qkv_bias, ours.qkv_bias),
        ("qk_norm", theirs.qk_norm, ours.qk_norm),
        ("gated_attention", theirs.gated_attention, ours.gated_attention),
        ("layer_scale", theirs.layer_scale is not None, ours.layer_scale is not None),
        ("pos_embed", ours.pos_embed if learned else theirs.pos_embed, ours.pos_embed),
        ("pos_embed_placement", placement(theirs), placement(ours)),
        ("pos_embed_prefix", theirs.pos_embed_prefix, ours.pos_embed_prefix),
        ("rope", theirs.rope, ours.rope),
        ("rope_temperature", _axial_temperature(theirs), _axial_temperature(ours)),
        ("rope_register_temperature", theirs.rope_register_temperature, ours.rope_register_temperature),
    ):
        if found != wanted:
            raise CheckpointError(
                f"the weights have model.{name}: {_shown(getattr(theirs, name))}, the model has "
                f"{_shown(getattr(ours, name))}; set it as in the weights, or name other weights"
            )


def _require_same_shape(theirs: ModelConfig, ours: ModelConfig) -> None:
    old, new = resolve(theirs), resolve(ours)
    if new.num_prefix_tokens > old.num_prefix_tokens:
        raise CheckpointError(
            "tensor cls_token of the model is not in the weights, which were trained without a class token; "
            "set model.class_token: false and model.pool: norm_avg or avg_norm"
        )
    tensors = {
        "depth": f"blocks.{min(old.depth, new.depth)}.norm1.weight",
        "embed_dim": "pos_embed",
        "mlp_dim": "blocks.0.mlp.fc1.weight",
        "num_heads": "blocks.0.attn.qkv.weight",
    }
    if ours.block == "parallel":
        tensors |= {"depth": f"blocks.{min(old.depth, new.depth)}.in_norm.weight"}
        tensors |= dict.fromkeys(("mlp_dim", "num_heads"), "blocks.0.in_proj.weight")
    if old.stem_blocks or new.stem_blocks:  # the patches of a hybrid are pixels of its ResNet's feature map
        tensors = {"patch": "patch_embed.proj.weight", **tensors}
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in tensors}
    pairs |= {name: (getattr(theirs, name), getattr(ours, name)) for name in ("gelu", "layer_norm_eps")}
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            where = f", which shows in tensor {tensors[name]}" if name in tensors else ""
            remedy = f"model.variant: {theirs.variant}" + ("" if name == "patch" else f" and model.{name}: {found}")
            raise CheckpointError(
                f"the weights are a {theirs.variant} with {name} {found}, the model {ours.variant} has "
                f"{wanted}{where}; set {remedy}, or name other weights"
            )


def _require_same_sequence(theirs: ModelConfig, ours: ModelConfig) -> None:
    """Relative keys number the offsets of one sequence."""
    old, new = resolve(theirs), resolve(ours)
    if ours.pos_embed == "relative_1d" and (old.grid, old.num_tokens) != (new.grid, new.num_tokens):
        raise CheckpointError(
            f"tensor blocks.0.attn.rel_pos.relative_keys numbers offsets in a sequence of {old.num_tokens} tokens on a "
            f"grid of {old.grid[0]}×{old.grid[1]}; on {new.grid[0]}×{new.grid[1]} with {new.num_tokens} tokens a "
            "number is another direction, and nothing can be interpolated; set model.img_size and model.class_token as "
            "in the weights, or name weights with pos_embed: relative_bias or a learned kind, or with rope"
        )


def _axial_temperature(model: ModelConfig) -> float | None:
    """The base that decides the angles; learned frequencies have it only at the start."""
    return rope_temperature(model) if model.rope == "axial" else None


def _shown(value: object) -> str:
    """A setting as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
