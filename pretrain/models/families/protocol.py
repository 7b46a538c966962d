"""The interface of a model family.

``pretrain/config/families.py`` lists the settings that a family reads and its capabilities; a module here implements
the rest. ``model`` is always a config of the family. If ``traits.packages`` is empty, the methods above the line
"networks" do not import torch.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pretrain.config.schema.model import ModelConfig
from pretrain.models.footprint import Footprint, Precision

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import SurgeryOptions, SurgeryReport

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Geometry:
    """The facts of a model that its weights file repeats, so that other programs can use it; pairs are (height, width).

    Only ``img_size`` is known of every family; the rest describes Vision Transformers.
    """

    img_size: tuple[int, int]
    patch: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int | None = None
    pool: str | None = None
    gelu: str | None = None
    layer_norm_eps: float | None = None


class TimmTwin(NamedTuple):
    """The ``timm.create_model`` call for a network of the same architecture, whose tensors have the same names.

    Attributes:
        architecture: a registered name.
        arguments: of the constructor, without ``num_classes``.
        layers: of timm's ``pretrained_cfg``: names of the first and the last layer, which timm exchanges for other
            channels and classes, and the size of the last feature map.
    """

    architecture: str
    arguments: dict[str, Any]
    layers: dict[str, Any]


class Family(Protocol):
    """A family of models. Every method may raise ConfigError for an impossible architecture."""

    def summary(self, model: ModelConfig) -> str:
        """The architecture and its resolution in a few words."""
        ...

    def geometry(self, model: ModelConfig) -> Geometry:
        """The facts that a weights file repeats."""
        ...

    def require_same(self, theirs: ModelConfig, ours: ModelConfig) -> None:
        """Checks that weights of ``theirs`` can start ``ours``, as far as the two configs determine it.

        Raises:
            CheckpointError: a setting differs; the message names it and an affected tensor.
        """
        ...

    def tensor_shapes(self, model: ModelConfig, num_classes: int) -> Shapes:
        """Name → shape of every tensor in the weights, running statistics included."""
        ...

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """Names of the tensors in the weights that training changes without a gradient."""
        ...

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Parameter name → layer, 0 for the stem and the largest for the head (layer-wise decay)."""
        ...

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Number of parameters; without the head, those of the classifier do not count."""
        ...

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Multiply-adds of the matrix products and convolutions in one image's forward pass."""
        ...

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """Multiply-adds per image that the backward pass recomputes under an activation-checkpointing policy."""
        ...

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """The numbers of the model that decide the memory that training needs."""
        ...

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Whether its weights work unchanged for images of any size: no window, no position grid."""
        ...

    def build(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """The network with a head of K classes, on torch's default device. Weights are not initialised yet.

        It has ``config``, ``num_classes``, ``forward(images, drop_path=None)`` that gives fp32 logits,
        ``set_grad_checkpointing(policy)``, ``layer_ids()`` and ``compile_blocks(backend)``.
        """
        ...

    def build_frozen(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """The same network for inference with saved weights; may skip checks that ``build`` makes."""
        ...

    def init_weights(self, net: nn.Module, seed: int) -> None:
        """Sets every tensor of an unsharded network to its initial value: a function of (seed, config).

        Raises:
            LookupError: no rule matches one of its tensors.
        """
        ...

    def uses_generator(self, net: nn.Module) -> bool:
        """Whether a training pass draws from torch's generator, which the engine then reseeds at every micro-step."""
        ...

    def classifiers(self, net: nn.Module) -> list[nn.Module]:
        """The last layers, whose inputs are the features: one, or two of a distilled model."""
        ...

    def adapt(
        self, state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
    ) -> tuple[dict[str, Tensor], SurgeryReport]:
        """Saved tensors of a model that ``require_same`` accepts, as ``net`` needs them (see ``adapt_state_dict``).

        Raises:
            CheckpointError: the head does not fit, or a tensor has no counterpart.
        """
        ...

    # ── exchange ──

    def timm_twin(self, model: ModelConfig) -> TimmTwin:
        """The timm constructor call for the same network.

        Raises:
            CheckpointError: timm cannot express it.
        """
        ...
