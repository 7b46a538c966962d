"""The 19 tasks of VTAB-1k: the data on which a result must have been measured to count as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

Group = Literal["natural", "specialized", "structured"]
GROUPS: tuple[Group, ...] = ("natural", "specialized", "structured")
TRAIN_SPLIT, TEST_SPLIT = "train800val200", "test"
# Images of each list of a task but the test's.
FORM = {"train800": 800, "val200": 200, "train800val200": 1_000}


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
