"""Where the patches of images at their own aspect ratio are, in sequences that are padded to one length.

Everything is computed on the device from the number of rows and columns of each image, without waiting for it: shapes
depend on the length only, so that one graph serves every aspect ratio.

Legend: B images · N length of the sequences · h, w rows and columns of an image's patches · F prefix tokens ·
T = F + N · S length of a learned table along an axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


class Axis(NamedTuple):
    """The places along one axis.

    Attributes:
        index: row or column of each patch, int64 (B, N); of padding that of some patch.
        count: rows or columns of each image, int64 (B, 1).
    """

    index: Tensor
    count: Tensor

    def coordinates(self, reference: int | None) -> Tensor:
        """The index, or as if the image had ``reference`` rows or columns: fp32 (B, N)."""
        return self.index.float() if reference is None else self.index * (reference / self.count)

    def weights(self, size: int) -> Tensor:
        """The share of each row of a table of ``size`` rows that spans the image in each patch: fp32 (B, N, S).

        An image of ``size`` rows or columns takes the table as it is. Equal to ``F.interpolate`` with
        ``mode="bicubic", antialias=True``, whose kernel (Keys, 1981, with a = -0.5) and edges these are.
        """
        scale = size / self.count.float()
        centre = (self.index + 0.5) * scale
        place = torch.arange(size, device=centre.device) + 0.5
        weights = _keys((place - centre[..., None]).abs() / scale.clamp(min=1)[..., None])
        return weights / weights.sum(-1, keepdim=True)


class Places(NamedTuple):
    """The places of all patches.

    Attributes:
        rows, columns: of each patch.
        valid: whether it is one, bool (B, N); otherwise it is padding.
    """

    rows: Axis
    columns: Axis
    valid: Tensor

    @classmethod
    def of(cls, grids: Tensor, length: int) -> Places:
        """The places in sequences of N patches in row-major order, then padding.

        Args:
            grids: h and w of each image, at least 1, int64 (B, 2).
            length: N.
        """
        heights, widths = grids.split(1, dim=1)
        index = torch.arange(length, device=grids.device)
        rows = torch.minimum(index // widths, heights - 1)  # beyond the table, weights would be 0 / 0
        return cls(Axis(rows, heights), Axis(index % widths, widths), index < heights * widths)

    def resampled(self, table: Tensor, grid: Grid) -> Tensor:
        """A learned table of a grid's patches, (S_h · S_w, D), stretched over each image: fp32 (B, N, D)."""
        rows, columns = self.rows.weights(grid[0]), self.columns.weights(grid[1])
        return (rows[..., :, None] * columns[..., None, :]).flatten(2) @ table.float()


def key_bias(valid: Tensor, num_prefix: int, dtype: torch.dtype) -> Tensor:
    """The term (B, 1, 1, T) that keeps padding out of attention: −∞ for its keys, otherwise 0."""
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill(~valid, -torch.inf)
    return F.pad(bias, (num_prefix, 0))[:, None, None]


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic kernel of distances ≥ 0."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
