"""The interface of a model family.

``pretrain/config/families.py`` lists the settings that a family reads and its capabilities; a module here implements
the rest. ``model`` is always a config of the family. If ``traits.packages`` is empty, the methods above the line
"networks" do not import torch.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import Filter, SurgeryOptions, SurgeryReport

Shapes = dict[str, tuple[int, ...]]
Precision = Literal["fp32", "bf16", "autocast"]

FP32 = 4
WEIGHT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "autocast": 4}


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


@dataclass(frozen=True)
class Footprint:
    """The numbers of a model that decide its memory, at one precision and activation-checkpointing policy.

    Attributes:
        parameters: number of parameters.
        largest_unit: parameters that ZeRO-3 gathers together: those of a block, or of a layer.
        kept: bytes per image that the forward pass keeps for the backward pass.
        working: additional bytes per image that the backward pass needs.
        copies: bytes of weights in another type that the backward pass reads.
    """

    parameters: int
    largest_unit: int
    kept: int
    working: int
    copies: int


class TimmTwin(NamedTuple):
    """The ``timm.create_model`` call for a network of the same architecture, whose tensors have the same names but few.

    Attributes:
        architecture: a registered name.
        arguments: of the constructor, without ``num_classes``.
        layers: of timm's ``pretrained_cfg``: names of the first and the last layer, which timm exchanges for other
            channels and classes, and the size of the last feature map.
        names: our name of a tensor → timm's, where they differ.
    """

    architecture: str
    arguments: dict[str, Any]
    layers: dict[str, Any]
    names: Mapping[str, str] = MappingProxyType({})


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
        """Name → shape of every tensor in the weights, running statistics included; K = 0: without a head."""
        ...

    def running_statistics(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """Names of the tensors in the weights that training changes without a gradient."""
        ...

    def layer_ids(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Parameter name → layer, 0 for the stem and the largest for the head (layer-wise decay)."""
        ...

    def attention_heads(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Name of each attention module → number of its heads."""
        ...

    def num_parameters(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Number of parameters; without the head, those of the classifier do not count."""
        ...

    def forward_macs(self, model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
        """Multiply-adds of the matrix products and convolutions in one image's forward pass."""
        ...

    def weight_macs(self, model: ModelConfig, num_classes: int) -> dict[str, int]:
        """Name of a dense or convolution weight → multiply-adds of its products in one image's forward pass."""
        ...

    def recomputed_macs(self, model: ModelConfig, checkpointing: str) -> int:
        """Multiply-adds per image that the backward pass recomputes under an activation-checkpointing policy."""
        ...

    def footprint(
        self, model: ModelConfig, num_classes: int, *, precision: Precision, checkpointing: str = "none"
    ) -> Footprint:
        """The numbers of the model that decide the memory that training needs."""
        ...

    def cast_names(self, model: ModelConfig, num_classes: int) -> frozenset[str]:
        """Names of the parameters of plain dense and convolution layers: DeepSpeed reduces them as autocast's type."""
        ...

    def units(self, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
        """Names of the modules whose weights are gathered together where they are sharded, first to last: the blocks.

        All other parameters are gathered together, for the duration of a pass.
        """
        ...

    # ── networks ──

    def takes_any_size(self, model: ModelConfig) -> bool:
        """Whether its weights work unchanged for images of any size: no window, no position grid."""
        ...

    def fixed_size_because(self, model: ModelConfig) -> str | None:
        """Why a network in training takes images of ``model.img_size`` only, in words; None: the size may change."""
        ...

    def accept_sizes(self, net: nn.Module, tilings: Sequence[Tiling], filter: Filter) -> None:
        """Makes a network, whose size may change, take images and patches of these sizes too.

        Args:
            net: the network.
            tilings: the sizes.
            filter: how position tables are resized.
        """
        ...

    def build(self, model: ModelConfig, num_classes: int) -> nn.Module:
        """The network with a head of K classes, on torch's default device. Weights are not initialised yet.

        It has ``config``, ``num_classes``, ``forward(images, drop_path=None)`` that gives fp32 logits,
        ``set_grad_checkpointing(policy)``, ``layer_ids()``, ``units()`` and ``compile_blocks(backend)``.
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

    def patch_features(self, net: nn.Module, images: Tensor) -> Tensor:
        """Normed patch tokens of normalised images (B, C, H, W) in their places: (B, D, h, w). No gradients are needed.

        Raises:
            ConfigError: the network has no grid of them.
        """
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

    def write_huggingface(self, folder: Path, state: Mapping[str, Tensor], metadata: WeightsMetadata) -> None:
        """Writes a folder for transformers (see ``exchange.huggingface.write_huggingface``).

        Raises:
            CheckpointError: transformers cannot express it.
        """
        ...
