"""Trained weights as an object that gives what their head was trained to give: numbers, or the class of every pixel.

>>> regressor = load_regressor("runs/ages")           # doctest: +SKIP
>>> regressor.predict(["face.jpg"])[0]                # doctest: +SKIP
{'age': 31.4}

Legend: B images · H, W pixels · D numbers of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.classifier import eval_transform_of, network_of, pick_device, stack
from pipelines.weights import load_source
from pretrain.data.augment import EvalTransform
from pretrain.data.decode import open_image
from pretrain.data.device import to_model_input
from pretrain.errors import CheckpointError
from pretrain.models.interop import Task, WeightsMetadata
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

    @property
    def names(self) -> tuple[str, ...]:
        """Of what it gives: classes, or numbers; as many digits as there are where nobody named them."""
        return self.metadata.class_names or tuple(str(number) for number in range(self.metadata.num_classes))


class Regressor(Network):
    """A network that gives numbers, in the units of the data that it was trained on."""

    def values(self, images: Tensor) -> Tensor:
        """fp32 (B, D) on the CPU, of pixels uint8 (B, 3, H, W)."""
        scale = self.metadata.scale
        assert scale is not None
        return scale.restored(self.outputs(images)).cpu()

    def predict(self, images: Sequence[bytes | str | Path]) -> list[dict[str, float]]:
        """The numbers of each image, by name.

        Args:
            images: encoded images, or paths of such files; one micro-batch.

        Raises:
            BadSample: one of them is no readable image. OSError: no such file.
        """
        pixels = [self.transform(image if isinstance(image, bytes) else Path(image).read_bytes()) for image in images]
        return [dict(zip(self.names, row, strict=True)) for row in self.values(stack(pixels)).tolist()]


class Segmenter(Network):
    """A network that gives a class for every pixel."""

    def masks(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W) on the CPU: the most probable class of each pixel, of pixels uint8 (B, 3, H, W)."""
        return self.outputs(images).argmax(1).to(torch.uint8).cpu()

    def predict(self, image: bytes | str | Path) -> NDArray[np.uint8]:
        """The most probable class of every pixel of an image, uint8 of its own height and width.

        The logits are interpolated to that size, so that edges are as fine as the image's pixels.

        Raises:
            BadSample: no readable image. OSError: no such file.
        """
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        decoded = open_image(data)
        pixels = self.transform.of_pixels(decoded.decode())
        logits = self.outputs(stack([pixels]))
        whole = F.interpolate(logits, (decoded.height, decoded.width), mode="bilinear", align_corners=False)
        return whole[0].argmax(0).to(torch.uint8).cpu().numpy()


def load_segmenter(source: str | Path, **options: Any) -> Segmenter:
    """Reads weights with a dense head; arguments and errors as ``load_network``."""
    return Segmenter(**vars(load_network(source, "segmentation", **options)))


def load_regressor(source: str | Path, **options: Any) -> Regressor:
    """Reads weights of a regression; arguments and errors as ``load_network``."""
    return Regressor(**vars(load_network(source, "regression", **options)))


def load_network(
    source: str | Path,
    task: Task,
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
        task: what they must have been trained for.
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
    if metadata.task != task or not metadata.num_classes:
        has = f"were trained for {metadata.task}" if metadata.num_classes else "have no head"
        raise CheckpointError(f"{source}: the weights {has}, not for {task}; name others")
    model, metadata = network_of(state, metadata, img_size, filter, say)
    transform = EvalTransform(eval_transform_of(metadata, say), *metadata.img_size)
    chosen = pick_device(device)
    return Network(model.float().eval().requires_grad_(False).to(chosen), metadata, transform, chosen)
