"""The objectives: one model each, with its requirements on the data, the model and the head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import ONE_OF, PositiveFloat, PositiveInt, Probability, Strict, names_of
from pretrain.config.schema.data import IN_WORDS, Target

ClassWeights = Literal["balanced"] | tuple[PositiveFloat, ...]
NUM_COLOURS = 512  # classes of masked_patches: 3 bits for each of red, green and blue
Activation = Literal["softmax", "sigmoid", "none"]

TeacherView = Literal["logits", "features", "tokens", "features_and_tokens"]


@dataclass(frozen=True)
class Needs:
    """Requirements and properties of an objective. Other code reads these and never compares objective names.

    Attributes:
        target: the target it learns from; None: images only, so that any set works.
        head: the ``model.head`` it needs.
        mixes: images and their labels may be mixed.
        one_label: an image has exactly one label.
        min_classes: with fewer classes the loss is constant.
        part: the key of ``model`` for a part that no other objective uses; None: none.
        num_outputs: width of the head, 0: there is none; None: the number of classes of the set.
        outputs: the head's outputs, in words.
        has_accuracy: its outputs can be compared with the targets of evaluation sets. Otherwise only features can be
            evaluated, and the set's class names do not belong to the weights.
        activation: logits → scores of the classes; none: the outputs are the numbers themselves.
        teacher: what it asks of a frozen teacher: logits, the input of its head, its patch tokens, or both of these.
        nonzero_head: with a head of zeros the loss has no gradient, or none that is finite.
        keeps_head: the head is part of the result; otherwise weights files leave it out where the family can.
    """

    target: Target | None = "labels"
    head: Literal["pooled", "dense", "patches", "pooled_and_patches"] = "pooled"
    mixes: bool = True
    one_label: bool = False
    min_classes: int = 1
    part: Literal["mask_token", "decoder"] | None = None
    num_outputs: int | None = None
    outputs: Literal["classes", "colours", "numbers", "features", "pixels"] = "classes"
    has_accuracy: bool = True
    activation: Activation = "softmax"
    teacher: TeacherView | None = None
    nonzero_head: bool = False
    keeps_head: bool = True

    @property
    def takes_any_size(self) -> bool:
        """Whether the sizes of images may differ between steps: nothing in the loss belongs to one grid of patches."""
        return self.head == "pooled" and self.part is None and self.teacher is None


class ObjectiveConfig(Strict):
    """The training objective."""

    needs: ClassVar[Needs]

    name: str

    @property
    def teacher_weights(self) -> str | None:
        """Location of the teacher's weights; None: no teacher."""
        return None

    @property
    def num_outputs(self) -> int | None:
        """Width of the head, 0: there is none; None: the number of classes of the set."""
        return self.needs.num_outputs

    @property
    def num_views(self) -> int:
        """Images that are made of each sample, each augmented on its own."""
        return 1

    @property
    def class_weighting(self) -> tuple[str, ClassWeights | None]:
        """The key of the weights of the classes, and its value; None: all classes weigh the same."""
        return "", None

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
                f"label_smoothing belongs to name: softmax, sigmoid or distillation; with {self.name} it would be "
                "ignored"
            )
        return self


class SoftmaxConfig(ObjectiveConfig):
    """Cross-entropy with one label per image."""

    needs = Needs(one_label=True, min_classes=2)

    name: Literal["softmax"] = Field(default="softmax", description="One label per image.")
    label_smoothing: Probability = Field(default=0.0, description="Fraction of the target spread over all classes.")
    class_weights: ClassWeights | None = Field(
        default=None,
        description="Weight of each class in the loss: a list, in the order of the classes, or balanced: N / (K n) for "
        "a class of n of the N images of the set (scikit-learn's). The loss is the mean over the images, not divided "
        "by their weights. null: all 1.",
    )

    @property
    def class_weighting(self) -> tuple[str, ClassWeights | None]:
        """See ``ObjectiveConfig``."""
        return "class_weights", self.class_weights


class SigmoidConfig(ObjectiveConfig):
    """Binary cross-entropy with any number of labels per image."""

    needs = Needs(activation="sigmoid")

    name: Literal["sigmoid"] = Field(default="sigmoid", description="Any number of labels per image.")
    label_smoothing: Probability = Field(
        default=0.0, description="ε moves each target from 1 to 1 − ε/2 and from 0 to ε/2 (Keras)."
    )
    pos_weight: ClassWeights | None = Field(
        default=None,
        description="Factor on the loss of each class where it is present (torch's): a list, in the order of the "
        "classes, or balanced: (N − n) / n for a class of n of the N images of the set. null: all 1.",
    )
    reduction: Literal["sum_classes", "mean"] = Field(
        default="sum_classes",
        description="Sum over classes and mean over the batch (Google), or mean over both (DeiT III).",
    )
    binarise: bool = Field(
        default=False,
        description="After mixing, every class with a nonzero target counts as 1 (DeiT III).",
    )

    @property
    def class_weighting(self) -> tuple[str, ClassWeights | None]:
        """See ``ObjectiveConfig``."""
        return "pos_weight", self.pos_weight

    def of_mixed_targets(self) -> tuple[str, ...]:
        """See ``ObjectiveConfig``."""
        return ("binarise",) if self.binarise else ()


class DistillationConfig(ObjectiveConfig):
    """DeiT's distillation from a teacher."""

    needs = Needs(one_label=True, min_classes=2, teacher="logits")

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


