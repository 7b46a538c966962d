"""When a model is evaluated, and on which sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict
from pretrain.config.schema.data import EvalTransformConfig
from pretrain.config.schema.source import PLACES
from pretrain.config.target import Target

Kind = Literal["accuracy", "multilabel", "label_map", "few_shot", "knn", "logistic", "regression", "segmentation"]
FEATURE_KINDS = ("few_shot", "knn", "logistic")  # use the head's input, not its logits
# (settings, kinds that have them)
SETTINGS_OF_KINDS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("targets",), ("accuracy", "label_map")),
    (("class_map",), ("label_map",)),
    (("train_shards", "num_train_samples"), FEATURE_KINDS),
    (("shots", "num_seeds"), ("few_shot",)),
    (("l2",), ("few_shot", "logistic")),
    (("k", "temperature"), ("knn",)),
    (("max_iterations",), ("logistic",)),
)
# Keywords accepted instead of a file.
IMAGENET_REAL = "imagenet_real"  # for targets: the list shipped with timm
NUMBERS = "numbers"  # for class_map: the class ids are output indices
CHIEF_METRICS: dict[Kind, str] = {
    "accuracy": "top1",
    "label_map": "top1",
    "multilabel": "mAP",
    "knn": "knn_top1",
    "logistic": "logistic_top1",
    "regression": "mae",
    "segmentation": "mIoU",
}
METRICS: dict[Kind, tuple[str, ...]] = {
    "accuracy": ("top1", "top5"),
    "label_map": ("top1", "top5"),
    "multilabel": ("mAP", "precision_at_1"),
    "knn": ("knn_top1", "knn_top5"),
    "logistic": ("logistic_top1", "logistic_top5"),
    "regression": ("mae", "rmse", "r2"),
    "segmentation": ("mIoU", "pixel_accuracy"),
}
TARGETS: dict[str, Target] = {"regression": "vector", "segmentation": "mask"}  # other kinds: labels
FEW_SHOT_L2 = 2.0**10
LOGISTIC_L2 = 1.0


def target_of_kind(kind: str) -> Target:
    """The target that a kind of evaluation needs the samples to have."""
    return TARGETS.get(kind, "labels")


class EvaluationSetConfig(Strict):
    """A labelled set and its metrics. Every image counts exactly once on any number of ranks."""

    kind: Kind = Field(
        default="accuracy",
        description="accuracy: top-1 and top-5. multilabel: precision@1 and mean average precision. label_map: "
        "accuracy where the set has other classes than the head (ImageNet-1k with a head of ImageNet-21k). regression: "
        "mean absolute error, root of the mean squared error and R², for objective.name: regression. "
        "segmentation: mean intersection over union and pixel accuracy, for objective.name: segmentation. On frozen "
        "features, with an additional labelled train set: few_shot (regularised least squares), knn, logistic "
        "(regression).",
    )
    shards: str = Field(description=f"Location of the set's tars and index: {PLACES}.")
    num_samples: PositiveInt = Field(description="Expected number of samples.")
    transform: EvalTransformConfig | None = Field(
        default=None,
        description="Image transform; null: data.eval_transform, or for few_shot squashing to size / 0.875 "
        "without antialiasing and a central crop (256 to 224).",
    )
    targets: str | None = Field(
        default=None,
        description="accuracy, label_map: JSON file with labels that replace the set's own, such as ReaL's: a list of "
        "lists in the order of the file names, or file name to list; imagenet_real: ReaL's labels, as shipped with "
        "timm. An image without labels does not count.",
    )
    class_map: str | None = Field(
        default=None,
        description="label_map only: CSV with the columns class (of this set) and output (of the head), each an id or "
        "an index; null: match classes and outputs by id; numbers: the class ids are output indices, like the folder "
        "names of ImageNet-V2.",
    )
    train_shards: str | None = Field(
        default=None, description="few_shot, knn, logistic: folder of the labelled training set."
    )
    num_train_samples: PositiveInt | None = Field(
        default=None, description="few_shot, knn, logistic: samples that train_shards is expected to have."
    )
    shots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(1, 5, 10, 25), description="few_shot only: images per class, one result for each."
    )
    num_seeds: PositiveInt = Field(
        default=3, description="few_shot only: number of random draws; the mean is reported."
    )
    l2: PositiveFloat | None = Field(
        default=None,
        description="few_shot: ridge added to the Gram matrix, null: 2^10. logistic: half of it times the squared norm "
        "of the weights is added to the sum of the losses, null: 1.",
    )
    k: PositiveInt = Field(default=20, description="knn only: neighbours that vote.")
    temperature: PositiveFloat = Field(default=0.07, description="knn only: a vote weighs exp(cosine / temperature).")
    max_iterations: PositiveInt = Field(default=1000, description="logistic only: maximum number of solver iterations.")

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        return {
            name: f"belongs to kind: {' or '.join(owners)}; with {self.kind} it would be ignored"
            for names, owners in SETTINGS_OF_KINDS
            if self.kind not in owners
            for name in names
        }

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> EvaluationSetConfig:
        if self.kind in FEATURE_KINDS:
            for name in ("train_shards", "num_train_samples"):
                if getattr(self, name) is None:
                    raise ValueError(f"{name}: is missing; kind: {self.kind} learns from labelled images")
        if self.kind == "knn" and self.num_train_samples is not None and self.k > self.num_train_samples:
            raise ValueError(f"k: {self.k} neighbours, but num_train_samples is {self.num_train_samples}")
        if len(set(self.shots)) != len(self.shots):
            raise ValueError("shots: contains a duplicate; remove it")
        return self

    @property
    def chief_metric(self) -> str:
        """The main metric of the set."""
        return f"{max(self.shots)}_shot" if self.kind == "few_shot" else CHIEF_METRICS[self.kind]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics by which models can be compared on the set."""
        return tuple(f"{shots}_shot" for shots in self.shots) if self.kind == "few_shot" else METRICS[self.kind]

    @property
    def target(self) -> Target:
        """The target that the set's samples must have."""
        return target_of_kind(self.kind)

    @property
    def uses_features(self) -> bool:
        """Whether it evaluates features and has its own classes."""
        return self.kind in FEATURE_KINDS

    @property
    def has_own_classes(self) -> bool:
        """Whether the set's classes may differ from those of the training set."""
        return self.uses_features or self.kind == "label_map"


class EvaluationConfig(Strict):
    """When a model is evaluated, and on which sets. The end of the run always evaluates."""

    every: Duration | None = Field(default=None, description="Interval during training; null: at the end only.")
    sets: dict[str, EvaluationSetConfig] = Field(default_factory=dict, description="Name → evaluation set.")
    micro_batch_size: PositiveInt = Field(default=64, description="Images per device in one forward pass.")
