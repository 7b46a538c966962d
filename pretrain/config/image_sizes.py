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
from pretrain.config.duration import Duration, Moment

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
    """

    stages: tuple[Stage, ...]
    seed: int
    patches: tuple[int, ...] = ()

    def at(self, step: int) -> Tiling:
        """Size and patch of all images of a step.

        Args:
            step: position on the schedule (``TrainState.progress``); steps after the end belong to the last stage.
        """
        sizes = next(stage.sizes for stage in reversed(self.stages) if stage.first <= step)
        patches = self.patches or (None,)
        size = sizes[int(self._drawn("resolution", step, len(sizes)))]
        return Tiling(size, patches[int(self._drawn("patch_size", step, len(patches)))])

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
    num_steps: int,
    steps: Callable[[Duration], int],
) -> tuple[Stage, ...]:
    """The stages that ``data.resolution`` describes.

    Args:
        resolution: its value, not empty.
        num_steps: length of the run.
        steps: duration → optimiser steps.

    Raises:
        ValueError: a stage has no step or no side; the message names it and the remedy.
    """
    stages: list[Stage] = []
    for start, sides in resolution:
        value = start.value
        first = steps(value) if isinstance(value, Duration) else round(value / 100 * num_steps)
        if not stages and first:
            raise ValueError(f"data.resolution: the first start is {start}, so step 0 has no size; write [0, …]")
        if stages and first <= stages[-1].first:
            raise ValueError(
                f"data.resolution: the start {start} is step {first}, and the one before it is step "
                f"{stages[-1].first}; starts ascend, and each stage has at least one step"
            )
        if num_steps and first >= num_steps:
            raise ValueError(
                f"data.resolution: the start {start} is step {first}, but the run ends after {num_steps} steps; "
                "remove it, or make it earlier"
            )
        chosen = sides if isinstance(sides, tuple) else (sides,)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"data.resolution: the sides from {start} on are {list(chosen)}; list each side once")
        stages.append(Stage(first, tuple((side, side) for side in chosen)))
    return tuple(stages)