class FeatureDistillationConfig(WithoutSmoothing):
    """Imitation of a frozen teacher's features, without labels."""

    needs = Needs(
        target=None, mixes=False, outputs="features", has_accuracy=False,
        teacher="features", nonzero_head=True, keeps_head=False,
    )  # fmt: skip

    name: Literal["feature_distillation"] = Field(
        default="feature_distillation",
        description="Predict the input of a frozen teacher's head, without labels; the student's head is the "
        "projection to the teacher's width.",
    )
    teacher: str | None = Field(
        default=None, description="Teacher weights, as in init.from: a run folder or a file. Must be set."
    )
    width: PositiveInt = Field(description="Width of the teacher's features, and so of the student's head.")
    imitation: Literal["cosine", "smooth_l1"] = Field(
        default="cosine",
        description="Loss: 1 - the cosine of the angle between prediction and feature, or the mean Huber loss of the "
        "channels.",
    )
    beta: PositiveFloat = Field(
        default=1.0, description="Difference above which the loss is linear; imitation: smooth_l1 only."
    )
    teacher_view: Literal["same", "second"] = Field(
        default="same",
        description="The teacher's images: the student's image, or a second image of the sample, augmented on its "
        "own; name: feature_distillation only, since patch tokens of two crops show different places.",
    )

    @property
    def num_views(self) -> int:
        """See ``ObjectiveConfig``."""
        return 2 if self.teacher_view == "second" else 1

    @property
    def teacher_weights(self) -> str | None:
        """See ``ObjectiveConfig``."""
        return self.teacher

    @property
    def num_outputs(self) -> int | None:
        """See ``ObjectiveConfig``."""
        return self.width

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        if self.imitation == "smooth_l1":
            return {}
        return {"beta": f"belongs to imitation: smooth_l1; with {self.imitation} it would be ignored"}

    @model_validator(mode="after")
    def _tokens_show_the_same_places(self) -> FeatureDistillationConfig:
        if self.teacher_view == "second" and self.needs.teacher != "features":
            raise ValueError(
                f"teacher_view: second belongs to name: feature_distillation; {self.name} compares patch tokens, which "
                "show different places in two crops: set same"
            )
        return self

    @model_validator(mode="after")
    def _has_a_teacher(self) -> FeatureDistillationConfig:
        if self.teacher is None:
            raise ValueError("teacher: is missing; name the teacher's run folder, checkpoint or weights file")
        return self


class TokenDistillationConfig(FeatureDistillationConfig):
    """Imitation of a frozen teacher's patch tokens, without labels."""

    needs = replace(FeatureDistillationConfig.needs, head="patches", teacher="tokens")

    name: Literal["token_distillation"] = Field(  # type: ignore[assignment]
        default="token_distillation",
        description="Predict each patch token of a frozen teacher, without labels; the student's head is the "
        "projection to the teacher's width.",
    )


class FeatureAndTokenDistillationConfig(FeatureDistillationConfig):
    """Imitation of a frozen teacher's features and patch tokens together, without labels."""

    needs = replace(FeatureDistillationConfig.needs, head="pooled_and_patches", teacher="features_and_tokens")

    name: Literal["feature_and_token_distillation"] = Field(  # type: ignore[assignment]
        default="feature_and_token_distillation",
        description="Predict the features and each patch token of a frozen teacher, without labels; the student has a "
        "projection for each.",
    )
    token_weight: PositiveFloat = Field(
        default=1.0, description="Weight of the loss of the tokens; that of the features has 1."
    )


class MaskedPatchesConfig(WithoutSmoothing):
    """Prediction of the mean colours of corrupted patches, without labels."""

    needs = Needs(
        target=None, mixes=False, part="mask_token", num_outputs=NUM_COLOURS, outputs="colours", has_accuracy=False
    )

    name: Literal["masked_patches"] = Field(
        default="masked_patches",
        description="Predict the mean colours of corrupted patches, without labels (ViT, B.1.2).",
    )
    corrupted: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="Fraction of the patches that are corrupted and predicted."
    )


class MaskedAutoencodingConfig(WithoutSmoothing):
    """Reconstruction of the patches that the encoder does not see, without labels."""

    needs = Needs(
        target=None, mixes=False, part="decoder", num_outputs=0, min_classes=0, outputs="pixels", has_accuracy=False
    )

    name: Literal["mae"] = Field(
        default="mae",
        description="Reconstruct the pixels of the patches that model.patch_drop hides from the encoder, without "
        "labels, by model.decoder (masked autoencoder).",
    )
    normalised_pixels: bool = Field(
        default=True, description="The pixels of each patch minus their mean, divided by their standard deviation."
    )


class RegressionConfig(WithoutSmoothing):
    """Regression of a vector of numbers per image."""

    needs = Needs(target="vector", mixes=False, outputs="numbers", activation="none")

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
    SoftmaxConfig
    | SigmoidConfig
    | DistillationConfig
    | FeatureDistillationConfig
    | TokenDistillationConfig
    | FeatureAndTokenDistillationConfig
    | MaskedPatchesConfig
    | MaskedAutoencodingConfig
    | RegressionConfig
    | SegmentationConfig,
    ONE_OF,
]


def makers_of(target: Target) -> str:
    """The objectives for a kind of target, in words; the kinds of evaluation have the same names."""
    names = names_of(Objective, lambda model: model.needs.target == target)
    return names[0] if len(names) == 1 else f"one of those for {IN_WORDS[target]}"
