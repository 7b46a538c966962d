"""The size of the training images and of their patches at each step, as functions of the seed and the step."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain import seeds
from pretrain.config.duration import Moment

Size = tuple[int, int]


class Tiling(NamedTuple):
    """How the images of a step are cut.

    Attributes:
        size: (height, width) of the images in pixels.
        patch: side of the patches in pixels; None: that of the model.
    """

    size: Size
    patch: int | None = None

    @property
    def num_patches(self) -> float:
        """Patches of an image, up to a factor where ``patch`` is None."""
        return self.size[0] * self.size[1] / (self.patch or 1) ** 2


class Stage(NamedTuple):
    """A part of a run.

    Attributes:
        first: its first step.
        sizes: of its images, (height, width); with several of them, one is drawn for each step.
    """

    first: int
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class ImageSizes:
    """The size of the training images and of their patches at each step.

    Args:
        stages: in order; the first one begins at step 0.
        seed: of the experiment.
        patches: sides of the patches, of which one is drawn for each step; none: that of the model throughout.
        in_rounds: each pair of a size and a patch is drawn once in every round of as many steps; else the draws of the
            steps are independent.
    """

    stages: tuple[Stage, ...]
    seed: int
    patches: tuple[int, ...] = ()
    in_rounds: bool = False

    def at(self, step: int) -> Tiling:
        """Size and patch of all images of a step.

        Args:
            step: position on the schedule (``TrainState.progress``); steps after the end belong to the last stage.
        """
        number = next(i for i, stage in reversed([*enumerate(self.stages)]) if stage.first <= step)
        if self.in_rounds:
            return self.of_stage(number)[int(self._place_in_round(number, step))]
        sizes, patches = self.stages[number].sizes, self.patches or (None,)
        size = sizes[int(self._drawn("resolution", step, len(sizes)))]
        return Tiling(size, patches[int(self._drawn("patch_size", step, len(patches)))])

    def of_stage(self, number: int) -> list[Tiling]:
        """Sizes and patches that can occur in a stage."""
        return [Tiling(*pair) for pair in itertools.product(self.stages[number].sizes, self.patches or (None,))]

    def round_length(self, number: int) -> int:
        """Steps of a round of a stage."""
        return len(self.stages[number].sizes) * max(1, len(self.patches))

    @property
    def all(self) -> tuple[Tiling, ...]:
        """Everything that can occur, the smallest images first."""
        sizes = sorted({size for stage in self.stages for size in stage.sizes})
        return tuple(Tiling(size, patch) for size in sizes for patch in sorted(self.patches) or [None])

    @property
    def largest(self) -> Size:
        """The size of the largest images."""
        return max((tiling.size for tiling in self.all), key=lambda size: size[0] * size[1])

    @property
    def heaviest(self) -> Tiling:
        """The one that needs the most memory: it has the most patches."""
        return max(self.all, key=lambda tiling: tiling.num_patches)

    def counts(self, num_steps: int) -> dict[Tiling, int]:
        """Tiling → number of the first ``num_steps`` steps that have it; exact, also where it is drawn."""
        found: Counter[Tiling] = Counter()
        if self.in_rounds:
            return self._counts_of_rounds(num_steps)
        patches = self.patches or (None,)
        ends = [*(stage.first for stage in self.stages[1:]), num_steps]
        for (first, sizes), end in zip(self.stages, ends, strict=True):
            steps = np.arange(first, max(first, min(end, num_steps)))
            of_size, of_patch = (
                self._drawn("resolution", steps, len(sizes)),
                self._drawn("patch_size", steps, len(patches)),
            )
            for (i, size), (j, patch) in itertools.product(enumerate(sizes), enumerate(patches)):
                found[Tiling(size, patch)] += int(((of_size == i) & (of_patch == j)).sum())
        return dict(found)

    def _counts_of_rounds(self, num_steps: int) -> dict[Tiling, int]:
        found: Counter[Tiling] = Counter()
        ends = [*(stage.first for stage in self.stages[1:]), num_steps]
        for number, (stage, end) in enumerate(zip(self.stages, ends, strict=True)):
            rounds, rest = divmod(max(0, min(end, num_steps) - stage.first), self.round_length(number))
            found.update(dict.fromkeys(self.of_stage(number), rounds))
            last = stage.first + rounds * self.round_length(number)
            found.update(self.at(step) for step in range(last, last + rest))
        return dict(found)

    def _place_in_round(self, number: int, step: int) -> NDArray[np.int64]:
        """The index in ``of_stage`` of a step of a stage."""
        length = self.round_length(number)
        index, place = divmod(step - self.stages[number].first, length)
        keys = seeds.hash64(self.seed, "round", number, index, np.arange(length))
        return np.argsort(keys, kind="stable")[place]

    def _drawn(self, purpose: str, steps: int | NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The index of one of ``count`` values for each step."""
        if count == 1:
            return np.zeros(np.shape(steps), dtype=np.int64)
        return (seeds.uniform(self.seed, purpose, steps) * count).astype(np.int64)

    def in_words(self) -> str:
        """The stages, such as ``96 × 96 from step 0, 128 × 128 or 160 × 160 from step 40``, and the patches."""
        lines = [
            f"{' or '.join(f'{height} × {width}' for height, width in sizes)} from step {first:,}"
            for first, sizes in self.stages
        ]
        return ", ".join(lines) + (f"; patches of {' or '.join(map(str, self.patches))}" if self.patches else "")


def stages_of(
    resolution: Sequence[tuple[Moment, int | tuple[int, ...]]],
    step_of: Callable[[Moment, tuple[Stage, ...]], int],
    num_steps: Callable[[tuple[Stage, ...]], int],
) -> tuple[Stage, ...]:
    """The stages that ``data.resolution`` describes.

    Args:
        resolution: its value, not empty.
        step_of: start of a stage, and the stages before it → its first step.
        num_steps: all stages → length of the run.

    Raises:
        ValueError: a stage has no step or no side; the message names it and the remedy.
    """
    stages: list[Stage] = []
    for start, sides in resolution:
        first = step_of(start, tuple(stages))
        if not stages and first:
            raise ValueError(f"data.resolution: the first start is {start}, so step 0 has no size; write [0, …]")
        if stages and first <= stages[-1].first:
            raise ValueError(
                f"data.resolution: the start {start} is step {first}, and the one before it is step "
                f"{stages[-1].first}; starts ascend, and each stage has at least one step"
            )
        chosen = sides if isinstance(sides, tuple) else (sides,)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"data.resolution: the sides from {start} on are {list(chosen)}; list each side once")
        stages.append(Stage(first, tuple((side, side) for side in chosen)))
    length = num_steps(tuple(stages))
    for (start, _), stage in zip(resolution, stages, strict=True):
        if length and stage.first >= length:
            raise ValueError(
                f"data.resolution: the start {start} is step {stage.first}, but the run ends after {length} steps; "
                "remove it, or make it earlier"
            )
    return tuple(stages)
