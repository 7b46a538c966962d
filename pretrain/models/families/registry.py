"""Maps a model config to its family, with shortcuts for frequent calls.

A family is a row in ``pretrain/config/families.py`` and a module of the same name in this folder with ``FAMILY``, an
object with the methods of ``protocol.Family``. It is imported when a config first names it, so that timm is needed only
by its users.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pretrain.config.families import FAMILIES, family_name
from pretrain.config.image_sizes import Tiling
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.protocol import Family, Shapes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pretrain.models.metadata import WeightsMetadata
    from pretrain.models.surgery import Filter, SurgeryReport


def family_of(model: ModelConfig) -> Family:
    """The family that ``model`` belongs to. Imports torch only if the family needs it."""
    name = family_name(model.name)
    assert name is not None, f"ModelConfig accepts no {model.name!r}"
    return importlib.import_module(f"pretrain.models.families.{name}").FAMILY


def cost_is_known(model: ModelConfig) -> bool:
    """Whether sizes and costs of ``model`` can be computed here: its family may need packages that are missing."""
    return all(importlib.util.find_spec(package) is not None for package in model.family.packages)


def require_known_cost(model: ModelConfig) -> None:
    """Raises ConfigError if sizes and costs of ``model`` cannot be computed here."""
    if not cost_is_known(model):
        packages = " and ".join(model.family.packages)
        raise ConfigError(
            f"model.name: the size and cost of {model.name} are measured on torch's meta device, without weights or "
            f"data: install {packages} for it, or use a model of name: vit"
        )


def build_model(model: ModelConfig, num_classes: int) -> nn.Module:
    """Builds ``model`` with a head of ``num_classes``, on torch's default device (see ``Family.build``).

    Raises:
        ConfigError: an impossible architecture.
    """
    return family_of(model).build(model, num_classes)


def build_frozen(model: ModelConfig, num_classes: int) -> nn.Module:
    """As ``build``, for inference: in evaluation mode and without gradients.

    Raises:
        ConfigError: an impossible architecture.
    """
    return family_of(model).build_frozen(model, num_classes).eval().requires_grad_(False)


def tensor_shapes(model: ModelConfig, num_classes: int) -> Shapes:
    """Name → shape of every tensor in the weights of ``model``, running statistics included.

    Raises:
        ConfigError: an impossible architecture.
    """
    return family_of(model).tensor_shapes(model, num_classes)


def accept_sizes(net: nn.Module, tilings: Sequence[Tiling], filter: Filter) -> None:
    """Makes a network take training images and patches of these sizes beside its own (see ``Family.accept_sizes``).

    Raises:
        ConfigError: its size cannot change, or it cannot have one of these.
    """
    config: ModelConfig = net.config  # type: ignore[assignment]
    patches = any(tiling.patch for tiling in tilings)
    require_changing_size(config, "model.patch_sizes" if patches else "data.resolution")
    family_of(config).accept_sizes(net, tilings, filter)
    net.num_sizes = len(tilings)  # type: ignore[assignment]


def require_changing_size(model: ModelConfig, key: str) -> None:
    """Raises ConfigError if networks of ``model`` take images of one size only; ``key`` asks for several."""
    reason = family_of(model).fixed_size_because(model)
    if reason is not None:
        raise ConfigError(
            f"{key}: {reason}, so sizes cannot change during the run; remove it, or use "
            "model.name: vit with pos_embed: learned_1d or sincos2d_timm, or with rope"
        )


def init_weights(net: nn.Module, seed: int) -> None:
    """Sets every tensor of an unsharded network to its initial value: a function of (seed, config).

    Raises:
        LookupError: no rule matches one of its tensors.
    """
    family_of(net.config).init_weights(net, seed)  # type: ignore[arg-type]


def uses_generator(net: nn.Module) -> bool:
    """Whether a training pass draws from torch's generator, which the engine then reseeds at every micro-step."""
    return family_of(net.config).uses_generator(net)  # type: ignore[arg-type]


def classifier_layers(net: nn.Module) -> list[nn.Module]:
    """The last layers of a network, whose inputs are its features: one, or two of a distilled model."""
    return family_of(net.config).classifiers(net)  # type: ignore[arg-type]


def patch_features(net: nn.Module, images: Tensor) -> Tensor:
    """Normed patch tokens of normalised images (B, C, H, W) in their places: (B, D, h, w).

    Raises:
        ConfigError: the network has no grid of them.
    """
    return family_of(net.config).patch_features(net, images)  # type: ignore[arg-type]


def require_same(theirs: ModelConfig, ours: ModelConfig) -> None:
    """Checks that weights of ``theirs`` can start ``ours``, as far as the two configs determine it.

    Raises:
        CheckpointError: a setting differs; the message names it and an affected tensor.
    """
    if FAMILIES[str(family_name(theirs.name))] is not FAMILIES[str(family_name(ours.name))]:
        raise CheckpointError(
            f"the weights are of model.name: {theirs.name}, the model is {ours.name}; set model.name as in the "
            "weights, or name other weights"
        )
    family_of(ours).require_same(theirs, ours)


def adapt_state_dict(
    state: Mapping[str, Tensor],
    source: WeightsMetadata,
    net: nn.Module,
    *,
    head: Literal["keep", "replace"],
    filter: Filter,
    seed: int,
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Saved tensors as ``net`` needs them: position embeddings resized, pooling switched, head kept or replaced.

    Args:
        state: complete tensors of the file, on the CPU.
        source: the file's metadata; its grid and prefix tokens are used, nothing is guessed.
        net: the target network; may be sharded or on the meta device, as only its config and shapes are read.
        head: ``replace`` drops the file's head, tanh layer included, and gives the initial value of a new one.
        filter: how position tables are resized (see ``surgery.resize_pos_embed``).
        seed: of the experiment, for new tensors.

    Returns:
        Every tensor of the model by name, on the CPU, in the file's type (new ones fp32), and the report.

    Raises:
        CheckpointError: another architecture, a head that does not fit, or a tensor without a counterpart.
    """
    from pretrain.models.surgery import SurgeryOptions

    config: ModelConfig = net.config  # type: ignore[assignment]
    require_same(source.model, config)
    return family_of(config).adapt(state, source, net, SurgeryOptions(head, filter, seed))


# ── sizes and costs; ``pretrain.sharding`` computes the share of one rank ──


def num_parameters(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Number of parameters."""
    return family_of(model).num_parameters(model, num_classes, with_head=with_head)


def parameter_shapes(model: ModelConfig, num_classes: int) -> Shapes:
    """Name → shape of every parameter, in the order of the model."""
    family = family_of(model)
    statistics = set(family.running_statistics(model, num_classes))
    shapes = family.tensor_shapes(model, num_classes)
    return {name: shape for name, shape in shapes.items() if name not in statistics}


def forward_macs(model: ModelConfig, num_classes: int, *, with_head: bool = True) -> int:
    """Multiply-adds of one image's forward pass."""
    return family_of(model).forward_macs(model, num_classes, with_head=with_head)


def training_flops(model: ModelConfig, num_classes: int, num_images: float) -> float:
    """FLOPs of training on ``num_images`` draws: 2 per multiply-add, times 3 for forward and backward.

    Recomputation by activation checkpointing is not useful work and is not counted.
    """
    return num_images * 3 * 2 * forward_macs(model, num_classes)
