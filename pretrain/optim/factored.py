"""Adafactor's second moment in numbers: how each tensor is seen, and what is kept of it. Does not import torch.

Legend: D width · A heads · E head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SMALLEST_FACTORED = 32  # a tensor with fewer than two dimensions of this size has an unfactored second moment

View = tuple[int, ...]  # the first dimension stacks tensors of the remaining shape


def factored_axes(view: View) -> tuple[int, int] | None:
    """The two largest dimensions except the first: (rows, columns); None if the second largest is too small."""
    order = sorted(range(1, len(view)), key=lambda axis: view[axis])
    if len(order) < 2 or view[order[-2]] < SMALLEST_FACTORED:
        return None
    return order[-2], order[-1]


def num_kept(view: View) -> int:
    """Values kept of the second moment: the means of rows and columns, or one per weight if it is not factored."""
    size, axes = math.prod(view), factored_axes(view)
    return size if axes is None else sum(size // view[axis] for axis in axes)


def views_of(shapes: Mapping[str, tuple[int, ...]], num_heads: Mapping[str, int]) -> dict[str, View]:
    """How each parameter is seen: one tensor, or in attention the kernels of flax, whose statistics are then the same.

    Flax stores q, k and v separately, each as (D, A, E), and the projection as (A, E, D), so heads are factored alone.
    torch's ``qkv.weight`` is (3 · A · E, D), ``kv.weight`` (2 · A · E, D), ``q.weight`` (A · E, D) and ``proj.weight``
    (D, A · E).

    Args:
        shapes: parameter name → shape.
        num_heads: name of an attention module → A.
    """
    views: dict[str, View] = {name: (1, *shape) for name, shape in shapes.items()}
    for module, heads in num_heads.items():
        for layer, parts in (("qkv", 3), ("kv", 2), ("q", 1), ("proj", 0)):
            name = f"{module}.{layer}.weight"
            if len(shapes.get(name, ())) != 2:
                continue  # the model has no such dense layer
            out, into = shapes[name]
            if parts and out % (parts * heads) == 0:
                views[name] = (parts, heads, out // parts // heads, into)
            elif not parts and into % heads == 0:
                views[name] = (1, out, heads, into // heads)
    return views
