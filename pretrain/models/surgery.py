"""Resizing of position tables, and the report on each tensor; used by every family's surgery.

Legend: D width · A heads · N patch tokens of a grid (h, w) · F prefix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.errors import CheckpointError

Grid = tuple[int, int]
Filter = Literal["bilinear_corners", "bicubic", "bicubic_aa"]


@dataclass(frozen=True)
class SurgeryOptions:
    """How weights are fitted to another model.

    Attributes:
        head: ``replace`` drops the file's head and gives the initial value of a new one.
        filter: how position tables are resized (see ``resize_pos_embed``).
        seed: the experiment's seed, for new tensors.
    """

    head: Literal["keep", "replace"]
    filter: Filter
    seed: int


@dataclass
class SurgeryReport:
    """The outcome for each tensor. Names are the file's in ``dropped``, the model's elsewhere."""

    loaded: list[str] = field(default_factory=list)
    resized: dict[str, tuple[Grid, Grid]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each tensor that was not simply copied, and one that counts those that were."""
        return [
            f"{len(self.loaded)} tensors loaded as they are",
            *(f"resized: {name} from grid {old} to {new}" for name, (old, new) in self.resized.items()),
            *(f"renamed: {old} is now {new}" for new, old in self.renamed.items()),
            *(f"new: {name} starts at its initial value" for name in self.new),
            *(f"dropped: {name} of the file is not used" for name in self.dropped),
            *(f"note: {note}" for note in self.notes),
        ]


def resize_pos_embed(
    pos_embed: Tensor, old_grid: Grid, new_grid: Grid, num_prefix_tokens: int, filter: Filter
) -> Tensor:
    """Interpolates a position embedding from one grid to another; prefix tokens are copied.

    Args:
        pos_embed: (1, F + h·w, D), any floating type; the work is done on the CPU, in fp32 at least.
        old_grid: (h, w) that it was made for.
        new_grid: (h, w) of the result; the same grid returns the same values.
        num_prefix_tokens: F.
        filter: ``bilinear_corners`` maps the corners onto each other (Source: both Google repositories, through
            ``scipy.ndimage.zoom(order=1)``), ``bicubic`` is DeiT's, ``bicubic_aa`` is timm's antialiased one.

    Returns:
        (1, F + h'·w', D) in the type of ``pos_embed``, on the CPU.

    Raises:
        CheckpointError: the tensor has not F + h·w tokens.
    """
    num_tokens = num_prefix_tokens + old_grid[0] * old_grid[1]
    if pos_embed.shape[1] != num_tokens:
        raise CheckpointError(
            f"pos_embed has {pos_embed.shape[1]} tokens, but {num_prefix_tokens} prefix tokens and a grid of "
            f"{old_grid[0]}×{old_grid[1]} make {num_tokens}; give the grid and prefix tokens that it was trained with"
        )
    source = pos_embed.detach().cpu()
    if tuple(old_grid) == tuple(new_grid):
        return source.clone()
    prefix, patches = source[:, :num_prefix_tokens], source[:, num_prefix_tokens:]
    planes = patches.reshape(1, *old_grid, -1).permute(0, 3, 1, 2)
    resized = _interpolate(planes, new_grid, filter).permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([prefix, resized.to(source.dtype)], dim=1)


def _interpolate(planes: Tensor, grid: Grid, filter: Filter) -> Tensor:
    if planes.shape[3] == 1:  # torch's antialiased kernel is wrong on planes of width 1: give it two equal columns
        doubled = planes.expand(*planes.shape[:3], 2).contiguous()
        return _interpolate(doubled, (grid[0], max(grid[1], 2)), filter)[..., : grid[1]]
    if filter == "bilinear_corners":  # in double precision, as scipy
        return F.interpolate(planes.double(), size=grid, mode="bilinear", align_corners=True)
    return F.interpolate(
        planes.float(), size=grid, mode="bicubic", align_corners=False, antialias=filter == "bicubic_aa"
    )


def resize_axis(table: Tensor, new_length: int, filter: Filter) -> Tensor:
    """Interpolates the rows (or columns) of a learned 2-D position embedding: (1, h, D/2) → (1, h', D/2).

    Resizing the axes separately equals resizing the joined table, since every filter is separable.
    """
    if table.shape[1] == new_length:
        return table.detach().cpu().clone()
    planes = table.detach().cpu().transpose(1, 2)[..., None]
    return _interpolate(planes, (new_length, 1), filter)[..., 0].transpose(1, 2).to(table.dtype)


def resize_relative_bias(table: Tensor, old_grid: Grid, new_grid: Grid, filter: Filter) -> Tensor:
    """Interpolates a bias per 2-D offset and head over the plane of offsets; rows of prefix tokens are copied.

    Args:
        table: ((2h − 1)(2w − 1) + 0 or 3, A).
        old_grid: (h, w) that it was made for.
        new_grid: (h, w) of the result; the same grid returns the same values.
        filter: as for ``resize_pos_embed``; ``bicubic`` is timm's resize_rel_pos_bias_table_simple.
    """
    source = table.detach().cpu()
    old, new = ((2 * grid[0] - 1, 2 * grid[1] - 1) for grid in (old_grid, new_grid))
    if old == new:
        return source.clone()
    offsets, prefix = source[: old[0] * old[1]], source[old[0] * old[1] :]
    planes = offsets.T.reshape(1, -1, *old)
    resized = _interpolate(planes, new, filter).flatten(2)[0].T
    return torch.cat([resized.to(source.dtype), prefix])
