"""The options that determine the packed bytes, and the check that they fit the source."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.pack.images import ImageOptions
from pipelines.pack.masks import OPTIONS as OF_MASKS
from pipelines.pack.masks import MaskOptions
from pretrain.config.target import IN_WORDS, Target
from pretrain.errors import ConfigError


@dataclass(frozen=True)
class PackOptions:
    """The options that determine the packed bytes. Two packs with equal options and equal sources are equal.

    Files are named by their digest: ``label_map``, ``split_lists``.
    """

    source: str
    nested_labels: bool = False
    seed: int = 0
    shard_bytes: int = 256_000_000
    shard_samples: int = 10_000
    holdout: float = 0.0
    classes: str = ""
    per_class: int = 0
    name: str = ""
    licence: str = ""
    release: str = ""
    label_map: str = ""
    hierarchy: str = ""
    duplicates: str = "keep"
    split_lists: dict[str, str] = field(default_factory=dict)
    images: str = "keep"
    encode: str = ""
    quality: int = 95
    short_side: int = 0
    min_side: int = 0
    max_pixels: int = 0
    drop_list: str = ""
    reduce_zero_label: bool = False
    mask_values: str = ""
    mask_none: str = ""
    mask_orientation: str = "auto"
    of_source: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON values."""
        return asdict(self)

    @property
    def of_images(self) -> ImageOptions:
        """How images are packed."""
        return ImageOptions(
            self.images, self.encode, self.quality, self.short_side, self.min_side, self.max_pixels or None
        )

    def of_masks(self, num_classes: int) -> MaskOptions:
        """The meaning of the numbers of masks.

        Raises:
            ConfigError: see ``MaskOptions.of``.
        """
        return MaskOptions.of(
            num_classes,
            values=self.mask_values,
            none=self.mask_none,
            reduce_zero_label=self.reduce_zero_label,
            orientation=self.mask_orientation,
        )

    def check_target(self, target: Target, num_classes: int) -> None:
        """Rejects options that do not apply to the targets of the source.

        Args:
            target: of the source's images.
            num_classes: classes of the source.

        Raises:
            ConfigError: names the option.
        """
        if target == "mask":
            self.of_masks(num_classes)
        else:
            for option in OF_MASKS:
                if getattr(self, option.name, option.default) != option.default:
                    raise ConfigError(f"{option.flag} is about masks, but this source has none; leave it out")
        of_labels = {
            "--classes": self.classes,
            "--per-class": self.per_class,
            "--label-map": self.label_map,
            "--hierarchy": self.hierarchy,
            "--duplicates merge": self.duplicates == "merge",
        }
        if target != "labels" and (given := next((name for name, value in of_labels.items() if value), "")):
            raise ConfigError(f"{given} is about class labels, but the images of this source have {IN_WORDS[target]}")
