"""The tasks of VTAB-1k: a source of one in the common folder form, and which results count as its results.

A folder holds images, and four lists that assign images to splits.

FOLDER/train800.txt   val200.txt   train800val200.txt   test.txt     a line: path below FOLDER, blank, class number

Source: Zhai et al., "A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark"
(1910.04867), section 2: 1,000 training images, of which 200 may choose settings. Its lists follow TensorFlow Datasets'
order, so they cannot be recreated from the raw data sets; the folders in circulation contain them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from pipelines.sources.entries import folder_fingerprint
from pipelines.sources.label_doubts import gaps_in_words
from pipelines.sources.protocol import NOT_STATED, Item, Source
from pretrain.data.ledger import Ledger
from pretrain.data.storage.card import SplitList
from pretrain.data.storage.classes import WHOLE_NUMBER
from pretrain.errors import DataError
from pretrain.files import digest
from pretrain.text_files import decode_text

LINES = "lines of the lists"
SPLITS = ("train800", "val200", "train800val200", "test")
Group = Literal["natural", "specialized", "structured"]
GROUPS: tuple[Group, ...] = ("natural", "specialized", "structured")
TRAIN_SPLIT, TEST_SPLIT = "train800val200", "test"
# Images of each list of a task but the test's.
FORM = {"train800": 800, "val200": 200, "train800val200": 1_000}


class Line(NamedTuple):
    """A line of a list."""

    path: str
    label: int


class VtabSource(Source):
    """One task; its four splits overlap: ``train800val200`` is ``train800`` and ``val200``.

    Args:
        root: the task's folder, named like the task.
        name: of the task; by default the folder's.
    """

    homepage = "https://github.com/google-research/task_adaptation"

    looks_at_files = True

    def __init__(self, root: Path, *, name: str = "") -> None:
        self.root = root
        self.name = name or root.resolve().name
        self.origin = f"folder {root.resolve()} with the lists of VTAB-1k"
        self.licence = NOT_STATED
        self.classes: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def fingerprint(self) -> str:
        """See ``Source.fingerprint``."""
        return folder_fingerprint(self.root)

    def items(self) -> Iterator[Item]:
        """See ``Source.items``."""
        found, self.ledger = {split: self._lines(split) for split in SPLITS}, Ledger()
        self._check_union(found)
        highest = max(line.label for lines in found.values() for line in lines)
        task = TASKS.get(self.name)
        num_classes = highest + 1 if task is None else task.num_classes
        if highest >= num_classes:
            raise DataError(f"{self.root}: class {highest} in its lists, but {self.name} has {num_classes} classes")
        self.classes = [(str(number), str(number)) for number in range(num_classes)]
        seen = {line.label for lines in found.values() for line in lines}
        self.notes = gaps_in_words(seen, num_classes, invented=task is None)
        self._note_form(found)
        for part, (split, lines) in enumerate(found.items()):
            self.ledger.found(LINES, len(lines))
            for line in lines:
                self.ledger.used(LINES, "images")
                yield Item(f"{split}/{line.path}", (line.label,), self._size(line.path, split), split, part)

    def read(self, item: Item) -> tuple[bytes, str]:
        """See ``Source.read``."""
        path = item.key.partition("/")[2]
        return (self.root / path).read_bytes(), PurePosixPath(path).suffix[1:].lower()

    def _lines(self, split: str) -> list[Line]:
        path = self.root / f"{split}.txt"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error}); the folder of a VTAB-1k task holds {', '.join(SPLITS)} as .txt"
            ) from error
        texts = enumerate(decode_text(data, str(path)).split("\n"), 1)
        lines = [self._line(text, path, number) for number, text in texts if text.strip()]
        if not lines:
            raise DataError(f"{path}: names no image")
        twice = next((name for name, count in Counter(line.path for line in lines).items() if count > 1), None)
        if twice:
            raise DataError(f"{path}: {twice} is on two lines")
        self.lists = {**self.lists, split: SplitList(num_samples=len(lines), digest=digest(data))}
        return lines

    def _line(self, text: str, path: Path, number: int) -> Line:
        name, _, label = text.strip().rpartition(" ")
        if not name or not WHOLE_NUMBER.fullmatch(label):
            raise DataError(
                f"{path}:{number}: {text!r} is not a path and the number of a class, such as images/000001.jpg 7"
            )
        return Line(name.strip(), int(label))

    def _check_union(self, found: dict[str, list[Line]]) -> None:
        """Whether train800val200 is train800 and val200: by path, or if it has copies, by the images' bytes."""
        both, one = found["train800"] + found["val200"], found["train800val200"]
        if Counter(both) == Counter(one):
            return
        if Counter(map(self._content, both)) != Counter(map(self._content, one)):
            raise DataError(
                f"{self.root}/train800val200.txt: its {len(one)} images are not the {len(both)} of train800.txt and "
                "val200.txt with their classes; correct the lists, or take them from another copy of the task"
            )

    def _content(self, line: Line) -> tuple[str, int]:
        self._size(line.path, "train800val200")
        return digest((self.root / line.path).read_bytes()), line.label

    def _note_form(self, found: dict[str, list[Line]]) -> None:
        for split, wanted in FORM.items():
            if len(found[split]) != wanted:
                self.notes.append(
                    f"{split}.txt names {len(found[split])} images, VTAB-1k has {wanted}: results on this set are not "
                    "labelled VTAB-1k"
                )

    def _size(self, path: str, split: str) -> int:
        try:
            return (self.root / path).stat().st_size
        except OSError as error:
            raise DataError(f"{self.root}/{split}.txt: {path} cannot be found ({error.strerror})") from error


