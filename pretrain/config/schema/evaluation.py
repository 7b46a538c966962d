"""When a model is evaluated, and on which sets: one model for each kind of evaluation."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.config.duration import Duration
from pretrain.config.schema.base import ONE_OF, PositiveFloat, PositiveInt, Strict, members_of
from pretrain.config.schema.data import COUNTED, PLACES, Target
from pretrain.config.schema.transforms import EvalTransformConfig

LOWER_IS_BETTER = frozenset({"loss", "mae", "rmse"})  # among the metrics that select a best model
# Keywords accepted instead of a file.
IMAGENET_REAL = "imagenet_real"  # for targets: the list shipped with timm
NUMBERS = "numbers"  # for class_map: the class ids are output indices

# Source: google-research/big_vision, evaluators/common_fewshot.py: resize(256) of both sides, central_crop(224); and
# its `resize`, which is bilinear without antialias.
FEW_SHOT_TRANSFORM = EvalTransformConfig(resize="squash_crop", crop_fraction=0.875, resize_filter="bilinear")


class EvaluationSetConfig(Strict):
    """A labelled set and its metrics. Every image counts exactly once on any number of ranks.

    Attributes:
        target: the target that the set's samples must have.
        own_metrics: the metrics of every set of this kind; see ``metrics``.
        uses_features: it evaluates the head's input, not its logits.
        has_own_classes: the set's classes may differ from those of the training set.
    """

    chosen_by = "kind"
    target: ClassVar[Target] = "labels"
    own_metrics: ClassVar[tuple[str, ...]] = ()
    uses_features: ClassVar[bool] = False
    has_own_classes: ClassVar[bool] = False

    kind: str
    shards: str = Field(
        description=f"Location of the set's tars and index: {PLACES}. beside:NAME is the split NAME in the folder that "
        "data.shards is in."
    )
    num_samples: PositiveInt = Field(description=f"Expected number of samples. {COUNTED}")
    transform: EvalTransformConfig | None = Field(
        default=None,
        description="Image transform; null: data.eval_transform, or for few_shot squashing to size / 0.875 "
        "without antialiasing and a central crop (256 to 224).",
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics by which models can be compared on the set."""
        return self.own_metrics

    @property
    def chief_metric(self) -> str:
        """The main metric of the set."""
        return self.metrics[0]

    @property
    def num_draws(self) -> int:
        """Number of random draws whose mean is reported."""
        return 1

    @property
    def train_set(self) -> tuple[str, int] | None:
        """Location and number of samples of the labelled set that it learns from; None: it does not learn."""
        return None

    @property
    def files(self) -> dict[str, str]:
        """Key → the file that it names."""
        return {}

    def transform_or(self, default: EvalTransformConfig) -> EvalTransformConfig:
        """The image transform; ``default`` is the one of the model's other evaluations."""
        return self.transform or default

    def labelled(self, name: str) -> str:
        """The name of the set with what is evaluated on it, for display."""
        return f"{name} ({self.kind})"


class TargetsConfig(EvaluationSetConfig):
    """A set whose labels can be replaced."""

    own_metrics = ("top1", "top5")

    targets: str | None = Field(
        default=None,
        description="JSON file with labels that replace the set's own, such as ReaL's: a list of lists in the order of "
        "the file names, or file name to list; imagenet_real: ReaL's labels, as shipped with timm. An image without "
        "labels does not count.",
    )

    @property
    def files(self) -> dict[str, str]:
        """See ``EvaluationSetConfig``."""
        return {"targets": self.targets} if self.targets not in (None, IMAGENET_REAL) else {}


class AccuracyConfig(TargetsConfig):
    """Accuracy of the logits."""

    kind: Literal["accuracy"] = Field(default="accuracy", description="top-1 and top-5.")

    def labelled(self, name: str) -> str:
        """See ``EvaluationSetConfig``; it is what one expects."""
        return name


class MultiLabelConfig(EvaluationSetConfig):
    """Metrics of images with several labels."""

    own_metrics = ("mAP", "precision_at_1")

    kind: Literal["multilabel"] = Field(default="multilabel", description="Precision@1 and mean average precision.")


class LabelMapConfig(TargetsConfig):
    """Accuracy on a set with other classes than the head."""

    has_own_classes = True

    kind: Literal["label_map"] = Field(
        default="label_map",
        description="Accuracy where the set has other classes than the head (ImageNet-1k with a head of ImageNet-21k).",
    )
    class_map: str | None = Field(
        default=None,
        description="CSV with the columns class (of this set) and output (of the head), each an id or an index; null: "
        "match classes and outputs by id; numbers: the class ids are output indices, like the folder names of "
        "ImageNet-V2.",
    )

    @property
    def files(self) -> dict[str, str]:
        """See ``EvaluationSetConfig``."""
        named = {"class_map": self.class_map} if self.class_map not in (None, NUMBERS) else {}
        return super().files | named


