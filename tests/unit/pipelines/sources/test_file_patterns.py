from __future__ import annotations

import os

import pytest

from pipelines.sources.file_patterns import distinct_names, find_files
from pipelines.sources.splits import splits_of_files
from pretrain.errors import DataError


@pytest.fixture
def tars(tmp_path, monkeypatch):
    """Empty files below test/set, a folder that happens to be called like a split."""
    for name in ("train/0.tar", "train/1.tar", "val/0.tar", "x-test-0.tar", "folder.tar/dev-0.tar"):
        path = tmp_path / "test" / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return "test/set"


def found(*patterns: str) -> dict[str, str]:
    files = find_files(patterns, ".tar")
    return dict(
        zip([os.path.relpath(file.url) for file in files], splits_of_files([f.place for f in files]).names, strict=True)
    )


def test_a_folder_a_pattern_and_single_files_say_the_same(tars):
    expected = {f"{tars}/train/0.tar": "train", f"{tars}/train/1.tar": "train", f"{tars}/val/0.tar": "val"}
    rest = {f"{tars}/x-test-0.tar": "test", f"{tars}/folder.tar/dev-0.tar": "val"}
    assert found(tars) == expected | rest
    assert found(os.path.abspath(tars)) == expected | rest
    assert found(f"{tars}/*/?.tar") == expected
    assert found(f"{tars}/train/{{0..1}}.tar", f"{tars}/val/0.tar") == expected
    assert found(*expected) == expected
    for alone in (f"{tars}/val/0.tar", f"{tars}/val", f"{tars}/val/*.tar"):
        assert found(alone) == {f"{tars}/val/0.tar": "train"}, "the folder of all that is given does not count"


def test_folders_above_what_is_given_do_not_count(tars):
    assert found(f"{tars}/train") == {f"{tars}/train/0.tar": "train", f"{tars}/train/1.tar": "train"}
    os.rename(f"{tars}/train", f"{tars}/shards")
    assert set(found(f"{tars}/shards").values()) == set(found(f"{tars}/shards/{{0,1}}.tar").values()) == {"train"}


@pytest.mark.parametrize(
    ("pattern", "splits"),
    [
        ("https://test.org/set/train-{0..1}.tar", ["train", "train"]),
        ("https://test.org/set/{train,val}/0.tar?key=test", ["train", "val"]),
        ("https://host/imagenet/val/{0..1}.tar", ["train", "train"]),
        ("s3://test/set/imagenet1k-validation-{00..01}.tar", ["val", "val"]),
        ("pipe:ssh test cat /data/x-{0..1}.tar | cat", ["train", "train"]),
        ("pipe:cat '/data/val/x-{0..1}.tar'", ["train", "train"]),
    ],
)
def test_remote_shards(pattern, splits):
    assert list(splits_of_files([file.place for file in find_files([pattern], ".tar")]).names) == splits


def test_each_file_is_found_once(tars):
    assert len(find_files([tars, f"{tars}/val", f"{tars}/val/0.tar"], ".tar")) == 5
    with pytest.raises(DataError, match="fits no"):
        find_files([f"{tars}/val/*.parquet"], ".parquet")


@pytest.mark.parametrize(
    ("addresses", "names"),
    [
        (["a/0.tar", "a/1.tar"], ["0.tar", "1.tar"]),
        (["x/train/0.tar", "x/test/0.tar"], ["train/0.tar", "test/0.tar"]),
        (["a/1/2/3/0.tar", "b/1/2/3/0.tar"], ["a/1/2/3/0.tar", "b/1/2/3/0.tar"]),
        (["0.tar", "a/0.tar"], ["0.tar", "a/0.tar"]),
    ],
)
def test_names_are_as_short_as_they_can_be(addresses, names):
    assert distinct_names(addresses) == names
