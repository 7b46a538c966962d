"""Trained weights as a model in evaluation mode, with all that it needs to see an image as it was trained to.

What its head was trained to give is the business of ``classifier``, ``regressor`` and ``segmenter``.

Legend: B images · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.weights.load import load_source
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.config.schema.model import ModelConfig
from pretrain.data.batch import Batch
from pretrain.data.images.augment import EvalTransform
from pretrain.data.images.opening import Pixels
from pretrain.data.on_device.device import to_model_input
from pretrain.data.storage.classes import told_apart
from pretrain.errors import CheckpointError, ConfigError, SetupError
from pretrain.models.families.registry import adapt_state_dict, build_model
from pretrain.models.init import digest
from pretrain.models.metadata import Task, WeightsMetadata
from pretrain.models.surgery import Filter


@dataclass(frozen=True)
class Network:
    """A model in evaluation mode with all that it needs to see an image as it was trained to.

    Attributes:
        model: fp32, on ``device``.
        metadata: of the weights, at the resolution that is used.
        transform: image bytes → uint8 (H, W, 3).
    """

    model: nn.Module
    metadata: WeightsMetadata
    transform: EvalTransform
    device: torch.device

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> Tensor:
        """What the head gives, fp32 on the device, of pixels uint8 (B, 3, H, W)."""
        metadata = self.metadata
        return self.model(to_model_input(images.to(self.device, non_blocking=True), metadata.mean, metadata.std))

    def pixels(self, images: Sequence[bytes | str | Path]) -> Tensor:
        """Encoded images, or paths of such files, as uint8 (B, 3, H, W).

        Raises:
            BadSample: one of them is no readable image. OSError: no such file.
        """
        return stack(self.transform(encoded(image)) for image in images)

    @property
    def names(self) -> tuple[str, ...]:
        """Of what it gives: classes, or numbers; as many digits as there are where nobody named them."""
        return self.metadata.class_names or tuple(str(number) for number in range(self.metadata.num_classes))

    @property
    def keys(self) -> list[str]:
        """``names`` that tell every class apart: with its id behind it where two have one name."""
        ids = self.metadata.class_ids or tuple(str(number) for number in range(self.metadata.num_classes))
        return told_apart(list(zip(ids, self.names, strict=True)))


class Frozen(Network):
    """A network that is asked for features (``evaluation.features.FrozenModel``)."""

    def logits(self, batch: Batch) -> Tensor:
        """See ``FrozenModel.logits``."""
        return self.outputs(batch.images)

    def digests(self) -> dict[str, str]:
        """Name → short hash of every tensor, at the resolution that is used."""
        return digest(self.model)


def load_network(
    source: str | Path,
    task: Task | None,
    *,
    weights: Literal["raw", "ema"] = "raw",
    img_size: int | tuple[int, int] | None = None,
    filter: Filter = "bilinear_corners",
    device: str | torch.device | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Network:
    """Reads weights and builds their model.

    Args:
        source: a run folder, a checkpoint, or a weights file.
        task: what they must have been trained for; None: anything, or nothing (weights without a head).
        weights: of a run or checkpoint, the trained ones or their Polyak average.
        img_size: resolution in pixels, or (height, width); None: the weights' own. Another one resizes the position
            embedding.
        filter: how the position embedding is resized.
        device: None: the GPU where there is one.
        say: where remarks go.

    Raises:
        CheckpointError: no weights, damaged, trained for something else, or of a resolution that cannot be changed.
        ConfigError: an impossible resolution. SetupError: no such path or device.
    """
    state, metadata = load_source(Path(source), weights, say)
    if task is not None and (metadata.task != task or not metadata.num_classes):
        has = f"were trained for {metadata.task}" if metadata.num_classes else "have no head"
        raise CheckpointError(f"{source}: the weights {has}, not for {task}; name others")
    model, metadata = network_of(state, metadata, img_size, filter, say)
    transform = EvalTransform(eval_transform_of(metadata, say), *metadata.img_size)
    chosen = pick_device(device)
    return Network(model.float().eval().requires_grad_(False).to(chosen), metadata, transform, chosen)


def load_frozen(source: Path, **options: Any) -> Frozen:
    """Reads weights, with or without a head; arguments and errors as ``load_network``."""
    return Frozen(**vars(load_network(source, None, **options)))


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
        class_names=metadata.class_names,
        class_ids=metadata.class_ids,
        eval_transform=metadata.eval_transform,
        scale=metadata.scale,
    )


def eval_transform_of(metadata: WeightsMetadata, say: Callable[[str], None]) -> EvalTransformConfig:
    """How images are made for weights; where they do not say it, the usual way, with a remark."""
    if metadata.eval_transform is not None:
        return metadata.eval_transform
    say("the weights do not say how images are resized for them: the short side to 8/7 of the size, then the centre")
    return EvalTransformConfig()


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


def encoded(image: bytes | str | Path) -> bytes:
    """The bytes of an image, or of the file at a path.

    Raises:
        OSError: no such file.
    """
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def stack(pixels: Iterable[Pixels]) -> Tensor:
    """Images uint8 (H, W, 3) → one tensor (B, 3, H, W)."""
    return torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in pixels]))
