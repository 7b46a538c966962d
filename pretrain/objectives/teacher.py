"""The frozen teacher of a distillation: logits, features or patch tokens of the student's images.

Legend: B images · C H W · K classes · D width of the features · h, w patches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema.objective import TeacherView
from pretrain.models.families.registry import patch_features
from pretrain.models.head_input import HeadInput

Triple = tuple[float, float, float]


class Teacher:
    """A frozen model that is shown the student's images.

    Args:
        net: in evaluation mode, without gradients, on the device, fp32 weights.
        student: mean and standard deviation of the student's normalisation.
        own: mean and standard deviation of the teacher's normalisation; images are renormalised if they differ.
        autocast: compute matrix products in bfloat16.
        view: what a call returns: logits (B, K), features (B, D), patch tokens (B, D, h, w), or features and tokens.
    """

    def __init__(
        self,
        net: nn.Module,
        student: tuple[Triple, Triple],
        own: tuple[Triple, Triple],
        *,
        autocast: bool = False,
        view: TeacherView = "logits",
    ) -> None:
        self._net, self._autocast, self._look = net, autocast, VIEWS[view]
        device = next(net.parameters()).device
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in pair] for pair in (student, own)
        )
        self._scale: Tensor | None = None
        if student != own:  # x·std + mean are pixels again
            self._scale = (std / own_std).to(device, torch.float32)
            self._shift = ((mean - own_mean) / own_std).to(device, torch.float32)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Any:
        """The outputs that ``view`` names, for the student's normalised images: an fp32 tensor, or two."""
        if self._scale is not None:
            images = images * self._scale + self._shift
        with torch.autocast(images.device.type, torch.bfloat16) if self._autocast else nullcontext():
            found = self._look(self._net, images)
        return found.float() if isinstance(found, Tensor) else tuple(each.float() for each in found)


def _logits(net: nn.Module, images: Tensor) -> Tensor:
    return net(images)


def _head_input(net: nn.Module, images: Tensor) -> Tensor:
    with HeadInput(net) as head_input:
        net(images)
        return head_input.take()


def _both(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    return _head_input(net, images), patch_features(net, images)


VIEWS: dict[TeacherView, Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, Tensor]]] = {
    "logits": _logits,
    "features": _head_input,
    "tokens": patch_features,
    "features_and_tokens": _both,
}
