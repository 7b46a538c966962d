"""Fits saved weights of a timm backbone to another resolution, patch size or head; reports what it does to each tensor.

The architecture decides: convolutions and PVT v2 take any size; Swin's tables of relative position biases follow
its windows (its own code's way is the filter ``bicubic``); a position embedding is interpolated from the grid of the
weights' own model, never from a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pretrain.errors import CheckpointError
from pretrain.models.families.timm_backbone import TimmBackbone, build_frozen, head_tensors, initial_state
from pretrain.models.families.timm_shapes import shapes_only
from pretrain.models.surgery import (
    SurgeryOptions,
    SurgeryReport,
    resample_patch_embed,
    resize_pos_embed,
    resize_relative_bias,
)

if TYPE_CHECKING:
    from pretrain.models.metadata import WeightsMetadata

# Settings of a layer that its tensors do not show: models that differ in one compute different functions.
_HIDDEN_NUMBERS = ("num_heads", "num_groups", "eps", "groups", "stride")
_PATCH_LAYER = "patch_embed.proj"
_BIAS_TABLE = "relative_position_bias_table"


def adapt(
    state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Saved tensors as the backbone ``net`` needs them; see ``registry.adapt_state_dict``.

    Raises:
        CheckpointError: another architecture, an unsupported change of resolution, a head that does not fit, or a
            tensor without a counterpart.
    """
    assert isinstance(net, TimmBackbone)
    with shapes_only():
        old = build_frozen(source.model, source.num_classes)
    _check_architecture(source, old, net)
    surgery = _Surgery(state, source, old, net, options)
    return surgery.adapted(), surgery.report


class _Surgery:
    """One transfer of weights. ``left`` are the file's tensors that no tensor of the model has taken yet."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        source: WeightsMetadata,
        old: nn.Module,
        new: TimmBackbone,
        options: SurgeryOptions,
    ) -> None:
        self.source, self.old, self.new, self.options = source, old, new, options
        self.left = dict(state)
        self.report = SurgeryReport()

    def adapted(self) -> dict[str, Tensor]:
        """Every tensor of the model by name; each step records its actions in the report."""
        fresh = self._new_head()
        tensors = {
            name: fresh[name] if name in fresh else self._take(name, tuple(wanted.shape))
            for name, wanted in self.new.state_dict().items()
        }
        if self.left:
            name = next(iter(self.left))
            remedy = _remedy(self.source, name, self.old)
            raise CheckpointError(f"tensor {name} of the weights has no place in the model; {remedy}")
        return tensors

    def _new_head(self) -> dict[str, Tensor]:
        """The initial values of a head that replaces the file's; empty if that is kept."""
        if self.options.head == "keep":
            return {}
        old_head, new_head = head_tensors(self.old), head_tensors(self.new)
        self.report.dropped += [name for name in self.left if name in old_head]
        for name in self.report.dropped:
            del self.left[name]
        fresh = initial_state(self.new.config, self.new.num_classes, self.options.seed)
        if not self.source.num_classes:  # some layers before the classifier belong to it, and are absent without one
            with shapes_only():
                headless = build_frozen(self.new.config, 0).state_dict()
            new_head |= fresh.keys() - headless.keys()
        self.report.new += [name for name in fresh if name in new_head]
        return {name: fresh[name] for name in self.report.new}

    def _take(self, name: str, wanted: tuple[int, ...]) -> Tensor:
        if name not in self.left:
            remedy = _remedy(self.source, name, self.new)
            raise CheckpointError(f"tensor {name} of the model is not in the weights; {remedy}")
        tensor = self.left.pop(name)
        resized = self._resize(name, tensor)
        if resized is not None:
            return resized
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"tensor {name} is {tuple(tensor.shape)} in the weights, {wanted} in the model; "
                f"{_remedy(self.source, name, self.new)}"
            )
        self.report.loaded.append(name)
        return tensor

    def _resize(self, name: str, tensor: Tensor) -> Tensor | None:
        """A position table or patch kernel as the new model needs it; None: it needs no change, or is neither."""
        owner = name.rpartition(".")[0]
        if owner == _PATCH_LAYER and tensor.dim() == 4:
            before, after = _patch(self.old), _patch(self.new)
            if before is not None and after is not None and before != after:
                self.report.resampled[name] = (before, after)
                return resample_patch_embed(tensor, after)
        if name.endswith(_BIAS_TABLE):
            before, after = (_window(net.get_submodule(owner)) for net in (self.old, self.new))
            if before != after:
                self.report.resized[name] = (before, after)
                return resize_relative_bias(tensor, before, after, self.options.filter)
        elif name == "pos_embed":
            before, after = _grid(self.old), _grid(self.new)
            if before is not None and after is not None and before != after:
                self.report.resized[name] = (before, after)
                prefix = tensor.shape[1] - before[0] * before[1]
                return resize_pos_embed(tensor, before, after, prefix, self.options.filter)
        return None


def _window(module: nn.Module) -> tuple[int, int]:
    height, width = module.window_size  # type: ignore[misc]
    return int(height), int(width)  # type: ignore[arg-type]


def _patch(net: nn.Module) -> tuple[int, int] | None:
    """The size of the patches that a convolution without overlap embeds; None: the network has none."""
    layer = getattr(getattr(net, "patch_embed", None), "proj", None)
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != layer.stride:
        return None
    return int(layer.kernel_size[0]), int(layer.kernel_size[1])


def _grid(net: nn.Module) -> tuple[int, int] | None:
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return None if grid is None else (int(grid[0]), int(grid[1]))


def _check_architecture(source: WeightsMetadata, old: nn.Module, new: TimmBackbone) -> None:
    """Refuses differences that the shapes of the tensors would not show."""
    if type(old) is not type(new):
        raise CheckpointError(
            f"the weights are of {source.model.name}, the model is {new.config.name}; set model.name: "
            f"{source.model.name}, or name other weights"
        )
    theirs, resamples = hidden_numbers(old), _patch(old) is not None and _patch(new) is not None
    for (layer, attribute), wanted in hidden_numbers(new).items():
        if resamples and layer == _PATCH_LAYER and attribute == "stride":
            continue
        found = theirs.get((layer, attribute), wanted)
        if found != wanted:
            raise CheckpointError(
                f"layer {layer} has {attribute} {found} in the weights, {wanted} in the model, which no tensor shows; "
                f"set model.name: {source.model.name} and model.kwargs as in the weights: {source.model.kwargs}"
            )


def hidden_numbers(net: nn.Module) -> dict[tuple[str, str], Any]:
    """(layer, attribute) → a number that changes what a network computes and that no tensor shows."""
    found = {
        (name, attribute): getattr(module, attribute, None)
        for name, module in net.named_modules()
        for attribute in _HIDDEN_NUMBERS
    }
    return {key: value for key, value in found.items() if isinstance(value, int | float | tuple)}


def _remedy(source: WeightsMetadata, name: str, net: nn.Module) -> str:
    if name in head_tensors(net):
        return "set init.head: replace for a new head, or data.num_classes as in the weights"
    old = f"{source.model.name} at {source.model.img_size} pixels with kwargs {source.model.kwargs}"
    return (
        f"the weights are of {old}: if model.img_size differs, this architecture cannot change its resolution (choose "
        "one that can, such as Swin, PVT v2 or BiT); otherwise set model.name and model.kwargs as in the weights"
    )
