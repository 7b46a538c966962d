"""Any image model of transformers: ``model.name: hf/NAME``. Costs are measured on torch's meta device."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
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

    return MeasuredCosts(_network, _head_tensors)


def _network(model: ModelConfig, num_classes: int) -> nn.Module:
    """The backbone on the meta device: names and shapes without memory."""
    import torch

    from pretrain.models.families.hf_backbone import build_hf

    with torch.device("meta"):
        return build_hf(model, num_classes)


def _head_tensors(net: nn.Module) -> list[str]:
    from pretrain.models.families.hf_backbone import BODY

    return [name for name, _ in net.named_parameters() if not name.startswith(BODY)]


class HfFamily:
    """See ``protocol.Family``. torch and transformers are imported by the methods that need them."""

    def summary(self, model: ModelConfig) -> str:
        """Class and resolution."""
        return f"{model.name} at {model.size[0]}×{model.size[1]}"

    def geometry(self, model: ModelConfig) -> Geometry:
        """The resolution; name and kwargs describe the rest."""
        return Geometry(img_size=model.size)

    def require_same(self, theirs: ModelConfig, ours: ModelConfig) -> None:
        """Class and settings must be the same: no tensor shows the heads, an epsilon or an activation."""
        for key, found, wanted in (("name", theirs.name, ours.name), ("kwargs", theirs.kwargs, ours.kwargs)):
            if found != wanted:
                raise CheckpointError(
                    f"the weights have model.{key}: {found}, the model has {wanted}; set model.{key} as in the "
                    "weights, or name other weights"
                )

    def tensor_shapes(self, model: ModelConfig, num_classes: int) -> Shapes:
        """Skips the trial pass, which takes longer."""
        import torch

        from pretrain.models.families.hf_backbone import create

        with torch.device("meta"):
            tensors = create(model, max(1, num_classes)).state_dict()
        kept = (
            tensors if num_classes else {name: each for name, each in tensors.items() if not name.startswith("head.")}
        )
        return {name: tuple(tensor.shape) for name, tensor in kept.items()}

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """Means and variances of batch norms, and their counters."""
        return _costs().running_statistics(model, num_classes)

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """See ``hf_backbone.HfBackbone.layer_ids``."""
        return _network(model, num_classes).layer_ids()  # type: ignore[operator]

    def attention_heads(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Modules that have a number of heads."""
        found: dict[str, Any] = {
            name: getattr(layer, "num_heads", None) or getattr(layer, "num_attention_heads", None)
            for name, layer in _network(model, num_classes).named_modules()
        }
        return {name: number for name, number in found.items() if isinstance(number, int)}

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
        """About a forward pass, or a k-th of one."""
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
        """See ``hf_backbone.HfBackbone.blocks``."""
        return tuple(_costs().network(model, num_classes).units())  # type: ignore[operator]

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Whether no tensor changes at twice the size: DINOv3's rotary positions, Swin's windows, convolutions."""
        larger = model.model_copy(update={"img_size": (2 * model.size[0], 2 * model.size[1])})
        return self.tensor_shapes(model, 1) == self.tensor_shapes(larger, 1)

    def fixed_size_because(self, model: ModelConfig) -> str | None:
        """See ``takes_any_size``."""
        return None if self.takes_any_size(model) else f"tensors of {model.name} belong to one size"

    def accept_sizes(self, net: nn.Module, tilings: Sequence[Tiling], filter: Filter) -> None:
        """Nothing changes."""

    def build(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """See ``hf_backbone.build_hf``."""
        from pretrain.models.families.hf_backbone import build_hf

        return build_hf(model, num_classes)

    def build_frozen(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """See ``hf_backbone.create``."""
        from pretrain.models.families.hf_backbone import create

        return create(model, num_classes)

    def init_weights(self, net: nn.Module, seed: int) -> None:
        """See ``hf_backbone.initial_state``."""
        net.init_weights(seed)  # type: ignore[operator]

    def uses_generator(self, net: nn.Module) -> bool:
        """See ``hf_backbone.uses_generator``."""
        from pretrain.models.families.hf_backbone import uses_generator

        return uses_generator(net)

    def patch_features(self, net: nn.Module, images: Tensor) -> Tensor:
        """See ``hf_features.patch_features``."""
        from pretrain.models.families.hf_features import patch_features

        return patch_features(net, images)

    def classifiers(self, net: nn.Module) -> list[nn.Module]:
        """``head``."""
        return [net.head]  # type: ignore[list-item]

    def adapt(
        self, state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
    ) -> tuple[dict[str, Tensor], SurgeryReport]:
        """See ``hf_surgery.adapt``."""
        from pretrain.models.families.hf_surgery import adapt

        return adapt(state, source, net, options)

    def timm_twin(self, model: ModelConfig) -> TimmTwin:
        """None: timm has other modules."""
        formats = " or ".join(model.family.formats)
        raise CheckpointError(f"model.name: {model.name} cannot be expressed for timm; choose --format {formats}")

    def write_huggingface(self, folder: Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
        """See ``exchange.huggingface.write_own``."""
        from pretrain.models.exchange.huggingface import write_own

        write_own(folder, state, metadata)


FAMILY: Family = HfFamily()
