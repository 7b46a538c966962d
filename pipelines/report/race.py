"""The rules of a race: which runs may enter, and what ends the clock. docs/race.md states them for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pretrain.config.schema.evaluation import AccuracyConfig
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.submission import Target
from pretrain.models.variants import resolve

# The images that may be seen and how many of them count, as ILSVRC 2012 has them.
MOST_IMAGES, VALIDATION_IMAGES, CLASSES = 1_281_167, 50_000, 1_000
MOST_PATCHES = (224 // 16) ** 2


@dataclass(frozen=True)
class Race:
    """One race.

    Attributes:
        value: top-1, as a share.
        breaches: the rules that a run's settings break with the given evaluation set, in words.
    """

    value: float
    breaches: Callable[[Experiment, str], Iterator[str]]

    def target(self, metric: str) -> Target:
        """The target, in the words of a submission."""
        return Target(metric=metric, value=self.value)


def _s16(experiment: Experiment, evaluation: str) -> Iterator[str]:
    """ViT-S/16 from scratch on ImageNet-1k at 224 pixels."""
    model, data = experiment.model, experiment.data
    if not _has_shape_of(model, "S/16"):
        yield "model must have the widths, depth, heads and patches of S/16"
    if model.size != (224, 224):
        yield f"model.img_size must be 224, not {model.img_size}"
    if experiment.init.from_ is not None or getattr(experiment.objective, "teacher", None) is not None:
        yield "init.from and objective.teacher must not be set: nothing may be learned from other weights"
    if data.mixture or data.num_classes != CLASSES or data.num_samples > MOST_IMAGES:
        yield f"data must be ImageNet-1k's training images: at most {MOST_IMAGES:,}, in {CLASSES:,} classes"
    found = experiment.evaluation.sets.get(evaluation)
    tokens = data.eval_transform.max_tokens
    if found is not None and found.transform is not None:
        tokens = found.transform.max_tokens
    if tokens is not None and tokens > MOST_PATCHES:
        yield f"evaluation images may have at most {MOST_PATCHES} patches, not {tokens}"
    is_accuracy = isinstance(found, AccuracyConfig) and found.targets is None
    if not is_accuracy or found.num_samples != VALIDATION_IMAGES:
        yield f"evaluation.sets.{evaluation} must be all {VALIDATION_IMAGES:,} validation images with their own labels"


def _has_shape_of(model: ModelConfig, variant: str) -> bool:
    if not model.variant:  # of another family
        return False
    asked = resolve(ModelConfig(variant=variant))
    found = resolve(model)
    keys = ("patch", "embed_dim", "depth", "mlp_dim", "num_heads", "stem_blocks")
    return all(getattr(found, key) == getattr(asked, key) for key in keys)


# Source: AlgoPerf's target of its ViT workload, a validation error of at most 0.22691 (2306.07179;
# mlcommons/algorithmic-efficiency, algoperf/workloads/imagenet_vit/workload.py).
S16_77 = "s16_77"
RACES: Mapping[str, Race] = {S16_77: Race(1 - 0.22691, _s16)}
