"""Any classifier of timm: ``model.name: timm/NAME``. Tensors and costs are measured on torch's meta device."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.protocol import Family, Footprint, Geometry, Precision, Shapes, TimmTwin

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from pretrain.models.families.measured_cost import MeasuredCosts
    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import Filter, SurgeryOptions, SurgeryReport


@functools.cache
def _costs() -> MeasuredCosts:
    from pretrain.models.families.measured_cost import MeasuredCosts
    from pretrain.models.families.timm_backbone import head_tensors

    return MeasuredCosts(_network, head_tensors)


def _network(model: ModelConfig, num_classes: int) -> nn.Module:
    """The backbone on the meta device: names and shapes without memory."""
    from pretrain.models.families.timm_backbone import build_timm
    from pretrain.models.families.timm_shapes import shapes_only

    with shapes_only():
        return build_timm(model, num_classes)


class TimmFamily:
    """See ``protocol.Family``. torch and timm are imported by the methods that need them."""

    def summary(self, model: ModelConfig) -> str:
        """Name and resolution."""
        return f"{model.name} at {model.size[0]}×{model.size[1]}"

    def geometry(self, model: ModelConfig) -> Geometry:
        """The resolution; name and kwargs describe the rest."""
        return Geometry(img_size=model.size)

    def require_same(self, theirs: ModelConfig, ours: ModelConfig) -> None:
        """The configs are not enough to decide; ``adapt`` compares the networks."""

    def tensor_shapes(self, model: ModelConfig, num_classes: int) -> Shapes:
        """Skips the trial forward pass, which takes longer."""
        from pretrain.models.families.timm_backbone import frozen_shapes

        return frozen_shapes(model, num_classes)

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """Means and variances of batch norms, and their counters."""
        return _costs().running_statistics(model, num_classes)

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """timm's own grouping."""
        return _network(model, num_classes).layer_ids()  # type: ignore[operator]

    def attention_heads(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Modules that say their number of heads."""
        layers = _network(model, num_classes).named_modules()
        numbers = {name: getattr(layer, "num_heads", None) for name, layer in layers}
        return {name: number for name, number in numbers.items() if isinstance(number, int)}

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Counted."""
        return _costs().num_parameters(model, num_classes, with_head=with_head)

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Measured."""
        return _costs().forward_macs(model, num_classes, with_head=with_head)

    def weight_macs(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Measured, of the layers that the network calls."""
        return _costs().weight_macs(model, num_classes)

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """About a forward pass."""
        return _costs().recomputed_macs(model, checkpointing)

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """Measured."""
        return _costs().footprint(model, num_classes, precision=precision, checkpointing=checkpointing)

    def cast_names(self, model: ModelConfig, num_classes: int) -> frozenset[str]:
        """Counted."""
        return _costs().cast_names(model, num_classes)

    def units(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """See ``units.listed_blocks``."""
        return tuple(_network(model, num_classes).units())  # type: ignore[operator]

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Whether timm's constructor has no image-size argument."""
        from pretrain.models.families.timm_backbone import has_img_size

        return not has_img_size(model)

    def fixed_size_because(self, model: ModelConfig) -> str | None:
        """See ``takes_any_size``."""
        return None if self.takes_any_size(model) else f"tensors of {model.name} belong to one size"

    def accept_sizes(self, net: nn.Module, tilings: Sequence[Tiling], filter: Filter) -> None:
        """Nothing changes."""

    def build(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """See ``timm_backbone.build_timm``."""
        from pretrain.models.families.timm_backbone import build_timm

        return build_timm(model, num_classes)

    def build_frozen(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """See ``timm_backbone.build_frozen``."""
        from pretrain.models.families.timm_backbone import build_frozen

        return build_frozen(model, num_classes)

    def init_weights(self, net: nn.Module, seed: int) -> None:
        """Those of a model built on the CPU under a generator of its own (see ``TimmBackbone.init_weights``)."""
        net.init_weights(seed)  # type: ignore[operator]

    def uses_generator(self, net: nn.Module) -> bool:
        """Dropout or stochastic depth, which timm draws inside the network."""
        return bool(net.uses_generator)

    def classifiers(self, net: nn.Module) -> list[nn.Module]:
        """See ``timm_backbone.classifiers``."""
        from pretrain.models.families.timm_backbone import classifiers

        return classifiers(net)

    def patch_features(self, net: nn.Module, images: Tensor) -> Tensor:
        """See ``timm_backbone.patch_features``."""
        from pretrain.models.families.timm_backbone import patch_features

        return patch_features(net, images)

    def adapt(
        self, state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
    ) -> tuple[dict[str, Tensor], SurgeryReport]:
        """See ``timm_surgery.adapt``."""
        from pretrain.models.families.timm_surgery import adapt

        return adapt(state, source, net, options)

    def timm_twin(self, model: ModelConfig) -> TimmTwin:
        """Its own name and kwargs; a network that takes images of any size has no ``img_size``."""
        from timm.models import get_pretrained_cfg

        from pretrain.models.families.timm_backbone import has_img_size, timm_name

        size = {"img_size": list(model.size)} if has_img_size(model) else {}
        known = get_pretrained_cfg(timm_name(model.name))
        layers = {name: getattr(known, name, None) for name in ("pool_size", "first_conv", "classifier")}
        return TimmTwin(timm_name(model.name), dict(model.kwargs) | size, layers)

    def write_huggingface(self, folder: Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
        """Refused: transformers has other modules."""
        from pretrain.models.exchange.translation import refuse_inexpressible

        refuse_inexpressible(metadata.model, "Hugging Face", "hf", ())


FAMILY: Family = TimmFamily()
