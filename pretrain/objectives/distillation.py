"""DeiT's distillation: part of the loss compares the student with a frozen teacher.

Legend: B images · C H W · K classes · α weight of the teacher's term · τ temperature · λ = α.
Source: DeiT (2012.12877), equations 2 (soft) and 3 (hard); the reductions from its code, ``losses.DistillationLoss``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.objectives.protocol import MicroBatch, Model
from pretrain.objectives.softmax import Softmax

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Distillation:
    """(1 − α) · cross-entropy with the labels + α · the teacher's term.

    The teacher's term is the cross-entropy with the teacher's best class (hard), or τ² · KL(teacher ‖ student) of both
    distributions at temperature τ (soft), as mean over batch and classes or, ``sum_classes``, over the batch only.

    Attributes:
        teacher: normalised images (B, C, H, W) → fp32 logits (B, K), without gradients.
        two_heads: the student has a distillation head, which the teacher's term uses; the label term uses the class
            head. Otherwise both use the same logits (the "usual distillation" of DeiT's table 3).
    """

    teacher: Callable[[Tensor], Tensor]
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    tau: float = 1.0
    kl_reduction: Literal["mean", "sum_classes"] = "mean"
    label_smoothing: float = 0.0
    two_heads: bool = True

    def __call__(self, model: Model, batch: MicroBatch) -> Tensor:
        """The loss, an fp32 scalar."""
        if self.two_heads:
            logits, imitating = model(batch.images, batch.drop_path, separate_heads=True).float().unbind(1)
        else:
            logits = imitating = model(batch.images, batch.drop_path).float()
        own = Softmax(self.label_smoothing).loss(logits, batch)
        return (1.0 - self.alpha) * own + self.alpha * self._imitation(imitating, self.teacher(batch.images))

    def _imitation(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher_logits.argmax(1))
        divergence = F.kl_div(
            F.log_softmax(logits / self.tau, dim=1),
            F.log_softmax(teacher_logits / self.tau, dim=1),
            reduction="sum",
            log_target=True,
        )
        count = logits.numel() if self.kl_reduction == "mean" else len(logits)
        return divergence * (self.tau * self.tau) / count


class Teacher:
    """A frozen model that computes logits of the student's images.

    Args:
        net: in evaluation mode, without gradients, on the device, fp32 weights.
        student: mean and standard deviation of the student's normalisation.
        own: mean and standard deviation of the teacher's normalisation; images are renormalised if they differ.
        autocast: compute matrix products in bfloat16.
    """

    def __init__(
        self, net: nn.Module, student: tuple[Triple, Triple], own: tuple[Triple, Triple], *, autocast: bool = False
    ) -> None:
        self._net, self._autocast = net, autocast
        device = next(net.parameters()).device
        (mean, std), (own_mean, own_std) = (
            [torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in pair] for pair in (student, own)
        )
        self._scale: Tensor | None = None
        if student != own:  # x·std + mean are pixels again
            self._scale = (std / own_std).to(device, torch.float32)
            self._shift = ((mean - own_mean) / own_std).to(device, torch.float32)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """fp32 logits (B, K) of the student's normalised images."""
        if self._scale is not None:
            images = images * self._scale + self._shift
        with torch.autocast(images.device.type, torch.bfloat16) if self._autocast else nullcontext():
            return self._net(images).float()
