"""How far predicted vectors are from the true ones: ``kind: regression``.

Legend: N images · B images of a batch · D numbers of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.distributed.collectives import all_gather_rows
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
