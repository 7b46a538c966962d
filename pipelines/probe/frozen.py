"""Weights of any format as a frozen model that is asked for features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.weights.network import Network, load_network
from pretrain.data.batch import Batch
from pretrain.models.init import digest


class Frozen(Network):
    """A network that is asked for features (``evaluation.features.FrozenModel``)."""

    def logits(self, batch: Batch) -> Tensor:
        """See ``FrozenModel.logits``."""
        return self.outputs(batch.images)

    def digests(self) -> dict[str, str]:
        """Name → short hash of every tensor, at the resolution that is used."""
        return digest(self.model)


def load_frozen(source: Path, **options: Any) -> Frozen:
    """Reads weights, with or without a head; arguments and errors as ``load_network``."""
    return Frozen(**vars(load_network(source, None, **options)))
