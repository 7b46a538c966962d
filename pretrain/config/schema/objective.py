"""The objectives: one model each, with its requirements on the data, the model and the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import ONE_OF, PositiveFloat, Probability, Strict, names_of
from pretrain.config.target import IN_WORDS, Target

NUM_COLOURS = 512  # classes of masked_patches: 3 bits for each of red, green and blue


@dataclass(frozen=True)
class Needs:
    """Requirements and properties of an objective. Other code reads these and never compares objective names.

    Attributes:
        target: the target it learns from; None: images only, so that any set works.
        head: the ``model.head`` it needs.
        mixes: images and their labels may be mixed.
        one_label: an image has exactly one label.
        min_classes: with fewer classes the loss is constant.
        mask_token: the model replaces patches by a learned embedding.
        num_outputs: width of the head; None: the number of classes of the set.
        outputs: the head's outputs, in words.
        has_accuracy: its outputs can be compared with the targets of evaluation sets. Otherwise only features can be
            evaluated, and the set's class names do not belong to the weights.
        activation: logits → scores of the classes.
    """

    target: Target | None = "labels"
    head: Literal["pooled", "dense"] = "pooled"
    mixes: bool = True
    one_label: bool = False
    min_classes: int = 1
    mask_token: bool = False
    num_outputs: int | None = None
    outputs: Literal["classes", "colours", "numbers"] = "classes"
    has_accuracy: bool = True
    activation: Literal["softmax", "sigmoid"] = "softmax"


class ObjectiveConfig(Strict):
    """The training objective."""

    needs: ClassVar[Needs]

    name: str

    @property
    def teacher_weights(self) -> str | None:
        """Location of the teacher's weights; None: no teacher."""
        return None

    def of_mixed_targets(self) -> tuple[str, ...]:
        """The active settings that affect mixed targets only."""
        return ()


class WithoutSmoothing(ObjectiveConfig):
    """An objective that accepts ``label_smoothing: 0``, which resolved configs list for every objective."""

    label_smoothing: float = Field(default=0.0, description="0 only.", json_schema_extra={"const": 0})

    @model_validator(mode="after")
    def _has_no_smoothing(self) -> WithoutSmoothing:
        if self.label_smoothing:
            raise ValueError(
                f"label_smoothing belongs to name: softmax or distillation; with {self.name} it would be ignored"
            )
        return self


class SoftmaxConfig(ObjectiveConfig):
    """Cross-entropy with one label per image."""

    needs = Needs(one_label=True, min_classes=2)

    name: Literal["softmax"] = Field(default="softmax", description="One label per image.")
    label_smoothing: Probability = Field(default=0.0, description="Fraction of the target spread over all classes.")


class SigmoidConfig(WithoutSmoothing):
    """Binary cross-entropy with any number of labels per image."""

    needs = Needs(activation="sigmoid")

    name: Literal["sigmoid"] = Field(default="sigmoid", description="Any number of labels per image.")
    reduction: Literal["sum_classes", "mean"] = Field(
        default="sum_classes",
        description="Sum over classes and mean over the batch (Google), or mean over both (DeiT III).",
    )
    binarise: bool = Field(
        default=False,
        description="After mixing, every class with a nonzero target counts as 1 (DeiT III).",
    )

    def of_mixed_targets(self) -> tuple[str, ...]:
        """See ``ObjectiveConfig``."""
        return ("binarise",) if self.binarise else ()


class DistillationConfig(ObjectiveConfig):
    """DeiT's distillation from a teacher."""

    needs = Needs(one_label=True, min_classes=2)

    name: Literal["distillation"] = Field(default="distillation", description="DeiT's distillation from a teacher.")
    label_smoothing: Probability = Field(default=0.0, description="Fraction of the target spread over all classes.")
    teacher: str | None = Field(
        default=None, description="Teacher weights, as in init.from: a run folder or a file. Must be set."
    )
    distillation: Literal["hard", "soft"] = Field(
        default="hard", description="hard: the teacher's best class is the label; soft: its distribution is."
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Weight of the teacher's loss; the label loss has the rest."
    )
    tau: PositiveFloat = Field(default=1.0, description="Temperature of both distributions; distillation: soft only.")
    kl_reduction: Literal["mean", "sum_classes"] = Field(
        default="mean",
        description="Average the divergence over batch and classes (DeiT's code), or sum it over classes and average "
        "over the batch (DeiT's paper; larger by the number of classes); distillation: soft only.",
    )

    @property
    def teacher_weights(self) -> str | None:
        """See ``ObjectiveConfig``."""
        return self.teacher

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        if self.distillation == "soft":
            return {}
        return dict.fromkeys(("tau", "kl_reduction"), "belongs to distillation: soft; with hard it would be ignored")

    @model_validator(mode="after")
    def _has_a_teacher(self) -> DistillationConfig:
        if self.teacher is None:
            raise ValueError("teacher: is missing; name the teacher's run folder, checkpoint or weights file")
        return self


class MaskedPatchesConfig(WithoutSmoothing):
    """Prediction of the mean colours of corrupted patches, without labels."""

    needs = Needs(
        target=None, mixes=False, mask_token=True, num_outputs=NUM_COLOURS, outputs="colours", has_accuracy=False
    )

    name: Literal["masked_patches"] = Field(
        default="masked_patches",
        description="Predict the mean colours of corrupted patches, without labels (ViT, B.1.2).",
    )
    corrupted: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Fraction of the patches that are corrupted and predicted."
    )


class RegressionConfig(WithoutSmoothing):
    """Regression of a vector of numbers per image."""

    needs = Needs(target="vector", mixes=False, outputs="numbers")

    name: Literal["regression"] = Field(
        default="regression", description="A vector of numbers per image, standardised by the training set."
    )
    regression: Literal["mse", "l1", "smooth_l1"] = Field(
        default="mse", description="Loss on the standardised error: squared, absolute or Huber."
    )
    beta: PositiveFloat = Field(
        default=1.0,
        description="Error, in standard deviations, above which the loss is linear; regression: smooth_l1 only.",
    )

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        if self.regression == "smooth_l1":
            return {}
        return {"beta": f"belongs to regression: smooth_l1; with {self.regression} it would be ignored"}


class SegmentationConfig(WithoutSmoothing):
    """Semantic segmentation: a class for every pixel."""

    needs = Needs(target="mask", head="dense", mixes=False, min_classes=2)

    name: Literal["segmentation"] = Field(
        default="segmentation", description="A class for every pixel (model.head: dense)."
    )


Objective = Annotated[
    SoftmaxConfig | SigmoidConfig | DistillationConfig | MaskedPatchesConfig | RegressionConfig | SegmentationConfig,
    ONE_OF,
]


def makers_of(target: Target) -> str:
    """The objectives for a kind of target, in words; the kinds of evaluation have the same names."""
    names = names_of(Objective, lambda model: model.needs.target == target)
    return names[0] if len(names) == 1 else f"one of those for {IN_WORDS[target]}"
