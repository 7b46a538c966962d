"""Metrics of logits: accuracy, accuracy under other labels or classes, precision and mean average precision.

A class's average precision needs its scores of all images in one place. So the classes are dealt to the ranks, each
batch's scores are gathered, and each rank keeps the columns of its classes.

Legend: B images · N images of the set · K classes · M most labels of an image · R ranks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pretrain.config.schema.evaluation import LabelMapConfig, TargetsConfig
from pretrain.data.batch import Batch
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.packed_set import open_packed
from pretrain.distributed.collectives import all_gather_rows, all_reduce_sum, is_distributed
from pretrain.evaluation.context import Context, OnLogits
from pretrain.evaluation.other_labels import ClassMap, load_targets


def average_precision(scores: NDArray[np.floating], positives: NDArray[np.bool_]) -> float:
    """Σₙ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores as thresholds, highest first; nan without a positive image.

    Images of equal score come at one threshold, so that their order does not matter.

    Args:
        scores: (N,).
        positives: (N,), True = the image shows the class.

    Source: scikit-learn, ``average_precision_score``, whose formula it is: no interpolation.
    """
    num_positives = int(positives.sum())
    if not num_positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    thresholds = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(positives[order])[thresholds]
    precision = found / (thresholds + 1)
    gained = np.diff(found, prepend=0)
    return float((gained * precision).sum() / num_positives)


class MeanAveragePrecision:
    """Gathers scores batch by batch; the mean is over the classes that some image shows.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        self._num_classes = num_classes
        self._first, self._stop = num_classes * rank // world, num_classes * (rank + 1) // world
        self._scores: list[NDArray[np.float32]] = []
        self._positives: list[NDArray[np.bool_]] = []

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Takes one micro-batch of every rank. Collective: equal shapes on all ranks.

        Args:
            logits: (B, K).
            labels: int64 (B, M), padded with −1.
            valid: bool (B,), True = a real image.
        """
        every_valid = all_gather_rows(valid.to(torch.uint8)).bool().cpu()
        scores = all_gather_rows(logits.float())[:, self._first : self._stop].cpu()[every_valid]
        every_label = all_gather_rows(labels).cpu()[every_valid]
        own = torch.arange(self._first, self._stop)
        positives = torch.zeros(len(every_label), len(own), dtype=torch.bool)
        for column in every_label.T:  # one comparison per label of an image, not one tensor of N × M × K
            positives |= column[:, None] == own
        self._scores.append(scores.numpy())
        self._positives.append(positives.numpy())

    def result(self) -> dict[str, float]:
        """``mAP`` in [0, 1] and ``num_classes``, those with an image: the same bits on any number of ranks.

        Collective: yes.
        """
        found = torch.zeros(self._num_classes, dtype=torch.float64)
        if self._scores:
            scores, positives = np.concatenate(self._scores), np.concatenate(self._positives)
            for column in range(scores.shape[1]):
                found[self._first + column] = average_precision(scores[:, column], positives[:, column])
        found = self._over_ranks(found)
        shown = ~torch.isnan(found)
        num_classes = int(shown.sum())
        return {"mAP": float(found[shown].mean()) if num_classes else 0.0, "num_classes": num_classes}

    @staticmethod
    def _over_ranks(found: Tensor) -> Tensor:
        """Each class's figure from the rank that has it; the others add zeros."""
        device = "cuda" if is_distributed() and dist.get_backend() == "nccl" else "cpu"
        return all_reduce_sum(found.to(device)).cpu()


