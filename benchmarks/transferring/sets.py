"""The data sets of the experiment, packed by the project's own command.

Every set has three parts: what is trained on, what a learning rate is chosen on (dev), and what is reported (test).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pack.cli import main as pack
from pipelines.sources.array_sets import DigitsSource
from pretrain.errors import DataError, SetupError
from pretrain.files import write_atomic

KEEP = ("--images", "keep")
PUBLIC = ("--licence", "public domain")


@dataclass(frozen=True)
class DataSet:
    """Folders of packed splits, and how its images are shown to a model.

    Attributes:
        train, dev, test: folders below the data folder.
        hflip: probability of a mirrored training image: half, or none where a mirrored one is another class.
        crops: whether a training image is a random crop: photos are cropped; images of 28 or 8 pixels are not.
        multi_label: an image has several labels; the metric is mean average precision, else top-1.
    """

    train: str
    dev: str
    test: str
    hflip: float = 0.5
    crops: bool = False
    multi_label: bool = False

    @property
    def metric(self) -> str:
        """The name of the metric that is reported."""
        return "mAP" if self.multi_label else "top1"


SETS = {
    "fashion": DataSet("fashion/train", "fashion_small/val", "fashion_test/val"),
    "fashion-1000": DataSet("fashion_small/train", "fashion_small/val", "fashion_test/val"),
    "openclipart": DataSet("clipart/train", "clipart/val", "clipart_all/val", crops=True, multi_label=True),
    "digits": DataSet("digits/train", "digits/val", "digits_all/val", hflip=0.0),
    "photos": DataSet("photos/train", "photos/val", "photos/test", crops=True),
}
PHOTO_SPLITS = ("train", "validation", "test")


def pack_sets(data: Path, clipart: Path, photos: Path | None, quick: bool) -> None:
    """Packs whatever is not packed yet.

    Args:
        data: folder of all packed sets.
        clipart: nested folders of images, each folder a label.
        photos: folders train, validation and test with one folder per class; None: those sets are left out.
        quick: everything is cut from scikit-learn's digits, so that nothing need be installed.

    Raises:
        SetupError: no cliparts there. DataError: a pack failed.
    """
    if not quick and not clipart.is_dir():
        raise SetupError(
            f"{clipart} is not a folder; apt-get install openclipart-png, or name nested folders with --clipart"
        )
    data.mkdir(parents=True, exist_ok=True)
    if quick:
        clipart, photos = write_digits(data / "made_of_digits")
        ids = data / "test_ids.txt"
        write_atomic(ids, "\n".join(item.key for item in DigitsSource().items()[1400:]))
        fashion: Sequence[str] = ("digits", "--holdout", "0.2", "--split", f"test={ids}")
    else:
        fashion = ("fashion-mnist", "--holdout", "0.05")
    per_class = "10" if quick else "100"
    _pack(data / "fashion", *fashion)
    # a packed split is cut again: under another name, for the packer leaves a folder `test` a test set
    for name, split in (("official", "test"), ("heldout", "val")):
        if not (link := data / f"fashion_{name}").is_symlink():
            link.symlink_to(f"fashion/{split}")
    _pack(data / "fashion_test", "webdataset", str(data / "fashion_official"), "--holdout", "0.3", *KEEP)
    small = ("--holdout", "0.2", "--per-class", per_class)
    _pack(data / "fashion_small", "webdataset", str(data / "fashion_heldout"), *small, *KEEP)
    nested = ("--nested-labels", "--duplicates", "merge", "--short-side", "64", "--holdout", "0.1")
    _pack(data / "clipart_all", "folder", str(clipart), *nested, *PUBLIC)
    _pack(data / "clipart", "webdataset", str(data / "clipart_all/train"), "--holdout", "0.1", *KEEP)
    _pack(data / "digits_all", "digits", "--holdout", "0.5", "--per-class", "15" if quick else "50")
    _pack(data / "digits", "webdataset", str(data / "digits_all/train"), "--holdout", "0.2", *KEEP)
    if photos is not None:
        _pack(data / "photos", "folder", str(photos), "--short-side", "64")


def _pack(out: Path, *arguments: str) -> None:
    done = out / "packed.json"  # the packer would also find that nothing is to do, but only after listing the source
    if done.is_file() and json.loads(done.read_text()) == list(arguments):
        return
    if pack([*arguments, "--out", str(out)]):
        raise DataError(f"python -m pipelines pack {' '.join(arguments)} --out {out} failed; see above")
    write_atomic(done, json.dumps(arguments))


def write_digits(folder: Path, most: int = 400) -> tuple[Path, Path]:
    """Digits as files: nested folders (even or odd, digit), and folders by split and class; returns both."""
    source, seen = DigitsSource(), Counter[int]()
    for number, item in enumerate(source.items()[:most]):
        (label,), (image, suffix) = item.labels, source.read(item)
        split = PHOTO_SPLITS[(0, 0, 1, 2)[seen[label] % 4]]
        seen[label] += 1
        parity = ("even", "odd")[label % 2]
        for place in (folder / "nested" / parity / str(label), folder / "photos" / split / str(label)):
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number:04d}.{suffix}").write_bytes(image)
    return folder / "nested", folder / "photos"


def card(folder: Path) -> dict[str, Any]:
    """The packer's card of a split.

    Raises:
        DataError: it is not packed.
    """
    try:
        return json.loads((folder / "card.json").read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not packed; start the whole experiment, or name its data folder") from error


def evaluation_set(folder: Path, kind: str = "", **settings: Any) -> dict[str, Any]:
    """A set of ``evaluation.sets``; without a kind, the measure that fits its labels."""
    about = card(folder)
    kind = kind or ("multilabel" if about["labels"] != "single" else "accuracy")
    return {"kind": kind, "shards": str(folder), "num_samples": about["num_samples"], **settings}


def feature_set(kind: str, dataset: DataSet, data: Path, **settings: Any) -> dict[str, Any]:
    """A set that is classified on frozen features, learned from the training images."""
    learned = {
        "train_shards": str(data / dataset.train),
        "num_train_samples": card(data / dataset.train)["num_samples"],
    }
    return evaluation_set(data / dataset.test, kind, **learned, **settings)
