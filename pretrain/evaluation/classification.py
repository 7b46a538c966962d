"""What is measured on logits: accuracy, accuracy under other labels or classes, and multi-label figures."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pretrain.config.schema.evaluation import EvaluationSetConfig
from pretrain.data.batch import Batch
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.packed_set import open_packed
from pretrain.evaluation.average_precision import MeanAveragePrecision
from pretrain.evaluation.class_map import ClassMap
from pretrain.evaluation.context import Context
from pretrain.evaluation.targets import load_targets
from pretrain.evaluation.topk import TopK


class Accuracy:
    """Top-1 and top-5: ``kind: accuracy``, and with a class map ``kind: label_map``."""

    def __init__(self, config: EvaluationSetConfig, context: Context) -> None:
        self._context = context
        self._stream = context.stream(config, config.shards)
        self._targets: Tensor | None = None
        if config.targets is not None:
            self._targets = torch.from_numpy(load_targets(config.targets, self._stream.table))
        self._select: Callable[[Tensor], Tensor] = lambda logits: logits
        if config.kind == "label_map":
            experiment = context.experiment
            trained_on = open_packed(
                experiment.data.sources[0].shards, experiment.cluster, allow_pipe=experiment.data.allow_pipe
            )
            own = load_classes(self._stream.table.folder)
            class_map = ClassMap.load(config.class_map, own, trained_on.classes)
            context.session.say(f"{config.shards}: {class_map.summary()}")
            self._select = class_map.to(context.device)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``num_samples``. Collective: yes."""
        meter = TopK(self._context.device)
        for batch in self._stream:
            batch = self._with_targets(batch).to(self._context.device)
            meter.update(self._select(self._context.logits(batch)), batch.labels, batch.valid)
        return meter.result()

    def _with_targets(self, batch: Batch) -> Batch:
        """The batch with the labels of the targets file; images that have none there do not count."""
        if self._targets is None:
            return batch
        labels = self._targets[batch.sample_ids.clamp(min=0)]
        batch.labels, batch.valid = labels, batch.valid & (labels >= 0).any(1)
        return batch


class MultiLabel:
    """Precision@1 and mean average precision: ``kind: multilabel``."""

    def __init__(self, config: EvaluationSetConfig, context: Context) -> None:
        self._context = context
        self._stream = context.stream(config, config.shards)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``precision_at_1``, ``mAP``, ``num_classes`` (with an image) and ``num_samples``. Collective: yes."""
        best = TopK(self._context.device, ks=(1,))
        ranking = MeanAveragePrecision(self._stream.table.num_classes)
        for batch in self._stream:
            batch = batch.to(self._context.device)
            logits = self._context.logits(batch)
            best.update(logits, batch.labels, batch.valid)
            ranking.update(logits, batch.labels, batch.valid)
        counted = best.result()
        return {"precision_at_1": counted["top1"], **ranking.result(), "num_samples": counted["num_samples"]}
