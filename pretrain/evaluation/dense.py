"""Errors of predicted vectors (``kind: regression``) and of predicted masks (``kind: segmentation``).

Legend: N images · B images of a batch · D numbers of a vector · H, W pixels · K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema.data import IGNORED_PIXEL
from pretrain.distributed.collectives import all_gather_rows, all_reduce_sum
from pretrain.errors import DataError
from pretrain.evaluation.context import OnLogits

Floats = NDArray[np.float64]


class VectorErrors(OnLogits):
    """MAE, RMSE and R², in the units of the data."""

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``mae``, ``rmse``, ``r2`` and ``num_samples``: the same bits on any number of ranks. Collective: yes."""
        scale = self.context.scale
        assert scale is not None, "the objective has one"
        parts: list[tuple[Floats, Floats]] = []
        for batch, logits in self.answers():
            assert batch.targets is not None
            valid = all_gather_rows(batch.valid.to(torch.uint8)).bool()
            ids = all_gather_rows(batch.sample_ids)[valid]
            pair = torch.stack([scale.restored(logits), batch.targets], dim=1)
            pair = all_gather_rows(pair)[valid][torch.argsort(ids)].double().cpu().numpy()
            parts.append((pair[:, 0], pair[:, 1]))
        predicted, true = (np.concatenate(column) for column in zip(*parts, strict=True))
        return {**errors(predicted, true), "num_samples": len(true)}


def errors(predicted: Floats, true: Floats) -> dict[str, float]:
    """``mae``, ``rmse`` and ``r2``, each the mean over the D numbers of its figure over the images.

    Args:
        predicted: (N, D).
        true: (N, D).

    Source: scikit-learn: mean_absolute_error, root_mean_squared_error and r2_score, with their default average over
    the outputs.
    """
    rows = [errors_of_one(predicted[:, index], true[:, index]) for index in range(true.shape[1])]
    return {name: float(np.mean([row[name] for row in rows])) for name in ("mae", "rmse", "r2")}


def errors_of_one(predicted: Floats, true: Floats) -> dict[str, float]:
    """``mae``, ``rmse`` and ``r2`` of one number, both (N,).

    R² is 1 − Σ(true − predicted)² / Σ(true − mean)²; of a number that never changes 1 where every prediction is right
    and 0 elsewhere, as scikit-learn has it.
    """
    error = predicted - true
    left, there = float((error**2).sum()), float(((true - true.mean()) ** 2).sum())
    r2 = 1 - left / there if there else float(not left)
    return {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean())), "r2": r2}


class MaskOverlap(OnLogits):
    """Mean intersection over union and pixel accuracy, at the model's resolution."""

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``mIoU``, ``pixel_accuracy``, ``num_classes`` (over which mIoU is the mean) and ``num_samples``.

        Counts are whole numbers, so that every number of ranks gives the same bits. Collective: yes.

        Raises:
            DataError: see ``check_shown``; on every rank alike.
        """
        num_classes, device = self.stream.table.num_classes, self.context.device
        matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        num_samples = torch.zeros((), dtype=torch.int64, device=device)
        for batch, logits in self.answers():
            assert batch.targets is not None
            found = logits.argmax(1)
            matrix += confusion(found[batch.valid], batch.targets[batch.valid], num_classes)
            num_samples += batch.valid.sum()
        total = all_reduce_sum(matrix).cpu().numpy()
        check_shown(total, str(self.shards))
        return {**overlap(total), "num_samples": float(all_reduce_sum(num_samples[None])[0])}


def confusion(found: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """int64 (K, K): pixels of the true class (row) that were found to be of another (column).

    Args:
        found: classes, integers (B, H, W).
        true: classes, or 255 where a pixel has none and does not count; integers (B, H, W).
        num_classes: K.
    """
    counts = true != IGNORED_PIXEL
    pairs = true[counts].long() * num_classes + found[counts].long()
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def check_shown(matrix: NDArray[np.int64], where: str) -> None:
    """Refuses to judge by masks that show nothing, or always the same: then the mean would be of nothing, or of one.

    Args:
        matrix: int64 (K, K), see ``confusion``.
        where: the set, to name it.

    Raises:
        DataError: no pixel has a class, or all have the same one.
    """
    shown = np.flatnonzero(matrix.sum(1))
    if len(shown) >= min(2, len(matrix)):
        return
    what = "no pixel of its masks has a class" if not len(shown) else f"all pixels of its masks are class {shown[0]}"
    raise DataError(
        f"{where}: {what} (255 is none), so mIoU is meaningless. Pack the set again: pack reports the numbers that the "
        "masks are stored as, and --mask-values gives them their classes"
    )


def per_class_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class, float64 (K,); nan of one that no pixel is or was found to be."""
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def overlap(matrix: NDArray[np.int64]) -> dict[str, float]:
    """``mIoU`` over the classes that some pixel is or was found to be, how many these are, and ``pixel_accuracy``.

    ``check_shown`` comes before it: there is a pixel to judge by.

    Args:
        matrix: int64 (K, K), see ``confusion``.

    Source: mIoU: Everingham et al. 2015, "The Pascal Visual Object Classes Challenge", section 4.2, over all images.
    """
    each = per_class_iou(matrix)
    shown = ~np.isnan(each)
    return {
        "mIoU": float(each[shown].mean()),
        "pixel_accuracy": float(np.trace(matrix)) / int(matrix.sum()),
        "num_classes": int(shown.sum()),
    }
