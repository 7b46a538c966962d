"""Trained weights that predict numbers.

>>> regressor = load_regressor("runs/ages")           # doctest: +SKIP
>>> regressor.predict(["face.jpg"])[0]                # doctest: +SKIP
{'age': 31.4}

Legend: B images · H, W pixels · D numbers per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from pipelines.weights.network import Network, load_network
from pretrain.config.target import Target
from pretrain.models.metadata import Task


class Regressor(Network):
    """A network whose outputs are numbers, in the units of its training data."""

    task: ClassVar[Task | None] = "regression"
    target: ClassVar[Target | None] = "vector"

    def values(self, images: Tensor) -> Tensor:
        """fp32 (B, D) on the CPU, for pixels uint8 (B, 3, H, W)."""
        scale = self.metadata.scale
        assert scale is not None
        return scale.restored(self.outputs(images)).cpu()

    def predict(self, images: Sequence[bytes | str | Path]) -> list[dict[str, float]]:
        """The numbers of each image, by name.

        Args:
            images: encoded images, or paths of such files; one micro-batch.

        Raises:
            BadSample: one of them is not a readable image. OSError: no such file.
        """
        return [dict(zip(self.keys, row, strict=True)) for row in self.values(self.pixels(images)).tolist()]


def load_regressor(source: str | Path, **options: Any) -> Regressor:
    """Reads weights of a regression; arguments and errors as ``load_network``."""
    return load_network(source, Regressor, **options)