class FeaturesConfig(EvaluationSetConfig):
    """A classifier of frozen features, which is learned from a second labelled set."""

    uses_features = True
    has_own_classes = True

    train_shards: str = Field(description="Location of the labelled training set that the classifier learns from.")
    num_train_samples: PositiveInt = Field(description=f"Expected number of samples of train_shards. {COUNTED}")

    @property
    def train_set(self) -> tuple[str, int]:
        """See ``EvaluationSetConfig``."""
        return self.train_shards, self.num_train_samples


class FewShotConfig(FeaturesConfig):
    """Regularised least squares on a few images per class."""

    kind: Literal["few_shot"] = Field(
        default="few_shot", description="Regularised least squares on frozen features of a few images per class."
    )
    shots: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        default=(1, 5, 10, 25), description="Images per class, one result for each."
    )
    num_seeds: PositiveInt = Field(default=3, description="Number of random draws; the mean is reported.")
    l2: PositiveFloat | None = Field(default=None, description="Ridge added to the Gram matrix; null: 2^10.")

    @model_validator(mode="after")
    def _shots_differ(self) -> FewShotConfig:
        if len(set(self.shots)) != len(self.shots):
            raise ValueError("shots: contains a duplicate; remove it")
        return self

    @property
    def ridge(self) -> float:
        """``l2``, or its default."""
        return self.l2 or 2.0**10

    @property
    def metrics(self) -> tuple[str, ...]:
        """See ``EvaluationSetConfig``."""
        return tuple(f"{shots}_shot" for shots in self.shots)

    @property
    def chief_metric(self) -> str:
        """See ``EvaluationSetConfig``."""
        return f"{max(self.shots)}_shot"

    @property
    def num_draws(self) -> int:
        """See ``EvaluationSetConfig``."""
        return self.num_seeds

    def transform_or(self, default: EvalTransformConfig) -> EvalTransformConfig:
        """See ``EvaluationSetConfig``; big_vision's own transform instead of the model's."""
        return self.transform or FEW_SHOT_TRANSFORM


class KnnConfig(FeaturesConfig):
    """A vote of the nearest neighbours."""

    own_metrics = ("knn_top1", "knn_top5")

    kind: Literal["knn"] = Field(default="knn", description="Vote of the nearest neighbours among frozen features.")
    k: PositiveInt = Field(default=20, description="Neighbours that vote.")
    temperature: PositiveFloat = Field(default=0.07, description="A vote weighs exp(cosine / temperature).")

    @model_validator(mode="after")
    def _neighbours_exist(self) -> KnnConfig:
        if self.k > self.num_train_samples:
            raise ValueError(f"k: {self.k} neighbours, but num_train_samples is {self.num_train_samples}")
        return self


class LogisticConfig(FeaturesConfig):
    """Logistic regression."""

    own_metrics = ("logistic_top1", "logistic_top5")

    kind: Literal["logistic"] = Field(default="logistic", description="Logistic regression on frozen features.")
    l2: PositiveFloat | None = Field(
        default=None,
        description="Half of it times the squared norm of the weights is added to the sum of the losses; null: 1.",
    )
    max_iterations: PositiveInt = Field(default=1000, description="Maximum number of solver iterations.")

    @property
    def penalty(self) -> float:
        """``l2``, or its default."""
        return self.l2 or 1.0


class VectorErrorsConfig(EvaluationSetConfig):
    """Errors of a regression."""

    target = "vector"
    own_metrics = ("mae", "rmse", "r2")

    kind: Literal["regression"] = Field(
        default="regression",
        description="Mean absolute error, root of the mean squared error and R², for objective.name: regression.",
    )


class MaskOverlapConfig(EvaluationSetConfig):
    """Overlap of predicted and true masks."""

    target = "mask"
    own_metrics = ("mIoU", "pixel_accuracy")

    kind: Literal["segmentation"] = Field(
        default="segmentation",
        description="Mean intersection over union and pixel accuracy, for objective.name: segmentation.",
    )


EvaluationSet = Annotated[
    AccuracyConfig
    | MultiLabelConfig
    | LabelMapConfig
    | FewShotConfig
    | KnnConfig
    | LogisticConfig
    | VectorErrorsConfig
    | MaskOverlapConfig,
    ONE_OF,
]


class EvaluationConfig(Strict):
    """When a model is evaluated, and on which sets. The end of the run always evaluates."""

    every: Duration | None = Field(default=None, description="Interval during training; null: at the end only.")
    sets: dict[str, EvaluationSet] = Field(default_factory=dict, description="Name → evaluation set.")
    micro_batch_size: PositiveInt = Field(default=64, description="Images per device in one forward pass.")


KINDS = members_of(EvaluationSet, EvaluationSetConfig)
FEATURE_KINDS = members_of(EvaluationSet, FeaturesConfig)
