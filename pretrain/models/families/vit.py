"""Our own Vision Transformers: ``model.name: vit``. Everything but the networks is in closed form, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models import cost, variants
from pretrain.models.families.protocol import Family, Geometry, Shapes, TimmTwin
from pretrain.models.footprint import Footprint, Precision
from pretrain.models.variants import layer_id, placement, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import SurgeryOptions, SurgeryReport


class VitFamily:
    """See ``protocol.Family``."""

    def summary(self, model: ModelConfig) -> str:
        """Variant, resolution and number of tokens."""
        shape = resolve(model)
        return f"{model.variant} at {shape.img_size[0]}×{shape.img_size[1]}: {shape.num_tokens} tokens"

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
        """Image size, head and pooling may differ, but not the meaning of the tensors."""
        _require_same_settings(theirs, ours)
        _require_same_shape(theirs, ours)
        _require_same_sequence(theirs, ours)

    def tensor_shapes(self, model: ModelConfig, num_classes: int) -> Shapes:
        """Parameters; there are no other tensors."""
        return variants.parameter_shapes(model, num_classes)

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """None: LayerNorm and GroupNorm have no running statistics."""
        return ()

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """See ``variants.layer_id``."""
        depth = resolve(model).depth
        return {name: layer_id(name, depth) for name in variants.parameter_shapes(model, num_classes)}

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """See ``cost.num_parameters``."""
        return cost.num_parameters(model, num_classes, with_head=with_head)

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """See ``cost.forward_macs``."""
        return cost.forward_macs(model, num_classes, with_head=with_head)

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """See ``cost.recomputed_macs``."""
        return cost.recomputed_macs(model, checkpointing)

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """See ``cost.footprint``."""
        return cost.footprint(model, num_classes, precision=precision, checkpointing=checkpointing)

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Never: positions belong to one grid."""
        return False

    def build(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """A VisionTransformer, or the subclass that the head or the training needs."""
        from pretrain.models.vit import VisionTransformer
        from pretrain.models.vit_tasks import DenseTransformer, DistilledVisionTransformer, MaskedPatchTransformer

        if model.head == "dense":
            return DenseTransformer(model, num_classes)
        if model.distilled:
            return DistilledVisionTransformer(model, num_classes)
        return (MaskedPatchTransformer if model.mask_token else VisionTransformer)(model, num_classes)

    def build_frozen(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """The same."""
        return self.build(model, num_classes)

    def init_weights(self, net: nn.Module, seed: int) -> None:
        """Each tensor by its name (see ``models.init``)."""
        from pretrain.models.init import init_weights

        init_weights(net, seed)

    def uses_generator(self, net: nn.Module) -> bool:
        """Element dropout alone; drop-path masks are arguments."""
        config: ModelConfig = net.config  # type: ignore[assignment]
        return config.dropout > 0

    def classifiers(self, net: nn.Module) -> list[nn.Module]:
        """``head``, and of a distilled model ``head_dist``."""
        return [layer for name in ("head", "head_dist") if (layer := getattr(net, name, None)) is not None]

    def adapt(
        self, state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
    ) -> tuple[dict[str, Tensor], SurgeryReport]:
        """See ``vit_surgery.adapt``."""
        from pretrain.models.families.vit_surgery import adapt

        return adapt(state, source, net, options)

    def timm_twin(self, model: ModelConfig) -> TimmTwin:
        """See ``exchange.timm_names.vit_twin``."""
        from pretrain.models.exchange.timm_names import vit_twin

        return vit_twin(model)


FAMILY: Family = VitFamily()


def _require_same_settings(theirs: ModelConfig, ours: ModelConfig) -> None:
    """Settings that the shapes of the tensors would not show, or would show less clearly."""
    if theirs.distilled != ours.distilled:
        raise CheckpointError(
            f"the weights are of a model with{'' if theirs.distilled else 'out'} a distillation token; set "
            f"model.distilled: {str(theirs.distilled).lower()}, or name other weights"
        )
    for name, found, wanted in (
        ("num_registers", theirs.num_registers, ours.num_registers),
        ("qk_norm", theirs.qk_norm, ours.qk_norm),
        ("layer_scale", theirs.layer_scale is not None, ours.layer_scale is not None),
        ("pos_embed", theirs.pos_embed, ours.pos_embed),
        ("pos_embed_placement", placement(theirs), placement(ours)),
        ("pos_embed_prefix", theirs.pos_embed_prefix, ours.pos_embed_prefix),
        ("rope_temperature", theirs.rope_temperature, ours.rope_temperature),
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
        "patch": "patch_embed.proj.weight",
        "depth": f"blocks.{min(old.depth, new.depth)}.norm1.weight",
        "embed_dim": "pos_embed",
        "mlp_dim": "blocks.0.mlp.fc1.weight",
        "num_heads": "blocks.0.attn.qkv.weight",
    }
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
            "in the weights, or name weights with pos_embed: relative_bias, rope_2d or a learned kind"
        )


def _shown(value: object) -> str:
    """A setting as YAML writes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
