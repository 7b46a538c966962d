"""The objective with what it must know of model and data, its teacher included."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pretrain.assembly.weights import read_weights
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import ConfigError
from pretrain.models.families.registry import build_frozen, family_of
from pretrain.models.metadata import TargetScale
from pretrain.objectives.distillation import Teacher
from pretrain.objectives.protocol import Objective
from pretrain.objectives.registry import Context, build_objective


def objective_of(
    experiment: Experiment,
    model: nn.Module,
    device: torch.device,
    say: Callable[[str], None],
    *,
    scale: TargetScale | None = None,
) -> Objective:
    """The experiment's objective with all that it needs to know of model and data, its teacher included.

    Args:
        experiment: its settings.
        model: what is trained.
        device: where.
        say: one line for the user.
        scale: of a regression's targets.
    """
    source = experiment.objective.teacher_weights
    geometry = family_of(experiment.model).geometry(experiment.model)
    context = Context(
        seed=experiment.seed,
        mean=experiment.data.mean,
        std=experiment.data.std,
        patch=geometry.patch,
        grid=geometry.grid,
        teacher=None if source is None else build_teacher(experiment, source, device, say),
        two_heads=bool(getattr(model, "has_two_heads", False)),
        scale=scale,
    )
    return build_objective(experiment.objective, experiment.num_outputs, context)


def build_teacher(experiment: Experiment, source: str, device: torch.device, say: Callable[[str], None]) -> Teacher:
    """The teacher of a distillation, unsharded and frozen, on the device.

    Raises:
        CheckpointError: no weights there. ConfigError: they are of other classes or of another resolution.
    """
    data = experiment.data
    path, (tensors, about) = read_weights(source, say)
    if about.num_classes != data.num_classes:
        raise ConfigError(
            f"objective.teacher: {path} knows {about.num_classes} classes, data.num_classes is {data.num_classes}; "
            "name a teacher of the same classes"
        )
    wanted = experiment.model.size
    if about.img_size != wanted and not family_of(about.model).takes_any_size(about.model):
        raise ConfigError(
            f"objective.teacher: {path} takes images of {about.img_size} pixels only, model.img_size is {wanted}; "
            "fine-tune the teacher at that resolution, or choose a convolutional one"
        )
    net = build_frozen(about.model, about.num_classes)
    net.load_state_dict(tensors, strict=True)
    say(f"teacher: {about.model.name} {about.model.variant} from {path}".replace("  ", " "))
    student, own = (data.mean, data.std), (about.mean, about.std)
    return Teacher(net.float().to(device), student, own, autocast=experiment.precision != "fp32")
