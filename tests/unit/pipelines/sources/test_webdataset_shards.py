from __future__ import annotations

import pytest

from pipelines.__main__ import main
from pipelines.sources.options import SourceOptions
from pipelines.sources.webdataset_shards import WebDatasetSource
from pretrain.data.storage.classes import encode_classes
from pretrain.errors import ConfigError, DataError
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.listing import listed
from tests.unit.pipelines.sources.test_imagenet21k import tar_of

CAT, DOG = encode(1), encode(2)


def write(path, files: dict[str, bytes]):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(files))
    return str(path)


def labels_of(source, folder) -> dict[str, tuple[str, ...]]:
    found = listed(source, folder)
    return {key: tuple(source.classes[label][0] for label in item.labels) for key, (item, _, _) in found.items()}


@pytest.mark.parametrize(
    ("members", "expected", "is_multi"),
    [
        (({"cls": b"2"}, {"cls": b"0\n"}), ["2", "0"], False),
        (({"txt": b"owl"}, {"txt": b"cat"}), ["owl", "cat"], False),
        (({"json": b'{"labels": [0, 2]}'}, {"json": b'{"labels": [1]}'}), ["0 2", "1"], True),
        (({"json": b"2"}, {"json": b"0"}), ["2", "0"], False),
        (({"cls": b"1", "json": b"not JSON"}, {"cls": b"0", "txt": b"a caption"}), ["1", "0"], False),
        (({"cls": "\ufeff1".encode()}, {"cls": "0".encode("utf-16")}), ["1", "0"], False),
        (({"json": b'{"label": "b"}'}, {"json": b'{"label": null}'}), ["b", ""], False),
    ],
)
def test_labels_in_a_tar(tmp_path, members, expected, is_multi):
    files = {}
    for number, sample in enumerate(members):
        files |= {f"{number}.jpg": encode(number), **{f"{number}.{name}": data for name, data in sample.items()}}
    source = WebDatasetSource([write(tmp_path / "x-000.tar", files)])
    found = labels_of(source, tmp_path)
    assert [" ".join(labels) for labels in found.values()] == expected
    assert source.multi_label == is_multi


def test_a_caption_is_not_a_class(tmp_path):
    caption = {"a.jpg": CAT, "a.txt": b"owl", "a.json": b'{"caption": "owl", "url": "x", "kind": 3}'}
    path = write(tmp_path / "x.tar", caption)
    with pytest.raises(DataError, match=r"no sample has a label; known are .*it is that caption.*--label-column"):
        listed(WebDatasetSource([path]), tmp_path)
    for name, expected in (("txt", "owl"), ("kind", "3")):
        source = WebDatasetSource([path], SourceOptions(label_column=name))
        assert labels_of(source, tmp_path) == {"x/a.jpg": (expected,)}


def test_labels_in_two_places_are_told(tmp_path):
    files = {"a.jpg": CAT, "a.cls": b"2", "b.jpg": DOG, "b.txt": b"owl"}
    path = write(tmp_path / "x.tar", files)
    with pytest.raises(DataError, match=r"b: its label is in txt, that of .*a in cls; .*--label-column"):
        listed(WebDatasetSource([path]), tmp_path)
    source = WebDatasetSource([path], SourceOptions(label_column="cls"))
    assert labels_of(source, tmp_path) == {"x/a.jpg": ("2",), "x/b.jpg": ()}
    both = write(tmp_path / "y.tar", {"a.jpg": CAT, "a.json": b'{"label": 1, "class": "owl"}'})
    source = WebDatasetSource([both])
    assert labels_of(source, tmp_path) == {"y/a.jpg": ("1",)}
    assert "labels are those of json:label; samples also have json:class" in "; ".join(source.notes)


@pytest.mark.parametrize(
    ("cls", "content", "is_noted"),
    [
        (b"2", b'{"label": 3}', True),
        (b"2", b'{"label": 2}', False),
        (b"2\n", b'{"labels": [2]}', False),
        (b"cat", b'{"class": "owl"}', True),
        (b"2", b'{"caption": "a cat"}', False),
        (b"2", b"not JSON", False),
    ],
)
def test_a_cls_member_that_contradicts_json_is_told(tmp_path, cls, content, is_noted):
    path = write(tmp_path / "x.tar", {"a.jpg": CAT, "a.cls": cls, "a.json": content})
    source = WebDatasetSource([path])
    assert labels_of(source, tmp_path) == {"x/a.jpg": (cls.decode().strip(),)}
    assert ("labels are those of cls; samples also have json:" in "; ".join(source.notes)) == is_noted


