"""Fits saved weights of a Vision Transformer to another resolution, patch size, pooling or head.

Learned tables and relative biases are interpolated; fixed and rotary positions are made for any grid. Relative keys
(``relative_1d``) have a meaning on one grid only and are refused on another (``families.vit``).

Legend: F prefix tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.models.init import initial_value
from pretrain.models.layers.positions import sincos_2d
from pretrain.models.surgery import (
    SurgeryOptions,
    SurgeryReport,
    resample_patch_embed,
    resize_axis,
    resize_pos_embed,
    resize_relative_bias,
)
from pretrain.models.tensor_shapes import DECODER, is_head_tensor, num_relative_rows, parameter_shapes
from pretrain.models.variants import resolve

if TYPE_CHECKING:
    from pretrain.models.metadata import WeightsMetadata

_NORMS = ("norm", "fc_norm")
_PATCH_KERNEL = "patch_embed.proj.weight"
_POSITION_TABLE = re.compile(r"(^|\.)(pos_embed(\.row|\.column)?|relative_position_bias_table)$")


def adapt(
    state: Mapping[str, Tensor], source: WeightsMetadata, net: nn.Module, options: SurgeryOptions
) -> tuple[dict[str, Tensor], SurgeryReport]:
    """Saved tensors as ``net`` needs them; see ``registry.adapt_state_dict``.

    Raises:
        CheckpointError: the head does not fit, or a tensor has no counterpart.
    """
    config: ModelConfig = net.config  # type: ignore[assignment]
    num_classes: int = net.num_classes  # type: ignore[assignment]
    if options.head == "keep" and source.model.head != config.head:
        raise CheckpointError(
            f"the weights have model.head: {source.model.head}, the model {config.head}; set init.head: replace "
            "for a new head"
        )
    surgery = _Surgery(state, source.model, config, parameter_shapes(config, num_classes), options)
    return surgery.adapted(), surgery.report


class _Surgery:
    """One transfer of weights. ``left`` are the file's tensors that no tensor of the model has taken yet."""

    def __init__(
        self,
        state: Mapping[str, Tensor],
        old: ModelConfig,
        new: ModelConfig,
        expected: Mapping[str, tuple[int, ...]],
        options: SurgeryOptions,
    ) -> None:
        self.old, self.new, self.expected, self.options = old, new, expected, options
        self.old_shape, self.new_shape = resolve(old), resolve(new)
        self.left = dict(state)
        self.report = SurgeryReport()

    def adapted(self) -> dict[str, Tensor]:
        """Every tensor of the model by name; each step records its actions in the report."""
        self._switch_norm()
        self._drop()
        self._learn_positions()
        self._note_positions()
        tensors = {}
        for name, shape in self.expected.items():
            if self._is_new(name):
                tensors[name] = initial_value(name, shape, self.new, self.options.seed)
                self.report.new.append(name)
            else:
                tensors[name] = self._take(name)
                _check_shape(name, tensors[name], shape)
        if self.left:
            name = next(iter(self.left))
            raise CheckpointError(f"tensor {name} of the weights has no place in the model; {_remedy(name)}")
        return tensors

    def _switch_norm(self) -> None:
        """Renames the final norm for a position before or after the pooling; its weights are the same."""
        for old, new in (_NORMS, _NORMS[::-1]):
            for leaf in ("weight", "bias"):
                name, wanted = f"{old}.{leaf}", f"{new}.{leaf}"
                moves = name in self.left and name not in self.expected
                if moves and wanted in self.expected and wanted not in self.left:
                    self.left[wanted] = self.left.pop(name)
                    self.report.renamed[wanted] = name

    def _drop(self) -> None:
        """Leaves out tensors that the model does not use: the old head, a token or a pooling that it does not have."""
        old, new, dropped = self.old, self.new, self.report.dropped
        decoder = [name for name in self.left if name.startswith(DECODER)]
        if self.options.head == "replace":
            dropped += [name for name in self.left if is_head_tensor(name) and name not in decoder]
        if old.class_token and not new.class_token:
            dropped += [name for name in self.left if name == "cls_token"]
        if old.mask_token and not new.mask_token:
            dropped.append("mask_token")
        if old.pool == "map" and new.pool != "map":
            dropped += [name for name in self.left if name.startswith("attn_pool.")]
        for name in dropped:
            del self.left[name]
        if decoder and self.options.head == "replace":
            self.left = {name: tensor for name, tensor in self.left.items() if name not in decoder}
            dropped.append(f"the decoder ({len(decoder)} tensors)")

    def _learn_positions(self) -> None:
        """Makes the fixed table of the weights the start of a learned one."""
        kind, shape = self.old.pos_embed, self.old_shape
        if kind == self.new.pos_embed or not kind.startswith("sincos2d_"):
            return
        table = sincos_2d(kind.removeprefix("sincos2d_"), shape.grid, shape.embed_dim, torch.device("cpu"))
        self.left["pos_embed"] = F.pad(table, (0, 0, shape.num_prefix_tokens, 0))
        self.report.notes.append(f"pos_embed starts as the fixed table {kind} of the weights and is trained")

    def _is_new(self, name: str) -> bool:
        """Whether a tensor starts at its initial value: a new head, and attention pooling that comes with it."""
        if self.options.head == "keep":
            return False
        new_pool = self.new.pool == "map" and self.old.pool != "map"
        return is_head_tensor(name) or (new_pool and name.startswith("attn_pool."))

    def _take(self, name: str) -> Tensor:
        if name not in self.left:
            raise CheckpointError(f"tensor {name} of the model is not in the weights; {_remedy(name)}")
        if name == _PATCH_KERNEL and self.old_shape.patch != self.new_shape.patch:
            self.report.resampled[name] = (self.old_shape.patch, self.new_shape.patch)
            return resample_patch_embed(self.left.pop(name), self.new_shape.patch)
        resized = self._resize(name, self.left.pop(name))
        old, new = self.old_shape.grid, self.new_shape.grid
        if old != new and _POSITION_TABLE.search(name):
            self.report.resized[name] = (old, new)
        elif name not in self.report.renamed:
            self.report.loaded.append(name)
        return resized

    def _resize(self, name: str, tensor: Tensor) -> Tensor:
        """A position table for the model's grid and prefix tokens; any other tensor is returned as it is."""
        old, new, leaf, filter = self.old_shape, self.new_shape, name.rpartition(".")[2], self.options.filter
        if leaf in ("row", "column"):
            return resize_axis(tensor, new.grid[leaf == "column"], filter)
        if leaf == "relative_position_bias_table":
            resized = resize_relative_bias(tensor, old.grid, new.grid, filter)
            return resized if new.num_prefix_tokens else resized[: num_relative_rows(new)]
        if leaf != "pos_embed":
            return tensor
        has_prefix_rows = self.old.pos_embed_prefix
        prefix_rows = old.num_prefix_tokens if has_prefix_rows else 0
        resized = resize_pos_embed(tensor, old.grid, new.grid, prefix_rows, filter)
        surplus = old.num_prefix_tokens - new.num_prefix_tokens if has_prefix_rows else 0
        if surplus:
            self.report.dropped.append(f"{name} (its rows for the class token)")
        return resized[:, surplus:]

    def _note_positions(self) -> None:
        """Records how positions without tensors change on another grid."""
        old, new, kind = self.old_shape.grid, self.new_shape.grid, self.new.pos_embed
        if old != new and kind.startswith("sincos2d_"):
            self.report.notes.append(f"{kind} is computed for the grid {new}; the weights have seen {old}")
        if self.new.rope is not None:
            spans = (self.old.rope_grid or old, self.new.rope_grid or new)
            if spans[0] != spans[1]:
                self.report.notes.append(
                    f"rotary positions span {spans[1]}, the weights have seen {spans[0]}; "
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