class Task(NamedTuple):
    """One task: its group, its classes and the images of its test split."""

    group: Group
    num_classes: int
    num_test: int


# Source: VTAB (1910.04867), table 2; the test sizes are those of TensorFlow Datasets' splits.
TASKS: dict[str, Task] = {
    "caltech101": Task("natural", 102, 6_084),
    "cifar": Task("natural", 100, 10_000),
    "dtd": Task("natural", 47, 1_880),
    "oxford_flowers102": Task("natural", 102, 6_149),
    "oxford_iiit_pet": Task("natural", 37, 3_669),
    "sun397": Task("natural", 397, 21_750),
    "svhn": Task("natural", 10, 26_032),
    "patch_camelyon": Task("specialized", 2, 32_768),
    "eurosat": Task("specialized", 10, 5_400),
    "resisc45": Task("specialized", 45, 6_300),
    "diabetic_retinopathy": Task("specialized", 5, 42_670),
    "clevr_count": Task("structured", 8, 15_000),
    "clevr_dist": Task("structured", 6, 15_000),
    "dmlab": Task("structured", 6, 22_735),
    "kitti": Task("structured", 4, 711),
    "dsprites_loc": Task("structured", 16, 73_728),
    "dsprites_ori": Task("structured", 16, 73_728),
    "smallnorb_azi": Task("structured", 18, 12_150),
    "smallnorb_ele": Task("structured", 9, 12_150),
}


def task_of(data: Mapping[str, Any]) -> str | None:
    """The task that a result claims to be for: its training set is packed from the lists of one; None: it claims none.

    Args:
        data: the result's record of its sets, by name (``data_record.record_of``).
    """
    train = data.get("train", {})
    return train["name"] if train.get("name") in TASKS and train.get("lists") else None


def why_not(task: str, data: Mapping[str, Any], metric: str) -> Iterator[str]:
    """All reasons why a result on a task does not count for VTAB-1k.

    Args:
        task: of TASKS.
        data: as for ``task_of``.
        metric: as SET/METRIC.
    """
    train, test = data["train"], data.get(metric.partition("/")[0])
    found = {split: entry["num_samples"] for split, entry in train["lists"].items()}
    for split, wanted in FORM.items():
        if found.get(split) != wanted:
            yield f"{split}.txt names {found.get(split, 0):,} images, not {wanted:,}"
    if (train["split"], train["num_samples"]) != (TRAIN_SPLIT, FORM[TRAIN_SPLIT]):
        yield f"trained on {train['num_samples']:,} images of {train['split']}, not on the 1,000 of {TRAIN_SPLIT}"
    if test is None or test["split"] != TEST_SPLIT or test["lists"] != train["lists"]:
        yield f"{metric} is not of the {TEST_SPLIT} split of the same pack"
    elif test["num_samples"] != TASKS[task].num_test:
        yield f"{test['num_samples']:,} test images, not {TASKS[task].num_test:,}"
