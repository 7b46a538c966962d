"""Trained weights for use in Python: predictions and features, for paths, images in memory, folders and packed splits.

Legend: B images · N images of a set · D width of the features · H, W pixels · K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.sources.given_images import IMAGES, images_of
from pipelines.weights.heads import load_classifier, load_regressor, load_segmenter
from pipelines.weights.load import task_of
from pipelines.weights.network import Network, encoded, load_frozen, stack
from pretrain.data.batch import to_model_input
from pretrain.data.images.colour import Pixels
from pretrain.data.images.decode import open_image
from pretrain.data.images.in_memory import InMemory, pixels_of
from pretrain.data.ledger import Ledger
from pretrain.errors import BadSample, CheckpointError, DataError
from pretrain.evaluation.features import HeadInput

Given = str | Path | bytes | InMemory
LOADERS: dict[str, Callable[..., Network]] = {
    "classification": load_classifier,
    "regression": load_regressor,
    "segmentation": load_segmenter,
}


class FeatureTable(NamedTuple):
    """Features of images.

    Attributes:
        values: float32 (N, D), what the head of the model receives.
        names: of the images, as ``predict`` shows them.
        not_read: (name, reason) of images that could not be read, which have no row.
        notes: the account of what was found, read and left out.
    """

    values: NDArray[np.float32]
    names: list[str]
    not_read: list[tuple[str, str]]
    notes: list[str]


def load(
    source: str | Path,
    *,
    weights: str = "raw",
    img_size: int | tuple[int, int] | None = None,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Model:
    """Reads trained weights.

    Args:
        source: a run folder, a checkpoint, or a file or folder of any format that ``export`` writes or others publish.
        weights: of a run or checkpoint, ``raw`` or ``ema``.
        img_size: pixels, or (height, width); None: the weights' own. Another one resizes the position embedding.
        device: ``cpu``, ``cuda``, ``cuda:1``; None: a GPU if there is one.
        say: called with each remark, such as ``print``.

    Raises:
        CheckpointError: no weights, or damaged ones. ConfigError: an impossible resolution. SetupError: no such path or
            device.
    """
    if weights not in ("raw", "ema"):
        raise CheckpointError(f"weights {weights!r}: choose raw or ema")
    options: dict[str, Any] = {"weights": weights, "img_size": img_size, "device": device, "say": say}
    task = task_of(Path(source), options["weights"])
    if task == "classification":
        frozen = load_frozen(source, **options)
        if not frozen.metadata.num_classes:
            return Model(frozen, str(source))
    return Model(LOADERS[task](source, **options), str(source))


class Model:
    """A model in evaluation mode with its preprocessing; made by ``load``.

    Attributes:
        network: the model with the meaning of its outputs (``pipelines.weights``).
        model: the ``nn.Module``, without gradients; give it what ``transform`` returns.
        task: classification, regression or segmentation.
        class_names: of the outputs; empty without a head.
    """

    def __init__(self, network: Network, source: str) -> None:
        self.network, self._source = network, source
        self.model: nn.Module = network.model
        self.task = network.metadata.task
        self.class_names = network.names if network.metadata.num_classes else ()

    @property
    def data_config(self) -> dict[str, Any]:
        """The input of the model, under timm's names."""
        metadata = self.network.metadata
        mean, std = metadata.normalisation
        return {"input_size": (3, *metadata.img_size), "mean": mean, "std": std}

    def transform(self, image: Given) -> Tensor:
        """One image as the model's input, float32 (3, H, W), resized and normalised as in the evaluation of its run.

        Args:
            image: a path, encoded bytes, an image of Pillow, or an array, uint8 (H, W, 3) in RGB or (H, W) in grey.

        Raises:
            BadSample: not a readable image. DataError: not an array of an image. OSError: no such file.
        """
        metadata = self.network.metadata
        return to_model_input(stack([self._resized(image)]), *metadata.normalisation)[0]

    def predict(self, images: Given | Sequence[Given], *, top_k: int = 5, batch_size: int = 64) -> list[Any]:
        """The answer of the model for each image, in their order.

        Args:
            images: one image or several, as for ``transform``.
            top_k: classes per image, the most probable first.
            batch_size: images per forward pass.

        Returns:
            For each image: a list of ``Prediction`` (index, id, name, score); for a regression a dict of its numbers;
            for a segmentation the class of each pixel, uint8 (H, W) in the image's size.

        Raises:
            CheckpointError: the weights have no head. Others as ``transform``.
        """
        network: Any = self.network
        if not network.metadata.num_classes:
            raise CheckpointError(f"{self._source}: the weights have no head, so they predict nothing; use features()")
        given: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        if self.task == "segmentation":
            return [network.of_pixels(self._decoded(image)) for image in given]
        found: list[Any] = []
        for several in _batches(given, batch_size):
            pixels = stack([self._resized(image) for image in several])
            if self.task == "regression":
                found += [dict(zip(network.keys, row, strict=True)) for row in network.values(pixels).tolist()]
            else:
                found += network.best(network.probabilities(pixels), top_k)
        return found

    def features(
        self, images: Given | Sequence[Given], *, batch_size: int = 64, skip_unreadable: bool = False
    ) -> FeatureTable:
        """The input of the head for each image: the features that a linear probe uses.

        Args:
            images: as for ``predict``; a path may also be a folder of images or a packed split.
            batch_size: images per forward pass.
            skip_unreadable: list unreadable images in ``not_read`` and continue.

        Raises:
            DataError: an image cannot be read, or a folder holds none.
        """
        values, names, not_read, ledger = [], [], [], Ledger()
        for several in _batches(self._named(images, ledger), batch_size):
            pixels: list[Pixels] = []
            for name, read in several:
                try:
                    pixels.append(self._resized(read()))
                    names.append(name)
                    ledger.used(IMAGES, "features")
                except (BadSample, OSError) as error:
                    if not skip_unreadable:
                        raise DataError(f"{name}: {error}; leave it out, or pass skip_unreadable=True") from error
                    not_read.append((name, str(error)))
                    ledger.lost(IMAGES, error.kind if isinstance(error, BadSample) else "read", name)
            if pixels:
                with HeadInput(self.model) as head_input:
                    self.network.outputs(stack(pixels))
                    values.append(head_input.take().float().cpu().numpy())
        if not values:
            raise DataError(f"none of {len(not_read):,} images could be read" if not_read else "no image was given")
        ledger.check("features")
        return FeatureTable(np.concatenate(values), names, not_read, ledger.lines())

    def _named(self, images: Given | Sequence[Given], ledger: Ledger) -> Iterator[tuple[str, Callable[[], Given]]]:
        given: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
        for number, image in enumerate(given):
            if isinstance(image, (str, Path)):
                yield from ((found.name, found.read) for found in images_of([Path(image)], ledger))
            else:
                ledger.found(IMAGES)
                yield str(number), lambda image=image: image

    def _resized(self, image: Given) -> Pixels:
        return self.network.transform.of_pixels(self._decoded(image))

    def _decoded(self, image: Given) -> Pixels:
        if isinstance(image, (str, Path, bytes)):
            return open_image(encoded(image)).decode()
        return pixels_of(image)


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while several := list(islice(remaining, size)):
        yield several
