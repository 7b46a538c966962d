"""DeiT's distillation: part of the loss compares the student with a frozen teacher.

Legend: B images · C H W · K classes · α weight of the teacher's term · τ temperature · λ = α.
Source: DeiT (2012.12877), equations 2 (soft) and 3 (hard); the reductions from its code, ``losses.DistillationLoss``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.classification import Softmax
from pretrain.objectives.protocol import MicroBatch, Model


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
            logits, imitating = (
                model(batch.images, batch.drop_path, separate_heads=True, **batch.options).float().unbind(1)
            )
        else:
            logits = imitating = model(batch.images, batch.drop_path, **batch.options).float()
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
