"""Any classifier of timm: ``model.name: timm/NAME``. Tensors and costs are measured on torch's meta device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.protocol import Family, Geometry, Shapes, TimmTwin
from pretrain.models.footprint import Footprint, Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import SurgeryOptions, SurgeryReport


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
        from pretrain.models.families.timm_cost import meta_model

        net = meta_model(model, num_classes)
        parameters = {name for name, _ in net.named_parameters()}
        return tuple(name for name in net.state_dict() if name not in parameters)

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """timm's own grouping."""
        from pretrain.models.families.timm_cost import meta_model

        return meta_model(model, num_classes).layer_ids()  # type: ignore[operator]

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """See ``timm_cost.num_parameters``."""
        from pretrain.models.families import timm_cost

        return timm_cost.num_parameters(model, num_classes, with_head=with_head)

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """See ``timm_cost.forward_macs``."""
        from pretrain.models.families import timm_cost

        return timm_cost.forward_macs(model, num_classes, with_head=with_head)

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """See ``timm_cost.recomputed_macs``."""
        from pretrain.models.families import timm_cost

        return timm_cost.recomputed_macs(model, checkpointing)

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """See ``timm_cost.footprint``."""
        from pretrain.models.families import timm_cost

        return timm_cost.footprint(model, num_classes, precision=precision, checkpointing=checkpointing)

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Whether timm's constructor has no image-size argument."""
        from pretrain.models.families.timm_backbone import has_img_size

        return not has_img_size(model)

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


FAMILY: Family = TimmFamily()
