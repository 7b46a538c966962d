"""Metrics of logits: accuracy, accuracy under other labels or classes, and multi-label figures.

Legend: B images · K classes · M most labels of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.data.batch import Batch
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.packed_set import open_packed
from pretrain.distributed.collectives import all_reduce_sum
from pretrain.evaluation.average_precision import MeanAveragePrecision
from pretrain.evaluation.class_map import ClassMap
from pretrain.evaluation.context import Context, OnLogits
from pretrain.evaluation.targets import load_targets


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
    """Top-1 and top-5: ``kind: accuracy``, and with a class map ``kind: label_map``."""

    def __init__(self, config: EvaluationSetConfig, context: Context) -> None:
        super().__init__(config, context)
        self._targets: Tensor | None = None
        if config.targets is not None:
            self._targets = torch.from_numpy(load_targets(config.targets, self.stream.table))
        self._select: Callable[[Tensor], Tensor] = lambda logits: logits
        if config.kind == "label_map":
            experiment = context.experiment
            trained_on = open_packed(
                experiment.data.sources[0].shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe
            )
            own = load_classes(self.stream.table.folder)
            class_map = ClassMap.load(config.class_map, own, trained_on.classes)
            context.session.say(f"{config.shards}: {class_map.summary()}")
            self._select = class_map.to(context.device)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``num_samples``. Collective: yes."""
        meter = TopK(self.context.device)
        for batch, logits in self.answers():
            meter.update(self._select(logits), batch.labels, batch.valid)
        return meter.result()

    def prepared(self, batch: Batch) -> Batch:
        """The batch with the labels of the targets file; images that have none there do not count."""
        if self._targets is None:
            return batch
        labels = self._targets[batch.sample_ids.clamp(min=0)]
        batch.labels, batch.valid = labels, batch.valid & (labels >= 0).any(1)
        return batch


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
