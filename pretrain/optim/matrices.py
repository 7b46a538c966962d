"""Parameters as matrices, for optimisers that treat rows and columns as such. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

Matrices = tuple[int, int, int]  # number of matrices, rows, columns of each

_FUSED = {"qkv": 3, "kv": 2}  # dense layers of attention that compute several projections at once


def matrices_of(shapes: Mapping[str, tuple[int, ...]], attention: Collection[str]) -> dict[str, Matrices]:
    """Name → how a parameter of at least two dimensions consists of matrices: its outputs are the rows.

    A convolution kernel (outputs, inputs, height, width) is one matrix with a column per input and position. Queries,
    keys and values of a fused projection are separate matrices, as if the layer were not fused.

    Args:
        shapes: parameter name → shape.
        attention: names of the attention modules.
    """
    fused = {f"{module}.{layer}.weight": count for module in attention for layer, count in _FUSED.items()}
    found = {}
    for name, (rows, *others) in ((name, shape) for name, shape in shapes.items() if len(shape) > 1):
        count = fused.get(name, 1)
        count = count if rows % count == 0 else 1
        found[name] = (count, rows // count, math.prod(others))
    return found


class Block(NamedTuple):
    """A part of one matrix of a parameter.

    Attributes:
        matrix: number of the matrix.
        rows, columns: of the matrix, with start and stop.
    """

    matrix: int
    rows: slice
    columns: slice

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.rows.stop - self.rows.start

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.columns.stop - self.columns.start


def blocks_of(matrices: Matrices, largest: int) -> list[Block]:
    """The blocks of at most ``largest`` rows and columns that a parameter's matrices are cut into, row by row."""
    count, rows, columns = matrices
    return [
        Block(number, across, down)
        for number in range(count)
        for across in _cut(rows, largest)
        for down in _cut(columns, largest)
    ]


def _cut(size: int, largest: int) -> list[slice]:
    return [slice(start, min(start + largest, size)) for start in range(0, size, largest)]
