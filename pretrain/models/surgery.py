"""Resizing of position tables and patch kernels, and the report on each tensor; used by every family's surgery.

Legend: C channels · D width · A heads · N patch tokens of a grid (h, w) · F prefix tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
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
    resampled: dict[str, tuple[Grid, Grid]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """One line for each tensor that was not simply copied, and one that counts those that were."""
        return [
            f"{len(self.loaded)} tensors loaded as they are",
            *(f"resized: {name} from grid {old} to {new}" for name, (old, new) in self.resized.items()),
            *(
                f"resampled: {name} from patches of {old} to {new} pixels"
                for name, (old, new) in self.resampled.items()
            ),
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


def resized_table(table: Tensor, old_grid: Grid, new_grid: Grid, num_prefix_tokens: int, filter: Filter) -> Tensor:
    """As ``resize_pos_embed``, on the device of the table and with a gradient for it, within a forward pass.

    Every filter is linear and separable, so resizing is a matrix product for each axis, whose gradient has a fixed
    order of summation on a GPU. It is done in double precision, which autocast and TF32 leave alone.

    Returns:
        (1, F + h'·w', D) in the type of ``table``.
    """
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:].double()
    rows, columns = (_axis_matrix(old, new, filter, table.device) for old, new in zip(old_grid, new_grid, strict=True))
    resized = torch.einsum("ih,jw,bhwd->bijd", rows, columns, patches.unflatten(1, old_grid)).flatten(1, 2)
    return torch.cat([prefix, resized.to(table.dtype)], dim=1)


@lru_cache(maxsize=64)
def _axis_matrix(old: int, new: int, filter: Filter, device: torch.device) -> Tensor:
    """float64 (new, old), which resizes one axis. Cached: a copy from the host in every step would wait for the GPU."""
    if old == new:
        return torch.eye(old, dtype=torch.float64, device=device)
    planes = torch.eye(old, dtype=torch.float64)[None, :, :, None]  # a plane of one column for each place of the axis
    return _interpolate(planes, (new, 1), filter)[0, :, :, 0].T.double().to(device)


def _interpolate(planes: Tensor, grid: Grid, filter: Filter) -> Tensor:
    if planes.shape[3] == 1:  # torch's antialiased kernel is wrong on planes of width 1: give it two equal columns
        doubled = planes.expand(*planes.shape[:3], 2).contiguous()
        return _interpolate(doubled, (grid[0], max(grid[1], 2)), filter)[..., : grid[1]]
    if filter == "bilinear_corners":  # in double precision, as scipy
        return F.interpolate(planes.double(), size=grid, mode="bilinear", align_corners=True)
    return F.interpolate(
        planes.float(), size=grid, mode="bicubic", align_corners=False, antialias=filter == "bicubic_aa"
    )


def resample_patch_embed(kernel: Tensor, new_patch: Grid) -> Tensor:
    """Kernels of the patch embedding for patches of another size: (D, C, p, q) → (D, C, p', q').

    If B is the matrix that resizes a patch of the old size to the new one, the kernel is multiplied by the pseudo-
    inverse of Bᵀ. For larger patches, a resized patch then gives exactly the token of the original one; for smaller
    ones it is the best approximation over random patches.

    Source: FlexiViT (2212.08013), equation 4.
    Differs: B resizes bicubically with antialiasing, as timm's ``resample_patch_embed``; the paper's code bilinearly.

    Returns:
        The new kernels in the type of ``kernel``, on the CPU; the same size returns the same values.
    """
    source = kernel.detach().cpu()
    if source.shape[2:] == tuple(new_patch):
        return source.clone()
    return resampled_kernel(source, new_patch)


def resampled_kernel(kernel: Tensor, new_patch: Grid) -> Tensor:
    """As ``resample_patch_embed``, on the device of the kernel and with a gradient for it, within a forward pass."""
    matrix = _resampling(tuple(kernel.shape[2:]), new_patch, kernel.device)
    return (kernel.flatten(2).double() @ matrix).unflatten(2, new_patch).to(kernel.dtype)


@lru_cache(maxsize=64)
def _resampling(old: Grid, new: Grid, device: torch.device) -> Tensor:
    """float64 (p·q, p'·q'), which resamples a kernel. Cached, as ``_axis_matrix``."""
    pixels = torch.eye(old[0] * old[1]).unflatten(1, (1, *old))
    resize = _interpolate(pixels, new, "bicubic_aa").flatten(1)  # Bᵀ: a row for each pixel of an old patch
    inverse = torch.linalg.pinv(resize.double(), rtol=1e-6)  # its fp32 entries make a zero singular value up to 1e-7
    return inverse.T.contiguous().to(device)


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
