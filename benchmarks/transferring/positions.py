"""Weights with a new position embedding: what a transfer to a higher resolution costs that does not interpolate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config.schema.model import ModelConfig

NAME = "pos_embed"


@dataclass(frozen=True)
class NewPositions:
    """A run's weights for another resolution, with the position embedding that a new model has.

    Attributes:
        run: run folder of a ViT with ``pos_embed: learned_1d``.
        model: the section ``model`` of what they are for.
        seed: of the new values.
        out: file to write.
    """

    run: Path
    model: dict[str, Any]
    seed: int
    out: Path

    def write(self) -> None:
        """Writes the file."""
        from pretrain.engine.checkpoint_folder import weights_file
        from pretrain.models.families.registry import adapt_state_dict, build_model
        from pretrain.models.init import initial_value
        from pretrain.models.interop import load_weights, save_weights

        tensors, about = load_weights(weights_file(self.run, "raw"))
        config = ModelConfig.model_validate(self.model)
        built = build_model(config, about.num_classes)
        adapted, _ = adapt_state_dict(tensors, about, built, head="keep", filter="bilinear_corners", seed=self.seed)
        adapted[NAME] = initial_value(NAME, tuple(adapted[NAME].shape), config, self.seed)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save_weights(self.out, adapted, about.of_model(config))
