"""The training data: which samples a run draws, from one set or a mixture of several, and how they are augmented."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from pretrain.config.duration import Moment
from pretrain.config.schema.base import NonNegativeFloat, PositiveFloat, PositiveInt, Strict, UnitInterval
from pretrain.config.schema.transforms import (
    AnyTrainTransform,
    EvalTransformConfig,
    InceptionConfig,
    RandAugmentConfig,
    TrainTransformConfig,
)
from pretrain.config.subset import Subset, check_subset

Target = Literal["labels", "vector", "mask"]  # of a sample; the same for all samples of a set
IN_WORDS: dict[Target, str] = {
    "labels": "class labels",
    "vector": "vectors of numbers",
    "mask": "segmentation masks",
}
IGNORED_PIXEL = 255  # in a mask: the pixel has no class and does not count

COUNTED = "Counted where the set is in a local folder and the number is not stated."
PLACES = (
    "a folder, http(s)://…, s3://bucket/prefix (also gs://, az://), or pipe:COMMAND with {name} in it (see "
    "allow_pipe); the URL of the index.json works too"
)
DROP_LIST = (
    'A JSONL file of samples that are never drawn: {"shard": "shard-000000.tar", "key": "000000042"} on each line.'
)
SUBSET = "A fixed subset, such as '10 %' or '50_000 samples'; a smaller subset is contained in a larger one."


class SourceConfig(Strict):
    """One packed split or a subset of it."""

    shards: str = Field(description=f"Location of the split's WebDataset tars and index: {PLACES}.")
    num_samples: PositiveInt = Field(
        description="Expected number of samples, without those of drop_list; checked against the index."
    )
    drop_list: str | None = Field(
        default=None,
        description=DROP_LIST,
    )
    subset: Subset | None = Field(
        default=None,
        description=SUBSET,
    )

    @property
    def drawn_samples(self) -> int:
        """Number of samples in an epoch."""
        return self.num_samples if self.subset is None else self.subset.count(self.num_samples)

    @model_validator(mode="after")
    def _subset_fits(self) -> SourceConfig:
        check_subset(self.subset, self.num_samples)
        return self


class WeightedSourceConfig(SourceConfig):
    """One of the sets of a mixture."""

    weight: PositiveFloat = Field(description="Its share of the draws, relative to the other weights.")


class TrainSetConfig(Strict):
    """The training data: one set, or a mixture of several."""

    shards: str | None = Field(
        default=None, description=f"Location of the split's WebDataset tars and index: {PLACES}."
    )
    num_samples: PositiveInt = Field(
        description="Expected number of samples, without those of drop_list; checked against the index. For a mixture: "
        f"the sum. {COUNTED}"
    )
    num_classes: PositiveInt = Field(
        description=f"Expected number of classes, or length of the target vectors: the width of the head. {COUNTED}"
    )
    drop_list: str | None = Field(default=None, description=DROP_LIST)
    subset: Subset | None = Field(default=None, description=SUBSET)
    mixture: tuple[WeightedSourceConfig, ...] = Field(
        default=(),
        description="Instead of shards: several sets with the same classes, each with its own weight and epochs.",
    )
    allow_pipe: bool = Field(
        default=False, description="Whether shards may be pipe:COMMAND, which runs a shell command on every node."
    )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The data sets; a single one without a mixture."""
        if self.mixture:
            return self.mixture
        assert self.shards is not None
        return (
            SourceConfig(
                shards=self.shards, num_samples=self.num_samples, drop_list=self.drop_list, subset=self.subset
            ),
        )

    @property
    def smallest_source(self) -> int:
        """Samples in an epoch of the smallest set; each lane needs at least one sample of every set."""
        return min(source.drawn_samples for source in self.sources)

    @property
    def drawn_samples(self) -> int:
        """Number of samples in an epoch, summed over the sets of a mixture."""
        return sum(source.drawn_samples for source in self.sources)

    @model_validator(mode="after")
    def _one_or_several(self) -> TrainSetConfig:
        if (self.shards is None) == (not self.mixture):
            raise ValueError("give either shards (one set) or mixture (several)")
        for name in ("drop_list", "subset") if self.mixture else ():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} belongs to each set of the mixture; beside mixture it would be ignored")
        total = sum(source.num_samples for source in self.mixture)
        if self.mixture and total != self.num_samples:
            raise ValueError(f"num_samples: {self.num_samples} is not the sum of the mixture's sets, {total}")
        check_subset(self.subset, self.num_samples)
        return self


AugRegPreset = Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]


class AugReg(NamedTuple):
    """RandAugment's layers and magnitude, and mixup's p."""

    num_layers: int
    magnitude: float
    mixup: float


# Source: AugReg (2106.10270), from google-research/big_vision, configs/vit_i1k.py and vit_i21k.py.
AUGREG: dict[str, AugReg] = {
    "none": AugReg(0, 0, 0.0),
    "light1": AugReg(2, 0, 0.0),  # magnitude 0 still has an effect: it may invert or darken an image
    "light2": AugReg(2, 10, 0.2),
    "medium1": AugReg(2, 15, 0.2),
    "medium2": AugReg(2, 15, 0.5),
    "strong1": AugReg(2, 20, 0.5),
    "strong2": AugReg(2, 20, 0.8),
}


