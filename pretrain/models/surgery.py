"""Fits saved weights to another resolution, pooling or head, and says of every tensor what became of it.

Legend: D width · N patch tokens of a grid (h, w) · F prefix tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import CheckpointError
from pretrain.models.architecture import require_same
from pretrain.models.init import initial_value
from pretrain.models.interop import WeightsMetadata
from pretrain.models.variants import is_head_tensor, num_relative_rows, parameter_shapes
from pretrain.models.vit import VisionTransformer

Grid = tuple[int, int]
Filter = Literal["bilinear_corners", "bicubic", "bicubic_aa"]
_NORMS = ("norm", "fc_norm")


@dataclass
class SurgeryReport:
    """What became of the tensors. Names are the file's in ``dropped``, the model's elsewhere."""

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
        new_grid: (h, w) wanted; the same grid gives the same values back.
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

    Resizing the axes by themselves is resizing the joined table, for every filter works on one axis after the other.
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
        new_grid: (h, w) wanted; the same grid gives the same values back.
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


def adapt_state_dict(
    state: Mapping[str, Tensor],
    source: WeightsMetadata,
    model: nn.Module,
    *,
    head: Literal["keep", "replace"],
    filter: Filter,
    seed: int,
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Saved tensors as ``model`` needs them: position embeddings resized, pooling switched, head kept or replaced.

    Learned tables and relative biases are interpolated; fixed and rotary positions are made for any grid. Relative
    keys (``relative_1d``) have a meaning on one grid only and are refused on another.

    Args:
        state: whole tensors of the file, on the CPU.
        source: what the file says about itself; its grid and prefix tokens are used, none is guessed.
        model: what they are for; only its ``config`` and ``num_classes`` are read, so it may be sharded or on meta.
        head: ``replace`` drops the file's head, tanh layer included, and gives the initial value of a new one.
        filter: how the position embedding is resized (see ``resize_pos_embed``).
        seed: of the experiment, for new tensors (see ``init.initial_value``).

    Returns:
        Every tensor of the model by name, on the CPU, in the file's type (new ones fp32), and the report.

    Raises:
        CheckpointError: another architecture, a head that does not fit, or a tensor that nothing explains.
    """
    require_same(source.model, model.config)  # type: ignore[arg-type]
    if not isinstance(model, VisionTransformer):
        from pretrain.models.timm_surgery import adapt_timm_state

        return adapt_timm_state(state, source, model, head=head, filter=filter, seed=seed)
    if head == "keep" and source.model.head != model.config.head:
        raise CheckpointError(
            f"the weights have model.head: {source.model.head}, the model {model.config.head}; set init.head: replace "
            "for a new head"
        )
    expected = parameter_shapes(model.config, model.num_classes)
    report, adapted, left = SurgeryReport(), {}, dict(state)
    _switch_norm(left, expected, report)
    if head == "replace":
        report.dropped += [name for name in left if is_head_tensor(name)]
    if source.model.class_token and not model.config.class_token:
        report.dropped += [name for name in left if name == "cls_token"]
    if source.model.mask_token and not model.config.mask_token:
        report.dropped.append("mask_token")
    if source.model.pool == "map" and model.config.pool != "map":
        report.dropped += [name for name in left if name.startswith("attn_pool.")]
    new_pool = head == "replace" and model.config.pool == "map" and source.model.pool != "map"
    _note_positions(source, model, report)
    for name in report.dropped:
        del left[name]
    for name, shape in expected.items():
        if (head == "replace" and is_head_tensor(name)) or (new_pool and name.startswith("attn_pool.")):
            adapted[name] = initial_value(name, shape, model.config, seed)
            report.new.append(name)
        else:
            adapted[name] = _take(name, left, source, model, filter, report)
            _check_shape(name, adapted[name], shape)
    if left:
        name = next(iter(left))
        raise CheckpointError(f"tensor {name} of the weights has no place in the model; {_remedy(name)}")
    return adapted, report


def _switch_norm(left: dict[str, Tensor], expected: Mapping[str, object], report: SurgeryReport) -> None:
    """Gives the final norm the name that it has before or after the pooling; its weights are the same."""
    for old, new in (_NORMS, _NORMS[::-1]):
        for leaf in ("weight", "bias"):
            name, wanted = f"{old}.{leaf}", f"{new}.{leaf}"
            if name in left and name not in expected and wanted in expected and wanted not in left:
                left[wanted] = left.pop(name)
                report.renamed[wanted] = name


def _take(
    name: str,
    left: dict[str, Tensor],
    source: WeightsMetadata,
    model: VisionTransformer,
    filter: Filter,
    report: SurgeryReport,
) -> Tensor:
    if name not in left:
        raise CheckpointError(f"tensor {name} of the model is not in the weights; {_remedy(name)}")
    tensor = left.pop(name)
    resized = _resize(name, tensor, source, model, filter, report)
    if source.shape.grid != model.shape.grid and _is_position_table(name):
        report.resized[name] = (source.shape.grid, model.shape.grid)
    elif name not in report.renamed:
        report.loaded.append(name)
    return resized


_POSITION_TABLE = re.compile(r"(^|\.)(pos_embed(\.row|\.column)?|relative_position_bias_table)$")


def _is_position_table(name: str) -> bool:
    return _POSITION_TABLE.search(name) is not None


def _resize(
    name: str,
    tensor: Tensor,
    source: WeightsMetadata,
    model: VisionTransformer,
    filter: Filter,
    report: SurgeryReport,
) -> Tensor:
    """The tensor for the model's grid and prefix tokens; what is no position table comes back as it is."""
    old, new, leaf = source.shape.grid, model.shape.grid, name.rpartition(".")[2]
    if leaf in ("row", "column"):
        return resize_axis(tensor, new[leaf == "column"], filter)
    if leaf == "relative_position_bias_table":
        resized = resize_relative_bias(tensor, old, new, filter)
        return resized if model.shape.num_prefix_tokens else resized[: num_relative_rows(model.shape)]
    if leaf != "pos_embed":
        return tensor
    has_prefix_rows = source.model.pos_embed_prefix
    prefix_rows = source.shape.num_prefix_tokens if has_prefix_rows else 0
    resized = resize_pos_embed(tensor, old, new, prefix_rows, filter)
    surplus = source.shape.num_prefix_tokens - model.shape.num_prefix_tokens if has_prefix_rows else 0
    if surplus:
        report.dropped.append(f"{name} (its rows for the class token)")
    return resized[:, surplus:]


def _note_positions(source: WeightsMetadata, model: VisionTransformer, report: SurgeryReport) -> None:
    """Says what becomes of positions without tensors on another grid."""
    old, new, kind = source.shape.grid, model.shape.grid, model.config.pos_embed
    if old != new and kind.startswith("sincos2d"):
        report.notes.append(f"{kind} is computed for the grid {new}; the weights have seen {old}")
    if kind == "rope_2d":
        spans = (source.model.rope_grid or old, model.config.rope_grid or new)
        if spans[0] != spans[1]:
            report.notes.append(
                f"rope_2d positions span {spans[1]}, the weights have seen {spans[0]}; "
                f"model.rope_grid: {list(spans[0])} scales them back"
            )


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"tensor {name} is {tuple(tensor.shape)} in the weights, {shape} in the model; {_remedy(name)}"
        )


def _remedy(name: str) -> str:
    if is_head_tensor(name):
        return "set init.head: replace for a new head, or num_classes and model.representation_size as in the weights"
    return "the weights are of another architecture: set model.variant as in their file, or name other weights"