def test_korean_and_latin_labels_need_their_encoding(tmp_path):
    path = write(tmp_path / "x.tar", {"a.jpg": CAT, "a.cls": "고양이".encode("cp949")})
    with pytest.raises(DataError, match=r"a.cls:1: not UTF-8 text .*--encoding"):
        listed(WebDatasetSource([path]), tmp_path)
    assert labels_of(WebDatasetSource([path], SourceOptions(encoding="cp949")), tmp_path) == {"x/a.jpg": ("고양이",)}


def test_sets_whose_numbers_mean_other_classes_are_joined_by_name(tmp_path):
    for name, names in (("one", ["cat", "dog"]), ("two", ["dog", "cat"])):
        write(tmp_path / name / "x.tar", {"0.jpg": CAT, "0.cls": b"0", "1.jpg": DOG, "1.cls": b"1"})
        (tmp_path / name / "classes.csv").write_bytes(encode_classes([(str(i), one) for i, one in enumerate(names)]))
    source = WebDatasetSource([str(tmp_path / "one"), str(tmp_path / "two")])
    found = labels_of(source, tmp_path)
    assert [one for (one,) in found.values()] == ["cat", "dog", "dog", "cat"]


def test_braces_folders_and_splits(tmp_path):
    for split in ("train", "val"):
        for number in range(3):
            write(tmp_path / split / f"s-{number:03d}.tar", {f"{number}.jpg": CAT, f"{number}.cls": b"0"})
    some = listed(WebDatasetSource([f"{tmp_path}/train/s-{{000..001}}.tar"]), tmp_path)
    assert list(some) == ["s-000/0.jpg", "s-001/1.jpg"]
    found = listed(WebDatasetSource([str(tmp_path)]), tmp_path)
    assert list(found)[:2] == ["train/s-000/0.jpg", "train/s-001/1.jpg"]
    assert {key.split("/")[0]: item.split for key, (item, _, _) in found.items()} == {"train": "train", "val": "val"}


def test_packed_sets_are_merged_by_class_id(tmp_path):
    for name, classes in (("one", {"cat": 3, "dog": 2}), ("two", {"ant": 2, "dog": 4})):
        photos = write_photos(tmp_path / f"photos_{name}", classes)
        assert main(["pack", "folder", str(photos), "--out", str(tmp_path / name)]) == 0
    source = WebDatasetSource([str(tmp_path / "one" / "train"), str(tmp_path / "two" / "train")])
    counts: dict[str, int] = {}
    for (name,) in labels_of(source, tmp_path).values():
        counts[name] = counts.get(name, 0) + 1
    assert counts == {"cat": 3, "dog": 6, "ant": 2}


def test_names_that_would_be_ignored_are_an_error(tmp_path):
    write(tmp_path / "x.tar", {"0.jpg": CAT, "0.cls": b"0"})
    (tmp_path / "names.txt").write_text("cat\n")
    assert listed(WebDatasetSource([str(tmp_path)], SourceOptions(class_names=tmp_path / "names.txt")), tmp_path)
    (tmp_path / "classes.csv").write_bytes(encode_classes([("n1", "dog")]))
    with pytest.raises(ConfigError, match=r"--class-names would be ignored: .*classes\.csv defines"):
        listed(WebDatasetSource([str(tmp_path)], SourceOptions(class_names=tmp_path / "names.txt")), tmp_path)
    (tmp_path / "classes.csv").write_text("class,name\n0,dog\n")
    with pytest.raises(DataError, match=r"classes\.csv:1: a list of classes begins with the line index,id,name"):
        listed(WebDatasetSource([str(tmp_path)]), tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": CAT}, "no sample has a label; known are"),
        ({"a.cls": b"0"}, r"no sample can be used(.|\n)*1 sample = 0 used \+ 1 left out:(.|\n)*no image: a \(cls\)"),
        ({"a.jpg": CAT, "b.jpg": DOG, "a.cls": b"0"}, "are not next to each other"),
        ({"a.jpg": CAT, "a.cls": b"0", "b.jpg": DOG, "b.cls": b"0", "a.txt": b""}, "are not next to each other"),
        ({"a.jpg": CAT, "a.cls": b"-1"}, "none of the 1 images has a label"),
        ({"a.jpg": CAT, "a.json": b"{"}, "a.json: not JSON"),
        ({"a.jpg": CAT, "a.json": b'{"label": 1, "target": 2}'}, "target and label, two answers for one image"),
    ],
)
def test_broken_samples_are_named(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        listed(WebDatasetSource([write(tmp_path / "x.tar", files)]), tmp_path)
