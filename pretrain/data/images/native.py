"""Images at their own aspect ratio, as sequences of patches that are padded to one length.

An image is resized to whole patches, h rows of w, with h · w ≤ N. The batch holds it as a strip: one row of N patches,
uint8 (P, N · P, 3), those of the image in row-major order and then zeros. So a batch of strips is a batch of images of
P × N · P pixels, which the patch embedding cuts as it cuts any other. h and w travel beside it.

Source: NaViT (2307.06304). Differs: sequences are padded, as in NaFlex (SigLIP 2, 2502.14786), not packed.

Legend: P patch side · N length of the sequence · h, w rows and columns of an image's patches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.config.sequences import Grid, native_grid
from pretrain.data.images.augment import EvalTransform, TrainTransform, View
from pretrain.data.images.colour import Pixels
from pretrain.data.images.crops import Numbers
from pretrain.data.images.decode import open_image
from pretrain.data.images.resize import resize

if TYPE_CHECKING:
    from pretrain.data.workers.reader import Sample


def write_strip(pixels: Pixels, patch: int, out: Pixels) -> Grid:
    """Writes an image of whole patches, uint8 (h · P, w · P, 3), into ``out``, (P, N · P, 3); returns (h, w)."""
    rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
    used = rows * columns * patch
    by_row = pixels.reshape(rows, patch, columns * patch, 3).transpose(1, 0, 2, 3)
    out[:, :used] = by_row.reshape(patch, used, 3)
    out[:, used:] = 0
    return rows, columns


@dataclass(frozen=True)
class Strip:
    """The form of a sequence in a batch.

    Args:
        patch: P.
        length: N.
    """

    patch: int
    length: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.patch, self.patch * self.length

    @classmethod
    def of(cls, size: tuple[int, int]) -> Strip:
        """The form of strips of this height and width."""
        return cls(size[0], size[1] // size[0])

    def empty(self) -> Pixels:
        """Memory for one."""
        return np.empty((*self.size, 3), dtype=np.uint8)

    def image(self, height: int, width: int) -> Pixels:
        """Memory for an image of ``height`` × ``width`` pixels after it is resized."""
        rows, columns = native_grid(height, width, self.length)
        return np.empty((rows * self.patch, columns * self.patch, 3), dtype=np.uint8)


@dataclass(frozen=True)
class _ToStrip:
    """A transform whose result is a strip."""

    views: ClassVar[int] = 1

    strip: Strip

    @property
    def height(self) -> int:
        """Of a strip."""
        return self.strip.size[0]

    @property
    def width(self) -> int:
        """Of a strip."""
        return self.strip.size[1]


@dataclass(frozen=True)
class NativeTrainTransform(_ToStrip):
    """The training augmentation of an image that keeps its aspect ratio; see ``augment.TrainTransform``.

    Args:
        strip: the form of the result.
        transform: crop, flip and policies.
    """

    transform: TrainTransform

    def at_size(self, size: tuple[int, int]) -> NativeTrainTransform:
        """The same for strips of this height and width."""
        return replace(self, strip=Strip.of(size))

    def numbers(
        self, epochs: NDArray[np.int64], sample_ids: NDArray[np.int64], copies: NDArray[np.int64] | None = None
    ) -> Numbers:
        """See ``TrainTransform.numbers``."""
        return self.transform.numbers(epochs, sample_ids, copies)

    def pair(self, sample: Sample, numbers: Numbers, out: Pixels | None = None) -> View:
        """A strip and its grid.

        Raises:
            BadSample: the image is unreadable; ``out`` may contain a part of it.
        """
        image = open_image(sample.data)
        pixels = self.transform.of_image(image, numbers, self.strip.image(image.height, image.width))
        out = self.strip.empty() if out is None else out
        return View(out, grid=write_strip(pixels, self.strip.patch, out))


@dataclass(frozen=True)
class NativeEvalTransform(_ToStrip):
    """The evaluation transform of an image that keeps its aspect ratio: the complete image, decoded at full size.

    Args:
        strip: the form of the result.
        config: its settings.
    """

    config: EvalTransformConfig

    def pair(self, sample: Sample) -> View:
        """A strip and its grid.

        Raises:
            BadSample: the image is unreadable.
        """
        pixels = open_image(sample.data).decode()
        resized = self.strip.image(pixels.shape[0], pixels.shape[1])
        resized = resize(pixels, resized.shape[0], resized.shape[1], self.config.resize_filter, resized)
        out = self.strip.empty()
        return View(out, grid=write_strip(resized, self.strip.patch, out))


AnyTrain = TrainTransform | NativeTrainTransform
AnyEval = EvalTransform | NativeEvalTransform
