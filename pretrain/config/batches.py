"""The number of images of each step, as a function of the step, and the samples that were drawn before it.

Every step has as many images, or, with ``batch_unit``, as many units of G images as fit into the patches of B images
of the largest size: floor(B N / (G n)) of them where an image has n patches and the largest N. Then every size occurs
once in each round of steps (see ``ImageSizes``), so a round draws a fixed number of samples, and the samples before a
step are a product and the rest of a round: no walk from the start.

Legend: B images per step of the largest size · G unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from pretrain.config.image_sizes import ImageSizes, Size, Stage, Tiling


@dataclass(frozen=True)
class Batches:
    """Images of each step.

    Args:
        largest: B, the images of a step of the largest size, and of every step without a unit.
        unit: G, which divides B; B where every step has as many.
        sizes: of the images; with a unit they are drawn in rounds.
        heaviest: of all images of the run, the one with the most patches.
    """

    largest: int
    unit: int
    sizes: ImageSizes
    heaviest: Tiling

    @classmethod
    def constant(cls, num_images: int, size: Size = (1, 1)) -> Batches:
        """As many images of this height and width in every step."""
        return cls(num_images, num_images, ImageSizes((Stage(0, (size,)),), seed=0), Tiling(size))

    @property
    def vary(self) -> bool:
        """Whether steps may differ."""
        return self.sizes.in_rounds

    def of(self, tiling: Tiling) -> int:
        """Images of a step whose images have this size."""
        if not self.vary:
            return self.largest
        return self.largest * _weight(self.heaviest, tiling) // (self.unit * _weight(tiling, self.heaviest)) * self.unit

    def size(self, step: int) -> int:
        """Images of a step."""
        return self.of(self.sizes.at(step)) if self.vary else self.largest

    def before(self, step: int) -> int:
        """Samples that are drawn before a step."""
        if not self.vary:
            return step * self.largest
        return sum(self._until(number, min(step, end)) for number, first, end in self._stages() if step > first)

    def exact_step(self, samples: float) -> float:
        """The step at which so many samples are drawn, with the share of it that is drawn before."""
        if not self.vary:
            return samples / self.largest
        left = samples
        for number, first, end in self._stages():
            of_stage = self._until(number, end) if end < _ENDLESS else float("inf")
            if left < of_stage:
                return self._inside(number, first, left)
            left -= of_stage
        raise AssertionError("the last stage has no end")

    def step(self, samples: float) -> int:
        """``exact_step``, rounded to the nearest."""
        return round(self.exact_step(samples))

    @property
    def parts(self) -> list[int]:
        """The numbers of units that a step can have, ascending."""
        return sorted({self.of(tiling) // self.unit for tiling in self.sizes.all})

    def in_words(self) -> str:
        """The numbers of images that a step can have, and its fewest patches."""
        sizes = " or ".join(f"{parts * self.unit:,}" for parts in self.parts)
        patches = [
            self.of(one) * Fraction(_weight(one, self.heaviest), _weight(self.heaviest, one)) for one in self.sizes.all
        ]
        return f"{sizes} images, with {float(min(patches) / max(patches)):.1%} to 100 % of the patches of the largest"

    def can_be_shared(self, world: int, accumulation: int, *, in_pairs: bool = False) -> bool:
        """Whether ranks can process every step in as many passes of equally many images; optionally an even number."""
        whole = world * accumulation * (2 if in_pairs else 1)
        return not self.vary or all(parts * self.unit % whole == 0 for parts in self.parts)

    def _inside(self, number: int, first: int, samples: float) -> float:
        """The step of a stage before which it has drawn so many samples."""
        length = self.sizes.round_length(number)
        rounds = int(samples // self._until(number, first + length))
        step = first + rounds * length
        left = samples - self._until(number, step)
        while left >= (size := self.size(step)):
            step, left = step + 1, left - size
        return step + left / size

    def _until(self, number: int, step: int) -> int:
        """Samples that a stage draws before a step of it."""
        first, length = self.sizes.stages[number].first, self.sizes.round_length(number)
        rounds, rest = divmod(step - first, length)
        of_round = sum(self.of(tiling) for tiling in self.sizes.of_stage(number))
        return rounds * of_round + sum(self.size(one) for one in range(step - rest, step))

    def _stages(self) -> Iterator[tuple[int, int, int]]:
        """Number, first step and end of each stage."""
        firsts = [stage.first for stage in self.sizes.stages]
        yield from zip(range(len(firsts)), firsts, [*firsts[1:], _ENDLESS], strict=True)


_ENDLESS = 2**62


def _weight(one: Tiling, other: Tiling) -> int:
    """The number of patches of ``one``, up to a factor that ``other`` has as well."""
    return one.size[0] * one.size[1] * (other.patch or 1) ** 2
