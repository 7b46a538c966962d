"""Fits saved weights of a transformers backbone to another resolution or head, and reports on each tensor.

A position table is recognised by its name, its grid follows from the image and the patch of its own model, and tables
of relative biases from a window; anything else keeps its shape or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pretrain.errors import CheckpointError
from pretrain.models.families.hf_backbone import BODY, HfBackbone, create, initial_state
from pretrain.models.families.hf_classes import VISION
from pretrain.models.surgery import Grid, SurgeryOptions, SurgeryReport, resize_pos_embed, resize_relative_bias

if TYPE_CHECKING:
    from pretrain.models.metadata import WeightsMetadata

_TABLES = ("position_embeddings", "position_embedding.weight")
_BIAS_TABLE = "relative_position_bias_table"


def adapt(
    state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Saved tensors as the backbone ``net`` needs them; see ``registry.adapt_state_dict``.

    Raises:
        CheckpointError: another resolution that its positions do not allow, a head that does not fit, or a tensor
            without a counterpart.
    """
    assert isinstance(net, HfBackbone)
    with torch.device("meta"):
        old = create(source.model, max(1, source.num_classes))
    report, left = SurgeryReport(), dict(state)
    fresh = _new_head(left, net, options, report)
    tensors = {}
    for name, wanted in net.state_dict().items():
        if name in fresh:
            tensors[name] = fresh[name]
            continue
        if name not in left:
            raise CheckpointError(f"tensor {name} of the model is not in the weights; {_remedy(name, source)}")
        tensors[name] = _fitted(name, left.pop(name), (old, net), options, report)
        if tensors[name].shape != wanted.shape:
            raise CheckpointError(
                f"tensor {name} is {tuple(tensors[name].shape)} in the weights, {tuple(wanted.shape)} in the model; "
                f"{_remedy(name, source)}"
            )
    if left:
        name = next(iter(left))
        raise CheckpointError(f"tensor {name} of the weights has no place in the model; {_remedy(name, source)}")
    return tensors, report


def _new_head(
    left: dict[str, Tensor], net: HfBackbone, options: SurgeryOptions, report: SurgeryReport
) -> dict[str, Tensor]:
    """The initial values of a head that replaces the file's; empty if that is kept."""
    if options.head == "keep":
        return {}
    report.dropped += [name for name in left if not name.startswith(BODY)]
    for name in report.dropped:
        del left[name]
    fresh = initial_state(net.config, net.num_classes, options.seed)
    report.new += [name for name in fresh if not name.startswith(BODY)]
    return {name: fresh[name] for name in report.new}


def _fitted(
    name: str, tensor: Tensor, nets: tuple[HfBackbone, HfBackbone], options: SurgeryOptions, report: SurgeryReport
) -> Tensor:
    if name.endswith(_BIAS_TABLE):
        before, after = (_window(net, name) for net in nets)
    elif name.endswith(_TABLES):
        before, after = (_grid(net) for net in nets)
    else:
        before = after = None
    if before is None or after is None or before == after:
        report.loaded.append(name)
        return tensor
    report.resized[name] = (before, after)
    if name.endswith(_BIAS_TABLE):
        return resize_relative_bias(tensor, before, after, options.filter)
    table = tensor if tensor.ndim == 3 else tensor[None]
    resized = resize_pos_embed(table, before, after, table.shape[1] - before[0] * before[1], options.filter)
    return resized if tensor.ndim == 3 else resized[0]


def _window(net: HfBackbone, name: str) -> Grid | None:
    """The window of a table of relative biases, from the module that has it, or the grid of all patches."""
    owner: Any = net.get_submodule(name.rpartition(".")[0])
    window = getattr(owner, "window_size", None)
    if window is None:
        return _grid(net)
    return (window, window) if isinstance(window, int) else (int(window[0]), int(window[1]))


def _grid(net: HfBackbone) -> Grid | None:
    """The grid of patches, from image and patch size; None: the class has none."""
    config: Any = net.body.config
    config = getattr(config, VISION, None) or config
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return None
    sides = (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))
    height, width = net.config.size
    return height // sides[0], width // sides[1]


def _remedy(name: str, source: WeightsMetadata) -> str:
    if not name.startswith(BODY):
        return "set init.head: replace for a new head, or data.num_classes as in the weights"
    old = f"{source.model.name} at {source.model.img_size} pixels with kwargs {source.model.kwargs}"
    return f"the weights are of {old}: set model.name and model.kwargs as in the weights, or name other weights"
