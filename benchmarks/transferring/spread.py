"""How much the features of a network differ from image to image: why one that is pretrained may serve worse than one
that is not.

Legend: N images · D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipelines.probe.cache import FeatureCache
from pipelines.weights.network import load_frozen
from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.storage.packed_set import open_packed
from pretrain.distributed.rank import detect

MICRO_BATCH = 128


def spread(features: Tensor) -> float:
    """Root mean square distance of the features (N, D) from their mean, over the length of the mean."""
    mean = features.mean(0)
    return float((features - mean).square().sum(1).mean().sqrt() / mean.norm())


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the shares of variance along the principal axes of (N, D): between 1 and D.

    Source: Roy & Vetterli, "The effective rank", EUSIPCO 2007; on the eigenvalues of the covariance.
    """
    variances = torch.linalg.svdvals((features - features.mean(0)).double()).square()
    shares = variances / variances.sum()
    return float(torch.special.entr(shares).sum().exp())


def measure(runs: Mapping[str, Path], shards: Path, cache: Path) -> dict[str, tuple[float, float]]:
    """Name → spread and effective rank of the features of a packed set, by the networks of the run folders."""
    rank = detect()
    packed, found = open_packed(str(shards), AutoClusterConfig()), {}
    for name, run in runs.items():
        frozen = load_frozen(run, weights="raw", img_size=None, device="cpu", say=_silent)
        whole = FeatureCache(cache, frozen, rank, MICRO_BATCH, 0, _silent)
        values = whole.features(packed, EvalTransformConfig(resize="squash")).whole().values
        found[name] = (spread(values), effective_rank(values))
    return found


def _silent(line: str) -> None:
    del line
