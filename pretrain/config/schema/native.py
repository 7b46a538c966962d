"""The settings that images at their own aspect ratio (``train_transform.crop: native``) need or exclude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pretrain.config.families import forms_where
from pretrain.config.schema.data import DataConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.objective import ObjectiveConfig
from pretrain.config.schema.transforms import EvalTransformConfig


def native_problems(
    data: DataConfig,
    model: ModelConfig,
    objective: ObjectiveConfig,
    transforms: Mapping[str, EvalTransformConfig],
) -> Iterator[str]:
    """The settings that do not fit, one message each; nothing where all images have one size.

    Args:
        data: of it the training transform and mixing.
        model: the architecture.
        objective: the training objective.
        transforms: key → each evaluation transform.
    """
    is_native = bool(data.train_transform.sequence_lengths)
    for key, transform in transforms.items():
        if transform.is_native and not is_native:
            yield f"{key}.resize: native evaluates a model that is trained with data.train_transform.crop: native"
        if is_native and not transform.is_native:
            yield (
                f"{key}.resize: {transform.resize}; data.train_transform.crop: native trains on images at their own "
                "aspect ratio, and evaluation does as training: write {resize: native, max_tokens: …}"
            )
    if is_native:
        yield from _of_data(data, objective)
        yield from _of_model(model)


def _of_data(data: DataConfig, objective: ObjectiveConfig) -> Iterator[str]:
    if data.effective_mixing.active:
        yield (
            "data.mixing (or data.augreg) mixes images of one size, but with train_transform.crop: native they have "
            "different ones; remove it"
        )
    if data.train_transform.random_erasing is not None:
        yield "data.train_transform.random_erasing does not work with crop: native; remove it"
    needs = objective.needs
    if needs.target == "mask" or needs.teacher is not None or needs.part is not None or needs.head != "pooled":
        yield f"data.train_transform.crop: native does not work with objective.name: {objective.name}; use another crop"


def _of_model(model: ModelConfig) -> Iterator[str]:
    if not model.family.takes_sequences:
        others = forms_where(lambda other: other.takes_sequences)
        yield f"data.train_transform.crop: native needs model.name: {others}"
        return
    needing = {
        f"variant: {model.variant}": "+" in model.variant,
        "distilled": model.distilled,
        "patch_drop": model.patch_drop > 0,
        f"pos_embed: {model.pos_embed}": model.pos_embed.startswith("relative"),
        f"pos_embed_placement: {model.pos_embed_placement}": model.pos_embed_placement not in (None, "stem"),
        "rope: mixed": model.rope == "mixed",
    }
    for name, given in needing.items():
        if given:
            yield f"model.{name} does not work with data.train_transform.crop: native; remove one of them"
