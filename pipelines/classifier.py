"""Trained weights as an object that classifies images.

>>> classifier = load_classifier("runs/demo_digits")            # doctest: +SKIP
>>> classifier.predict(["digit.png"], top=3)[0][0].name         # doctest: +SKIP
'7'

Legend: B images · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.weights import experiment_of, load_source, weights_path
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.data.augment import EvalTransform
from pretrain.data.decode import Pixels
from pretrain.data.device import to_model_input
from pretrain.errors import CheckpointError, ConfigError, SetupError
from pretrain.models.interop import WeightsMetadata
from pretrain.models.surgery import Filter, adapt_state_dict
from pretrain.models.zoo import build_model

Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Prediction:
    """One class that an image may be of; ``score`` is its probability."""

    index: int
    id: str
    name: str
    score: float


@dataclass(frozen=True)
class Classifier:
    """A model in evaluation mode with all that it needs to see an image as it was trained to.

    Attributes:
        model: fp32, on ``device``.
        metadata: of the weights, at the resolution that is used.
        transform: image bytes → uint8 (H, W, 3).
        activation: logits → probabilities: softmax over the classes, or sigmoid of each.
    """

    model: nn.Module
    metadata: WeightsMetadata
    transform: EvalTransform
    activation: Activation
    device: torch.device

    def predict(self, images: Sequence[bytes | str | Path], *, top: int = 5) -> list[list[Prediction]]:
        """The ``top`` most probable classes of each image, the best first.

        Args:
            images: encoded images, or paths of such files; one micro-batch.
            top: how many; at most K.

        Raises:
            BadSample: one of them is no readable image. OSError: no such file.
        """
        pixels = [self.transform(image if isinstance(image, bytes) else Path(image).read_bytes()) for image in images]
        return self.best(self.probabilities(stack(pixels)), top)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """fp32 logits (B, K) on the device, of pixels uint8 (B, 3, H, W)."""
        metadata = self.metadata
        return self.model(to_model_input(images.to(self.device, non_blocking=True), metadata.mean, metadata.std))

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities (B, K) on the CPU, of pixels uint8 (B, 3, H, W)."""
        return self.activated(self.logits(images)).cpu()

    def activated(self, logits: Tensor) -> Tensor:
        """Logits → probabilities, of the same shape."""
        return logits.softmax(1) if self.activation == "softmax" else logits.sigmoid()

    def best(self, probabilities: Tensor, top: int) -> list[list[Prediction]]:
        """The ``top`` largest of each row of (B, K) with their names."""
        values, indices = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        return [
            [self._prediction(index, score) for index, score in zip(*row, strict=True)]
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def _prediction(self, index: int, score: float) -> Prediction:
        names, ids = self.metadata.class_names, self.metadata.class_ids
        return Prediction(index, ids[index] if ids else str(index), names[index] if names else str(index), score)


def stack(pixels: Iterable[Pixels]) -> Tensor:
    """Images uint8 (H, W, 3) → one tensor (B, 3, H, W)."""
    return torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in pixels]))


def load_classifier(
    source: str | Path,
    *,
    weights: Literal["raw", "ema"] = "raw",
    img_size: int | tuple[int, int] | None = None,
    filter: Filter = "bilinear_corners",
    activation: Activation | None = None,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Classifier:
    """Reads weights and builds what classifies with them.

    Args:
        source: a run folder, a checkpoint, or weights of any format that is read (timm, Hugging Face, .npz, …).
        weights: of a run or checkpoint, the trained ones or their Polyak average.
        img_size: resolution in pixels, or (height, width); None: the weights' own. Another one resizes the position
            embedding.
        filter: how the position embedding is resized.
        activation: None: sigmoid where the run's objective was that, else softmax.
        device: None: the GPU where there is one.
        say: where remarks go.

    Raises:
        CheckpointError: no weights, damaged, without a classifier, or of a resolution that cannot be changed.
        ConfigError: an impossible resolution. SetupError: no such path or device.
    """
    path = Path(source)
    state, metadata = load_source(path, weights, say)
    if not metadata.num_classes:
        raise CheckpointError(f"{source}: the weights have no head, so they name no classes; fine-tune them first")
    if metadata.task != "classification":
        raise CheckpointError(
            f"{source}: the weights were trained for {metadata.task}, not for "
            "classification; pipelines.network loads them"
        )
    model, metadata = network_of(state, metadata, img_size, filter, say)
    transform = eval_transform_of(metadata, say)
    chosen = pick_device(device)
    height, width = metadata.img_size
    return Classifier(
        model=model.float().eval().requires_grad_(False).to(chosen),
        metadata=metadata,
        transform=EvalTransform(transform, height, width),
        activation=activation or _activation(weights_path(path, weights, lambda line: None)),
        device=chosen,
    )


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None: the GPU where there is one.

    Raises:
        SetupError: no such device here.
    """
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SetupError(f"device {device}: {str(error).splitlines()[0]}; use cpu, cuda or cuda:N") from error
    return chosen


def eval_transform_of(metadata: WeightsMetadata, say: Callable[[str], None]) -> EvalTransformConfig:
    """How images are made for weights; where they do not say it, the usual way, with a remark."""
    if metadata.eval_transform is not None:
        return metadata.eval_transform
    say("the weights do not say how images are resized for them: the short side to 8/7 of the size, then the centre")
    return EvalTransformConfig()


def network_of(
    state: dict[str, Tensor],
    metadata: WeightsMetadata,
    img_size: int | tuple[int, int] | None,
    filter: Filter,
    say: Callable[[str], None],
) -> tuple[nn.Module, WeightsMetadata]:
    """Saved tensors as a network on the CPU, at another resolution where that is wanted.

    Weights without a head get one that says nothing, since every network here has one.

    Raises:
        CheckpointError: of a resolution that cannot be changed. ConfigError: an impossible resolution.
    """
    wanted = metadata.img_size if img_size is None else (img_size, img_size) if isinstance(img_size, int) else img_size
    config = metadata.model
    if wanted != metadata.img_size:
        try:
            config = ModelConfig.model_validate({**config.model_dump(exclude_defaults=True), "img_size": wanted})
        except ValueError as error:
            raise ConfigError(f"img_size {wanted}: {error}") from error
    model = build_model(config, metadata.num_classes or 1)
    head = "keep" if metadata.num_classes else "replace"
    adapted, report = adapt_state_dict(state, metadata, model, head=head, filter=filter, seed=0)
    model.load_state_dict(adapted)
    for name, (old, new) in report.resized.items():
        say(f"resized: {name} from grid {old} to {new}")
    return model, WeightsMetadata.of(
        config,
        metadata.num_classes,
        metadata.mean,
        metadata.std,
        metadata.class_names,
        class_ids=metadata.class_ids,
        eval_transform=metadata.eval_transform,
        scale=metadata.scale,
    )


def _activation(weights: Path) -> Activation:
    experiment = experiment_of(weights)
    return "sigmoid" if experiment is not None and experiment.objective.name == "sigmoid" else "softmax"
