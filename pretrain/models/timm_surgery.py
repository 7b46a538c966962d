"""Fits saved weights of a timm backbone to another resolution or head, and says of every tensor what became of it.

What the architecture allows: convolutions and PVT v2 take any size; Swin's tables of relative position biases follow
its windows (its own code's way is the filter ``bicubic``); a position embedding is interpolated from the grid of the
weights' own model, never from a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pretrain.errors import CheckpointError
from pretrain.models.interop import WeightsMetadata
from pretrain.models.surgery import Filter, SurgeryReport, resize_pos_embed, resize_relative_bias
from pretrain.models.timm_backbone import TimmBackbone, head_tensors, initial_state
from pretrain.models.zoo import build_frozen

# Numbers of a layer that its tensors do not show: two models that differ in one compute different things.
_HIDDEN_NUMBERS = ("num_heads", "num_groups", "eps", "groups", "stride")
_BIAS_TABLE = "relative_position_bias_table"


def adapt_timm_state(
    state: Mapping[str, Tensor],
    source: WeightsMetadata,
    model: nn.Module,
    *,
    head: Literal["keep", "replace"],
    filter: Filter,
    seed: int,
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Saved tensors as the backbone ``model`` needs them; arguments and results as ``surgery.adapt_state_dict``.

    Raises:
        CheckpointError: another architecture, a resolution that it cannot change to, a head that does not fit, or a
            tensor that nothing explains.
    """
    assert source.model.is_timm and isinstance(model, TimmBackbone)
    with torch.device("meta"):
        old = build_frozen(source.model, source.num_classes)
    _check_architecture(source, old, model)
    expected, left = model.state_dict(), dict(state)
    report, adapted = SurgeryReport(), {}
    new_head = head_tensors(model) if head == "replace" else set()
    if new_head:
        fresh = initial_state(model.config, model.num_classes, seed)
        report.dropped += [name for name in left if name in head_tensors(old)]
        for name in report.dropped:
            del left[name]
    for name, wanted in expected.items():
        if name in new_head:
            adapted[name] = fresh[name]
            report.new.append(name)
            continue
        if name not in left:
            raise CheckpointError(f"tensor {name} of the model is not in the weights; {_remedy(source, name, model)}")
        adapted[name] = _fit(name, left.pop(name), tuple(wanted.shape), source, old, model, filter, report)
    if left:
        name = next(iter(left))
        raise CheckpointError(f"tensor {name} of the weights has no place in the model; {_remedy(source, name, old)}")
    return adapted, report


def _fit(
    name: str,
    tensor: Tensor,
    wanted: tuple[int, ...],
    source: WeightsMetadata,
    old: nn.Module,
    new: nn.Module,
    filter: Filter,
    report: SurgeryReport,
) -> Tensor:
    owner = name.rpartition(".")[0]
    if name.endswith(_BIAS_TABLE):
        before, after = (_window(net.get_submodule(owner)) for net in (old, new))
        if before != after:
            report.resized[name] = (before, after)
            return resize_relative_bias(tensor, before, after, filter)
    elif name == "pos_embed":
        before, after = _grid(old), _grid(new)
        if before is not None and after is not None and before != after:
            report.resized[name] = (before, after)
            prefix = tensor.shape[1] - before[0] * before[1]
            return resize_pos_embed(tensor, before, after, prefix, filter)
    if tuple(tensor.shape) != wanted:
        raise CheckpointError(
            f"tensor {name} is {tuple(tensor.shape)} in the weights, {wanted} in the model; "
            f"{_remedy(source, name, new)}"
        )
    report.loaded.append(name)
    return tensor


def _window(module: nn.Module) -> tuple[int, int]:
    height, width = module.window_size  # type: ignore[misc]
    return int(height), int(width)  # type: ignore[arg-type]


def _grid(net: nn.Module) -> tuple[int, int] | None:
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return None if grid is None else (int(grid[0]), int(grid[1]))


def _check_architecture(source: WeightsMetadata, old: nn.Module, new: TimmBackbone) -> None:
    """Refuses what the shapes of the tensors would not show."""
    if type(old) is not type(new):
        raise CheckpointError(
            f"the weights are of {source.model.name}, the model is {new.config.name}; set model.name: "
            f"{source.model.name}, or name other weights"
        )
    theirs = _numbers(old)
    for (layer, attribute), wanted in _numbers(new).items():
        found = theirs.get((layer, attribute), wanted)
        if found != wanted:
            raise CheckpointError(
                f"layer {layer} has {attribute} {found} in the weights, {wanted} in the model, which no tensor shows; "
                f"set model.name: {source.model.name} and model.kwargs as in the weights: {source.model.kwargs}"
            )


def _numbers(net: nn.Module) -> dict[tuple[str, str], Any]:
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
