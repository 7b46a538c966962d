"""The objective, with the frozen teacher that some have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pretrain.assembly.model import read_weights
from pretrain.config.schema.experiment import Experiment
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.registry import adapt_state_dict, build_frozen, family_of, tensor_shapes
from pretrain.models.interop import expected_shapes
from pretrain.models.metadata import TargetScale, WeightsMetadata
from pretrain.models.variants import resolve
from pretrain.objectives.class_weights import ClassCounts
from pretrain.objectives.protocol import Objective
from pretrain.objectives.registry import Context, build_objective
from pretrain.objectives.teacher import Teacher

Say = Callable[[str], None]


def objective_of(
    experiment: Experiment,
    model: nn.Module,
    device: torch.device,
    say: Say,
    *,
    scale: TargetScale | None = None,
    class_counts: ClassCounts | None = None,
) -> Objective:
    """The experiment's objective with all that it needs to know of model and data, its teacher included.

    Args:
        experiment: its settings.
        model: what is trained.
        device: where.
        say: one line for the user.
        scale: of a regression's targets.
        class_counts: of the training set.

    Raises:
        CheckpointError, ConfigError: see ``build_teacher``. ConfigError: see ``class_weights.weights_of``.
    """
    source = experiment.objective.teacher_weights
    geometry = family_of(experiment.model).geometry(experiment.model)
    context = Context(
        seed=experiment.seed,
        mean=experiment.data.mean,
        std=experiment.data.std,
        patch=geometry.patch,
        grid=geometry.grid,
        encoder=None if experiment.model.decoder is None else resolve(experiment.model),
        teacher=None if source is None else build_teacher(experiment, source, device, say),
        two_heads=bool(getattr(model, "has_two_heads", False)),
        scale=scale,
        class_counts=class_counts,
    )
    return build_objective(experiment.objective, experiment.num_outputs, context)


def build_teacher(experiment: Experiment, source: str, device: torch.device, say: Say) -> Teacher:
    """The teacher of a distillation, unsharded and frozen, on the device.

    Raises:
        CheckpointError: no weights there. ConfigError: they are of other classes, another width or another resolution.
    """
    data, view = experiment.data, experiment.objective.needs.teacher
    assert view is not None, "the objective has a teacher"
    path, (tensors, about) = read_weights(source, say)
    say(f"teacher: {about.model.name} {about.model.variant} from {path}".replace("  ", " "))
    if view == "logits":
        _check_logits(experiment, about, str(path))
        net = build_frozen(about.model, about.num_classes)
        net.load_state_dict(tensors, strict=True)
    else:
        net = _network_at(experiment, tensors, about, str(path), say)
    student, own = (data.mean, data.std), about.normalisation
    net = net.float().to(device)
    teacher = Teacher(net, student, own, autocast=experiment.precision != "fp32", view=view)
    if view != "logits":
        found = teacher(torch.zeros(1, 3, *experiment.model.size, device=device))
        for each in (found,) if isinstance(found, Tensor) else found:
            _check_width(experiment, each, str(path))
    return teacher


def _check_logits(experiment: Experiment, about: WeightsMetadata, path: str) -> None:
    """Raises ConfigError unless the teacher tells the same classes apart, in images of the same size."""
    num_classes, wanted = experiment.data.num_classes, experiment.model.size
    if about.num_classes != num_classes:
        raise ConfigError(
            f"objective.teacher: {path} knows {about.num_classes} classes, data.num_classes is {num_classes}; "
            "name a teacher of the same classes"
        )
    if about.img_size != wanted and not family_of(about.model).takes_any_size(about.model):
        raise ConfigError(
            f"objective.teacher: {path} takes images of {about.img_size} pixels only, model.img_size is {wanted}; "
            "fine-tune the teacher at that resolution, or choose a convolutional one"
        )


def _network_at(
    experiment: Experiment, tensors: dict[str, Tensor], about: WeightsMetadata, path: str, say: Say
) -> nn.Module:
    """The teacher's network at the student's resolution, its position tables resized; its head may be missing.

    Raises:
        ConfigError: the network or its position embedding cannot be had at that resolution.
    """
    changed = {} if about.img_size == experiment.model.size else {"img_size": experiment.model.img_size}
    config, num_classes = about.model.model_copy(update=changed), max(1, about.num_classes)
    expected = expected_shapes(about)
    headless = {
        name: torch.zeros(shape)
        for name, shape in tensor_shapes(about.model, num_classes).items()
        if name not in expected
    }
    try:
        net = build_frozen(config, num_classes)
        filter, seed = experiment.init.pos_embed_filter, experiment.seed
        complete = about.model_copy(update={"num_classes": num_classes})
        adapted, report = adapt_state_dict(tensors | headless, complete, net, head="keep", filter=filter, seed=seed)
    except (ConfigError, CheckpointError) as error:
        raise ConfigError(
            f"objective.teacher: {path} cannot be used for images of {experiment.model.size} pixels: {error}"
        ) from error
    net.load_state_dict(adapted, strict=True)
    for name, (old, new) in report.resized.items():
        say(f"  teacher: {name} resized from grid {old} to {new}")
    return net


def _check_width(experiment: Experiment, features: Tensor, path: str) -> None:
    """Raises ConfigError unless the teacher's features are as wide as the student's head."""
    width, wanted, what = features.shape[1], experiment.num_outputs, "features" if features.ndim == 2 else "tokens"
    if width != wanted:
        raise ConfigError(
            f"objective.width: {wanted}, but {path} gives {what} of {width} numbers; set objective.width: {width}"
        )
