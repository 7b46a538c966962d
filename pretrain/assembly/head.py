"""The head that a run takes over from other weights, whose outputs must mean the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.config.schema.run import Head
from pretrain.data.storage.classes import Classes, common_classes, named_outputs, repeated, require_same_outputs
from pretrain.errors import CheckpointError
from pretrain.models.families.registry import classifier_layers, init_weights
from pretrain.models.metadata import TargetScale, WeightsMetadata

SHOWN = 5


@dataclass(frozen=True)
class Target:
    """The meaning that the head's outputs must have.

    Attributes:
        classes: of the data, (id, name) in the order of the outputs; a regression's are its numbers.
        scale: the units of a regression.
    """

    classes: Classes
    scale: TargetScale | None


Fitted = tuple[dict[str, Tensor], WeightsMetadata, list[str]]


def fit_head(
    state: dict[str, Tensor],
    about: WeightsMetadata,
    net: nn.Module,
    target: Target,
    *,
    head: Head,
    seed: int,
) -> Fitted:
    """The weights with a head whose outputs are the classes of the data, or the numbers in its units.

    Args:
        state: the tensors of the weights.
        about: their metadata.
        net: the model that will have them.
        target: what the outputs must mean.
        head: keep refuses other classes; remap keeps the rows of common ones, and the others are new; replace leaves
            the weights as they are.
        seed: of the experiment, for new rows.

    Returns:
        The tensors, their metadata, and lines for the user.

    Raises:
        CheckpointError: other classes (keep), or none in common (remap).
    """
    if head == "replace" or not about.num_classes:
        return state, about, []
    classes, scale = target.classes, target.scale
    if head == "remap":
        return _remapped(state, about, net, classes, seed)
    require_same_outputs(named_outputs(about.class_ids, about.class_names, about.num_classes, classes), classes)
    if scale is not None and about.scale is not None and scale != about.scale:
        return _in_units(state, about, net, scale)
    return state, about, []


def _remapped(state: dict[str, Tensor], about: WeightsMetadata, net: nn.Module, classes: Classes, seed: int) -> Fitted:
    """The rows of common classes at their new places, others as they are in a new head."""
    numbers = tuple(map(str, range(about.num_classes)))
    outputs = list(zip(about.class_ids or numbers, about.class_names or numbers, strict=True))
    for listed, whose in ((outputs, "weights"), (classes, "data")):
        if twice := repeated([" ".join(pair) for pair in listed]):
            raise CheckpointError(f"init.head: remap: class {twice[0]!r} occurs several times in the {whose}")
    rows = common_classes(outputs, classes)
    if not rows:
        raise CheckpointError(
            f"init.head: remap: no class of the data, such as {' '.join(classes[0])!r}, is among those of the weights, "
            f"such as {' '.join(outputs[0])!r}; set init.head: replace for a new head"
        )
    init_weights(net, seed)
    new, old = [ours for ours, _ in rows], [theirs for _, theirs in rows]
    changed = dict(state)
    for name, fresh in _head_tensors(net).items():
        if name not in state or state[name].shape[1:] != fresh.shape[1:] or len(state[name]) != len(outputs):
            raise CheckpointError(f"init.head: remap: tensor {name} does not have a row for each class; choose replace")
        rows_of_class = fresh.detach().clone()
        rows_of_class[new] = state[name][old].to(rows_of_class.dtype)
        changed[name] = rows_of_class
    update = {"num_classes": len(classes), "class_names": None, "class_ids": None}
    lines = [
        f"head: {len(rows)} of {len(classes)} classes keep their rows{_some(classes, new)}",
        f"head: {len(classes) - len(rows)} classes are new and start at their initial values"
        f"{_some(classes, sorted(set(range(len(classes))) - set(new)))}",
        f"head: {len(outputs) - len(rows)} classes of the weights are left out"
        f"{_some(outputs, sorted(set(range(len(outputs))) - set(old)))}",
    ]
    return changed, about.model_copy(update=update), lines


def _head_tensors(net: nn.Module) -> dict[str, Tensor]:
    """Name → tensor of the last layers."""
    layers = {id(layer) for layer in classifier_layers(net)}
    return {
        f"{name}.{leaf}": tensor
        for name, module in net.named_modules()
        if id(module) in layers
        for leaf, tensor in module.named_parameters(recurse=False)
    }


def _some(classes: Classes, numbers: Sequence[int]) -> str:
    shown = ", ".join(classes[number][1] for number in numbers[:SHOWN])
    return f": {shown}{', …' if len(numbers) > SHOWN else ''}" if numbers else ""


@torch.no_grad()
def _in_units(state: dict[str, Tensor], about: WeightsMetadata, net: nn.Module, scale: TargetScale) -> Fitted:
    """A regression's head for targets standardised by the data's own mean and deviation; its answers stay the same."""
    assert about.scale is not None
    old_mean, old_std = (torch.tensor(values, dtype=torch.float64) for values in (about.scale.mean, about.scale.std))
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (scale.mean, scale.std))
    factor, changed = old_std / std, dict(state)
    names = list(_head_tensors(net))
    if not any(name.endswith(".bias") for name in names):
        raise CheckpointError("init.head: keep: a head without a bias cannot change its units; set init.head: replace")
    for name in names:
        tensor = state[name].double()
        if name.endswith(".bias"):
            moved = (tensor * old_std + old_mean - mean) / std
        else:
            moved = tensor * factor.view(-1, *[1] * (tensor.ndim - 1))
        changed[name] = moved.to(state[name].dtype)
    update = {"target_mean": scale.mean, "target_std": scale.std}
    return (
        changed,
        about.model_copy(update=update),
        ["head: converted to the units of the data"],
    )
