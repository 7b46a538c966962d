"""Settings → the size of the images of each step, and their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pretrain.config.batches import Batches
from pretrain.config.duration import Duration, Moment
from pretrain.config.image_sizes import ImageSizes, Stage, stages_of

if TYPE_CHECKING:
    from pretrain.config.schema.experiment import Experiment


def sizes_of(experiment: Experiment) -> ImageSizes:
    """See ``Experiment.image_sizes``."""
    model, data = experiment.model, experiment.data
    if lengths := data.train_transform.sequence_lengths:
        return _sizes(experiment, (Stage(0, tuple((model.patch, model.patch * length) for length in lengths)),))
    if not data.resolution:
        return _sizes(experiment, (Stage(0, (model.size,)),))

    def exact_steps(duration: Duration, stages: tuple[Stage, ...]) -> float:
        """A duration in steps where the images have the sizes of these stages, of which the last one has no end."""
        if duration.unit == "steps" or experiment.batch_unit is None or not stages:
            return duration.to_exact_steps(data.drawn_samples, experiment.global_batch_size)
        batches = batches_of(experiment, _sizes(experiment, stages))
        return batches.exact_step(duration.to_exact_steps(data.drawn_samples, 1))

    def num_steps(stages: tuple[Stage, ...]) -> int:
        return round(exact_steps(experiment.duration, stages))

    def first_step(start: Moment, before: tuple[Stage, ...]) -> int:
        """The first step of a stage. A share of a run whose length is in samples is a share of the samples."""
        if isinstance(start.value, Duration):
            return round(exact_steps(start.value, before))
        if experiment.batch_unit is None:
            return round(start.value / 100 * num_steps(before))
        length = experiment.duration
        return round(exact_steps(Duration(start.value / 100 * length.value, length.unit), before))

    return _sizes(experiment, stages_of(data.resolution, first_step, num_steps))


def batches_of(experiment: Experiment, sizes: ImageSizes) -> Batches:
    """The batches of images of these sizes, the heaviest of which may come in a later stage than all of them."""
    heaviest, largest = sizes.heaviest, experiment.global_batch_size
    if experiment.data.resolution:
        side = max(max(of) if isinstance(of, tuple) else of for _, of in experiment.data.resolution)
        heaviest = heaviest._replace(size=(side, side))
    return Batches(largest, experiment.batch_unit or largest, sizes, heaviest)


def _sizes(experiment: Experiment, stages: tuple[Stage, ...]) -> ImageSizes:
    in_rounds = experiment.batch_unit is not None
    return ImageSizes(stages, experiment.seed, experiment.model.patch_sizes, in_rounds=in_rounds)