class MixingConfig(Strict):
    """Mixup and CutMix of the images 2i and 2i + 1 of a lane, and of their labels."""

    mixup: NonNegativeFloat = Field(
        default=0.0, description="λ ~ Beta(mixup, mixup) blends the two images (mixup, 1710.09412); 0: never."
    )
    cutmix: NonNegativeFloat = Field(
        default=0.0,
        description="λ ~ Beta(cutmix, cutmix): a box of 1 − λ of the area is exchanged (CutMix, 1905.04899). λ is "
        "corrected to the clipped box's area; 0: never.",
    )
    prob: UnitInterval = Field(default=1.0, description="Probability of mixing.")
    switch_prob: UnitInterval = Field(default=0.5, description="Probability of CutMix if both are on.")
    per: Literal["batch", "pair"] = Field(
        default="batch", description="Draw the choice, λ and box once per global batch or per pair of images."
    )
    keep_larger: bool = Field(
        default=False,
        description="Use max(λ, 1 − λ) in mixup, so that each image keeps the larger share (big_vision).",
    )

    @property
    def active(self) -> bool:
        """Whether mixing is on."""
        return self.prob > 0 and (self.mixup > 0 or self.cutmix > 0)

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        ignored = {}
        if not (self.mixup and self.cutmix):
            ignored["switch_prob"] = "chooses between mixup and cutmix; with one of them it would be ignored"
        if not (self.mixup or self.cutmix):
            ignored |= dict.fromkeys(("prob", "per"), "belongs to mixup and cutmix; with neither it would be ignored")
        return ignored

    @model_validator(mode="after")
    def _keeps_what_is_mixed(self) -> MixingConfig:
        if self.keep_larger and not self.mixup:
            raise ValueError("keep_larger belongs to mixup; without mixup it would be ignored")
        return self


class DataConfig(TrainSetConfig):
    """The training set and how it is streamed."""

    lanes: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="Number L of equal parts of an epoch; it decides the order of the samples. "
        "auto: the largest power of two ≤ 512 with an even global_batch_size / L, ≥ 8 where the batch allows.",
    )
    shuffle_window: PositiveInt = Field(
        default=8192, description="Shuffle window: consecutive positions of a lane that are shuffled together."
    )
    sampling: Literal["natural", "square_root", "balanced"] = Field(
        default="natural",
        description="How often each class is drawn in an epoch of num_samples draws, for one label per image: as often "
        "as it has images (natural), in proportion to the root of that, or all equally often.",
    )
    repeated_augmentation: PositiveInt = Field(
        default=1,
        description="Repeated augmentation: k copies of an image per global batch, augmented independently and in "
        "different lanes; an epoch still has num_samples draws, of num_samples / k images (DeiT: 3).",
    )
    resolution: tuple[tuple[Moment, PositiveInt | tuple[PositiveInt, ...]], ...] = Field(
        default=(),
        description="Sides of the training images in pixels, as a list of [start, side]: [[0, 96], [40 %, 128], "
        "[80 %, 224]]. start is a share of the run or a duration; a list in place of a side ([[0, [160, 192, 224]]]): "
        "one of them for each batch, drawn by seed and step. Evaluation and saved weights have model.img_size. Empty: "
        "training images have it, too.",
    )
    augreg: AugRegPreset | None = Field(
        default=None,
        description="AugReg's augmentation strength: sets train_transform.randaugment and mixing (mixup, per batch, "
        "keep_larger).",
    )
    train_transform: AnyTrainTransform = Field(
        default_factory=InceptionConfig,
        description="Transform of training images. Random numbers are functions of (seed, epoch, sample).",
    )
    mixing: MixingConfig = Field(default_factory=MixingConfig)
    eval_transform: EvalTransformConfig = Field(default_factory=EvalTransformConfig)
    mean: tuple[float, float, float] = Field(default=(0.5, 0.5, 0.5), description="Subtracted from pixels in [0, 1].")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = Field(
        default=(0.5, 0.5, 0.5), description="The pixels are divided by it after that."
    )
    max_bad_sample_rate: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="The run stops if more than this fraction of the samples cannot be read or decoded."
    )

    @property
    def draws_each_once(self) -> bool:
        """Whether an epoch draws each image of one complete set once, so that the counts of its card hold."""
        whole = self.drop_list is None and self.subset is None
        return whole and not self.mixture and self.sampling == "natural"

    def ignored(self) -> dict[str, str]:
        """See ``Strict``."""
        if self.sampling == "natural":
            return {}
        return {
            "shuffle_window": f"shuffles along the shards; sampling: {self.sampling} draws from all of them, and it "
            "would be ignored"
        }

    @model_validator(mode="after")
    def _sampling_of_one_set(self) -> DataConfig:
        if self.mixture and self.sampling != "natural":
            raise ValueError(
                f"sampling: {self.sampling} draws the classes of one set, but mixture draws several sets by weight; "
                "use natural, or pack the sets into one"
            )
        return self

    @model_validator(mode="after")
    def _preset_alone(self) -> DataConfig:
        if self.augreg is None:
            return self
        transform = self.train_transform
        policies = [name for name in ("randaugment", "auto_augment", "three_augment") if getattr(transform, name)]
        if policies:
            raise ValueError(f"augreg sets train_transform.randaugment; remove train_transform.{policies[0]} or augreg")
        if self.mixing.mixup or self.mixing.cutmix:
            raise ValueError("augreg sets mixing; remove mixing or augreg")
        return self

    @property
    def augmentation(self) -> TrainTransformConfig:
        """``train_transform`` with the policies that ``augreg`` adds."""
        preset = AUGREG.get(self.augreg or "none")
        if preset is None or not preset.num_layers:
            return self.train_transform
        policy = RandAugmentConfig(num_layers=preset.num_layers, magnitude=preset.magnitude)
        return self.train_transform.model_copy(update={"randaugment": policy})

    @property
    def effective_mixing(self) -> MixingConfig:
        """``mixing``, or the settings that ``augreg`` implies."""
        mixup = AUGREG[self.augreg].mixup if self.augreg else 0.0
        return MixingConfig(mixup=mixup, keep_larger=True) if mixup else self.mixing