class TopK:
    """Counts hits on the device, without waiting for it, and adds up over the ranks once at the end.

    One rule covers both kinds of set: with one label it is top-k accuracy, with several precision@1 (k = 1). An image
    without any label counts as a miss; leave it out by ``valid`` where that is not wanted.

    Args:
        device: where the counters live.
        ks: numbers of highest logits to look at.
    """

    def __init__(self, device: torch.device | str = "cpu", ks: tuple[int, ...] = (1, 5)) -> None:
        self.ks = ks
        self._hits = torch.zeros(len(ks), dtype=torch.int64, device=device)
        self._samples = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._has_loss = False

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor, valid: Tensor, losses: Tensor | None = None) -> None:
        """Counts one micro-batch.

        Args:
            logits: (B, K).
            labels: int64 (B, M), padded with −1.
            valid: bool (B,), True = a real image that counts, False = padding.
            losses: (B,) loss of each image, or None; all updates the same way.
        """
        assert labels.ndim == 2 and valid.shape == labels.shape[:1] == logits.shape[:1]
        best = logits.topk(min(max(self.ks), logits.shape[1]), dim=1).indices
        found = (best[:, :, None] == labels[:, None, :]).any(2)  # (B, k); −1 equals no class
        for row, k in enumerate(self.ks):
            self._hits[row] += (found[:, :k].any(1) & valid).sum()
        self._samples += valid.sum()
        if losses is not None:
            self._has_loss = True
            self._loss += torch.where(valid, losses, 0.0).sum(dtype=torch.float64)  # padding may be NaN

    def result(self, prefix: str = "") -> dict[str, float]:
        """``top1``, ``top5`` (one for each k) in [0, 1], ``num_samples`` and, where losses were given, ``loss``.

        The names of the accuracies begin with ``prefix``.

        Collective: every rank calls it, also one that saw no image.
        """
        counts = all_reduce_sum(torch.cat([self._hits, self._samples[None]])).tolist()
        loss = all_reduce_sum(self._loss[None]).tolist()[0]
        num_samples = counts[-1]
        counted = max(num_samples, 1)
        result: dict[str, float] = {f"{prefix}top{k}": hits / counted for k, hits in zip(self.ks, counts, strict=False)}
        result["num_samples"] = num_samples
        if self._has_loss:
            result["loss"] = loss / counted
        return result


class Accuracy(OnLogits):
    """Top-1 and top-5: ``kind: accuracy``."""

    def __init__(self, config: TargetsConfig, context: Context) -> None:
        super().__init__(config, context)
        self._targets: Tensor | None = None
        if config.targets is not None:
            self._targets = torch.from_numpy(load_targets(config.targets, self.stream.table))

    def select(self, logits: Tensor) -> Tensor:
        """Logits of the set's classes, (B, classes of the set)."""
        return logits

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``num_samples``. Collective: yes."""
        meter = TopK(self.context.device)
        for batch, logits in self.answers():
            meter.update(self.select(logits), batch.labels, batch.valid)
        return meter.result()

    def prepared(self, batch: Batch) -> Batch:
        """The batch with the labels of the targets file; images that have none there do not count."""
        if self._targets is None:
            return batch
        labels = self._targets[batch.sample_ids.clamp(min=0)]
        batch.labels, batch.valid = labels, batch.valid & (labels >= 0).any(1)
        return batch


class MappedAccuracy(Accuracy):
    """Top-1 and top-5 on a set with other classes than the head: ``kind: label_map``."""

    def __init__(self, config: LabelMapConfig, context: Context) -> None:
        super().__init__(config, context)
        experiment = context.experiment
        trained_on = open_packed(
            experiment.data.sources[0].shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe
        )
        class_map = ClassMap.load(config.class_map, load_classes(self.stream.table.folder), trained_on.classes)
        context.session.say(f"{config.shards}: {class_map.summary()}")
        self._class_map = class_map.to(context.device)

    def select(self, logits: Tensor) -> Tensor:
        """See ``Accuracy``."""
        return self._class_map(logits)


class MultiLabel(OnLogits):
    """Precision@1 and mean average precision: ``kind: multilabel``."""

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``precision_at_1``, ``mAP``, ``num_classes`` (with an image) and ``num_samples``. Collective: yes."""
        best = TopK(self.context.device, ks=(1,))
        ranking = MeanAveragePrecision(self.stream.table.num_classes)
        for batch, logits in self.answers():
            best.update(logits, batch.labels, batch.valid)
            ranking.update(logits, batch.labels, batch.valid)
        counted = best.result()
        return {"precision_at_1": counted["top1"], **ranking.result(), "num_samples": counted["num_samples"]}
