"""Packed sets for tests, written by the packer itself; the colour of an image is its sample id."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.pack.finish import finish_split
from pipelines.pack.masks import MaskOptions
from pipelines.pack.options import PackOptions
from pipelines.pack.plan import Plan, Shard, Split
from pipelines.pack.shards import Writing, write_shard
from pipelines.sources.array_sets import encode_grey
from pipelines.sources.protocol import Item, Source
from pretrain.config.schema.data import Target
from pretrain.config.schema.experiment import Experiment

NUM_CLASSES = 7
SIZE = 8


class CodedSource(Source):
    """Image i is one colour that says i; its labels are i mod 7 and, in a multi-label set, some more; or a vector."""

    name = "coded"
    origin = "made in a test"
    licence = "none"

    # many: the kinds of set that tests need, all off by default
    def __init__(
        self,
        *,
        multi_label: bool = False,
        image_format: str = "png",
        noise: bool = False,
        varied: bool = False,
        target: Target = "labels",
    ) -> None:
        self.multi_label, self.image_format, self.noise, self.target = multi_label, image_format, noise, target
        self.varied = varied
        self.classes = [(f"c{index}", f"class {index}") for index in range(NUM_CLASSES)]
        self.notes: list[str] = []

    def items(self, count: int = 0) -> list[Item]:
        numbers = range(count)
        if self.target == "vector":
            return [Item(f"image-{number:06d}", (), SIZE * SIZE, vector=vector_of(number)) for number in numbers]
        if self.target == "mask":
            return [Item(f"image-{number:06d}", (), SIZE * SIZE, mask=str(number)) for number in numbers]
        return [Item(f"image-{number:06d}", labels_of(number, self.multi_label), SIZE * SIZE) for number in numbers]

    def read(self, item: Item) -> tuple[bytes, str]:
        number = int(item.key.rpartition("-")[2])
        pixels = np.broadcast_to(np.array(colour_of(number), dtype=np.uint8), (SIZE, SIZE, 3))
        if self.noise:
            pixels = np.random.default_rng(number).integers(0, 256, (3 * SIZE, 4 * SIZE, 3), dtype=np.uint8)
        if self.varied:
            pixels = noise_of(number)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format=self.image_format)
        return buffer.getvalue(), self.image_format

    def read_mask(self, item: Item) -> bytes:
        """Stripes of the image's size: some pixels have no class."""
        shape = (3 * SIZE, 4 * SIZE) if self.noise else (SIZE, SIZE)
        columns = np.arange(shape[1], dtype=np.uint8) // 2 + int(item.mask)
        classes = np.broadcast_to(columns % (NUM_CLASSES + 1), shape).astype(np.uint8)
        return encode_grey(np.where(classes == NUM_CLASSES, 255, classes).astype(np.uint8))


def noise_of(number: int) -> np.ndarray:
    """The image of a set of ``varied`` ones: 4 heights and 5 widths."""
    size = (SIZE * (1 + number % 4), SIZE * (1 + number % 5), 3)
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def colour_of(number: int) -> tuple[int, int, int]:
    return number % 256, number // 256, 77


def number_of(images: Any) -> list[int]:
    """Sample ids as the colours of uint8 (b, 3, H, W) say them."""
    return (images[:, 0, 0, 0].long() + 256 * images[:, 1, 0, 0].long()).tolist()


def labels_of(number: int, multi_label: bool = False) -> tuple[int, ...]:
    first = number % NUM_CLASSES
    return tuple(sorted({first, number % 3, number % 5})) if multi_label else (first,)


def vector_of(number: int) -> tuple[float, ...]:
    """As many numbers as there are classes, of units far apart; the last never changes."""
    return (number / 3, *(1000.0 * number**power for power in range(1, NUM_CLASSES - 1)), 5.0)


def write_set(folder: Path, sizes: Sequence[int], **source: Any) -> Path:
    """Packs ``sum(sizes)`` coded images into shards of exactly these sizes; returns the split's folder."""
    coded = CodedSource(**source)
    items = coded.items(sum(sizes))
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    shards = [
        Shard(f"shard-{index:06d}.tar", first, tuple(items[first : first + size]))
        for index, (first, size) in enumerate(zip(starts[:-1], sizes, strict=True))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        masks = MaskOptions(NUM_CLASSES)
        writing = Writing(coded, multi_label=coded.multi_label, target=coded.target, masks=masks)
        write_shard(writing, (folder, shard), lambda count: None)
    split = Split("train", tuple(shards))
    plan = Plan(tuple(coded.classes), (split,), "", "", "", target=coded.target)
    finish_split(folder, split, plan, coded, PackOptions("coded"))
    return folder


def experiment(shards: Path | str, num_samples: int, **changes: Any) -> Experiment:
    """A small experiment on a coded set; ``a__b=value`` sets a nested key, ``a__b=...`` leaves it out."""
    tree: dict[str, Any] = {
        "name": "test",
        "seed": 3,
        "duration": "1 epoch",
        "global_batch_size": 16,
        "model": {"variant": "mu/4", "img_size": SIZE},
        "data": {
            "shards": str(shards),
            "num_samples": num_samples,
            "num_classes": NUM_CLASSES,
            "shuffle_window": 8,
            "train_transform": {"crop": "resize", "hflip": 0.0},
            "eval_transform": {"resize": "squash"},
        },
        "optim": {"lr": 1e-3},
        "cluster": {"num_workers": 0},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = value
        if value is ...:
            del branch[last]
    return Experiment.model_validate(tree)
