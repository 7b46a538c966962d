"""The models to draw: weights of any format, under short names, with what they predict for photos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from pipelines.weights.heads import Classifier, Prediction, activation_of
from pipelines.weights.load import load_source
from pipelines.weights.network import built, stack
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.images.augment import EvalTransform
from pretrain.data.images.colour import Pixels
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.registry import adapt_state_dict
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.vit import VisionTransformer, build_vit


class Source(NamedTuple):
    """A model to draw."""

    label: str
    path: str
    model: VisionTransformer
    metadata: WeightsMetadata

    @property
    def transform(self) -> EvalTransform:
        """How images are made.

        Raises:
            CheckpointError: the weights do not record it.
        """
        if (problem := self.metadata.transform_problem) is not None:
            raise CheckpointError(f"{problem}; export the weights with --mean, --std and --resize, which records them")
        return EvalTransform(self.metadata.eval_transform or EvalTransformConfig(), *self.metadata.img_size)

    def predictions(self, inputs: Sequence[Pixels], say: Callable[[str], None]) -> list[Prediction | None]:
        """The most probable class of each image, (H, W, 3) as the model sees it; None where there are no classes."""
        if not self.metadata.num_classes or self.metadata.task != "classification" or not inputs:
            return [None] * len(inputs)
        classifier = Classifier(self.model, self.metadata, self.transform, torch.device("cpu"))
        classifier = replace(classifier, activation=activation_of(self.metadata, say))
        return [found[0] for found in classifier.best(classifier.probabilities(stack(inputs)), 1)]


def load(path: Path, label: str, img_size: tuple[int, int] | None, say: Callable[[str], None]) -> Source:
    """Reads weights of any format; with ``img_size`` position embeddings are resized as fine-tuning does.

    Raises:
        CheckpointError: cannot be read, or a model without global attention.
    """
    state, metadata = load_source(path, "raw", say)
    if not metadata.model.family.has_global_attention:
        raise CheckpointError(
            f"{path}: {metadata.model.name} has no patch tokens that all attend to each other, so there is nothing to "
            "draw; the figures are of Vision Transformers (model.name: vit, or weights of timm's, Hugging Face's, "
            "torchvision's or Google's ViTs)"
        )
    if img_size is None or img_size == metadata.img_size:
        model = built(state, metadata)
    else:
        config = metadata.model.model_copy(update={"img_size": img_size})
        model = build_vit(config, max(1, metadata.num_classes))
        head = "keep" if metadata.num_classes else "replace"
        adapted, report = adapt_state_dict(state, metadata, model, head=head, filter="bilinear_corners", seed=0)
        for line in report.lines():
            say(f"{label}: {line}")
        model.load_state_dict(adapted)
        metadata = metadata.of_model(config)
    assert isinstance(model, VisionTransformer)
    return Source(label, str(path), model.float().eval(), metadata)


def labels_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each checkpoint: its file name, with its folder where two are the same.

    Raises:
        ConfigError: the same checkpoint is given twice.
    """
    if len(set(map(str, paths))) < len(paths):
        raise ConfigError("the same checkpoint is named twice; name each once")
    names = [_short(path) for path in paths]
    return [
        name if names.count(name) == 1 else "/".join(path.parts[-3:]) for name, path in zip(names, paths, strict=True)
    ]


def _short(path: Path) -> str:
    if path.parent.name.startswith("step-") and path.suffix == ".safetensors":
        return f"{_short(path.parent)} ema" if path.stem.endswith("_ema") else _short(path.parent)
    if path.name.startswith("step-") and path.parent.name == "checkpoints":
        return f"{path.parent.parent.name} {path.name}"
    return path.stem if path.suffix else path.name
