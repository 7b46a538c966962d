"""What is minimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pretrain.config.schema.base import PositiveFloat, Probability, Strict

# (names of objectives, settings that only they have)
OBJECTIVE_SETTINGS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("softmax", "distillation"), ("label_smoothing",)),
    (("sigmoid",), ("reduction", "binarise")),
    (("distillation",), ("teacher", "distillation", "alpha", "tau", "kl_reduction")),
    (("masked_patches",), ("corrupted",)),
    (("regression",), ("regression", "beta")),
)
NUM_COLOURS = 512  # classes of masked_patches: 3 bits for each of red, green and blue


class ObjectiveConfig(Strict):
    """What is minimised."""

    name: Literal["softmax", "sigmoid", "distillation", "masked_patches", "regression", "segmentation"] = Field(
        default="softmax",
        description="softmax: one label per image. sigmoid: any number of labels per image. distillation: DeiT's, with "
        "a teacher. masked_patches: the mean colours of corrupted patches, without labels (ViT, B.1.2). "
        "regression: a vector of numbers per image, standardised by the training set. segmentation: "
        "a class for every pixel (model.head: dense).",
    )
    label_smoothing: Probability = Field(
        default=0.0, description="Share of the target spread over all classes (softmax and distillation)."
    )
    reduction: Literal["sum_classes", "mean"] = Field(
        default="sum_classes",
        description="sigmoid only: sum over the classes and mean over the batch (Google), or over both (DeiT III).",
    )
    binarise: bool = Field(
        default=False,
        description="sigmoid only: after mixing, each class with any share of the target counts as 1 (DeiT III).",
    )
    teacher: str | None = Field(
        default=None, description="distillation only: weights of the teacher, as init.from: a run folder or a file."
    )
    distillation: Literal["hard", "soft"] = Field(
        default="hard", description="distillation only: the teacher's best class is a label, or its distribution is."
    )
    alpha: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="distillation only: weight of the teacher's term; the labels' term has the rest."
    )
    tau: PositiveFloat = Field(default=1.0, description="soft distillation only: temperature of both distributions.")
    kl_reduction: Literal["mean", "sum_classes"] = Field(
        default="mean",
        description="soft distillation only: the divergence's mean over batch and classes (DeiT's code), or its sum "
        "over the classes and mean over the batch (DeiT's paper): as many times more as there are classes.",
    )
    corrupted: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="masked_patches only: share of the patches that are corrupted and predicted."
    )
    regression: Literal["mse", "l1", "smooth_l1"] = Field(
        default="mse", description="regression only: the loss of a standardised error: squared, absolute, or Huber's."
    )
    beta: PositiveFloat = Field(
        default=1.0, description="smooth_l1 only: the error, in standard deviations, from which on it is linear."
    )

    @model_validator(mode="after")
    def _nothing_ignored(self) -> ObjectiveConfig:
        for owners, names in OBJECTIVE_SETTINGS:
            ignored = [name for name in names if name in self.model_fields_set and self.name not in owners]
            ignored = [name for name in ignored if name != "label_smoothing" or self.label_smoothing]
            if ignored:
                owner = " or ".join(owners)
                raise ValueError(f"{ignored[0]} belongs to name: {owner}; with {self.name} it would be ignored")
        for name in ("tau", "kl_reduction"):
            if name in self.model_fields_set and self.distillation == "hard":
                raise ValueError(f"{name} belongs to distillation: soft; with hard it would be ignored")
        if "beta" in self.model_fields_set and self.regression != "smooth_l1":
            raise ValueError(f"beta belongs to regression: smooth_l1; with {self.regression} it would be ignored")
        if self.name == "distillation" and self.teacher is None:
            raise ValueError("teacher: is missing; name the teacher's run folder, checkpoint or weights file")
        return self
