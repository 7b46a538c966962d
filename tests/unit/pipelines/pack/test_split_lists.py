from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.__main__ import main
from pipelines.pack.split_lists import SplitLists
from pipelines.sources.protocol import Item
from pipelines.sources.table import ItemTable
from pretrain.data.storage.index import Records, ShardTable
from pretrain.errors import ConfigError, DataError
from tests.unit.pipelines.photos import write_photos

KEYS = [
    f"{name}/{number}.jpg"
    for name, first in (("apple pie", 1000), ("ramen", 1100))
    for number in range(first, first + 4)
]
WANTED = ["apple pie/1001.jpg", "ramen/1100.jpg"]


def assigned(tmp_path, *contents: bytes, keys=KEYS, rows=None) -> tuple[dict[str, list[str]], list[str]]:
    """Split → keys that lists with these contents put into it, and the remarks."""
    arguments = []
    for split, data in zip(("val", "test"), contents, strict=False):
        (tmp_path / f"{split}.txt").write_bytes(data)
        arguments.append(f"{split}={tmp_path}/{split}.txt")
    lists = SplitLists.load(arguments)
    table = ItemTable.of([Item(key, (0,), 9) for key in keys])
    rows = np.arange(len(keys)) if rows is None else rows
    found = lists.assign(table, rows)
    names = {
        split: [keys[row] for row, at in zip(rows, found, strict=True) if at == index]
        for index, split in enumerate(lists.names)
    }
    return names, lists.notes


FORMS = {
    "keys": "apple pie/1001.jpg\nramen/1100.jpg\n",
    "Windows": "apple pie\\1001.jpg\r\nramen\\1100.jpg\r\n",
    "file names": "1001.jpg\n\n1100.jpg",
    "stems": "1001\n1100\n",
    "Food-101": "apple pie/1001\nramen/1100\n",
    "byte-order mark": "\ufeffapple pie/1001.jpg\nramen/1100.jpg\n",
    "dot and slash": "./apple pie/1001.jpg\n./ramen/1100.jpg\n",
    "below the root": "images/apple pie/1001.jpg\nimages/ramen/1100.jpg\n",
    "absolute": "/data/food/apple pie/1001.jpg\n/data/food/ramen/1100.jpg\n",
    "comments": "# held out\napple pie/1001.jpg  # blurred\nramen/1100.jpg # fine\n",
    "twice": "apple pie/1001.jpg\nramen/1100.jpg\n./ramen/1100\n",
    "Caffe": "apple pie/1001.jpg 0\nramen/1100.jpg 1\n",
    "CUB": "7 apple pie/1001.jpg\n8 ramen/1100.jpg\n",
    "CSV": 'path,label\n"apple pie/1001.jpg",apple\nramen/1100.jpg,ramen\n',
    "header": "file_name\napple pie/1001.jpg\nramen/1100.jpg\n",
    "tabs": "apple pie/1001.jpg\t0\nramen/1100.jpg\t1\n",
}


PLAIN = ("keys", "Windows", "file names", "stems", "Food-101", "byte-order mark", "dot and slash", "twice")


@pytest.mark.parametrize("form", FORMS)
def test_the_forms_in_which_data_sets_publish_their_lists(tmp_path, form):
    names, notes = assigned(tmp_path, FORMS[form].encode())
    assert names == {"val": WANTED}
    assert bool(notes) != (form in (*PLAIN, "below the root", "absolute"))


def test_the_lists_of_oxford_pets(tmp_path):
    keys = [f"images/{name}.jpg" for name in ("Abyssinian_1", "Abyssinian_10", "great_pyrenees_3")]
    lines = b"#Image CLASS-ID SPECIES BREED ID\nAbyssinian_10 1 1 1\ngreat_pyrenees_3 16 2 11\n"
    names, notes = assigned(tmp_path, lines, keys=keys)
    assert names == {"val": keys[1:]}
    assert notes[0].endswith("val.txt: read by its first column")


def test_two_lists_and_rows_that_are_not_packed(tmp_path):
    names, _ = assigned(tmp_path, b"1000\n1101", b"1102", rows=np.array([0, 1, 2, 6]))
    assert names == {"val": ["apple pie/1000.jpg"], "test": ["ramen/1102.jpg"]}


def test_names_of_files_in_another_encoding(tmp_path):
    keys = ["a/caf\udce9.jpg", "a/x.jpg"]
    assert assigned(tmp_path, b"a/caf\xe9.jpg\n", keys=keys)[0] == {"val": keys[:1]}
    with pytest.raises(DataError, match="not UTF-8 text: save it as UTF-8"):
        assigned(tmp_path, "고양이.jpg".encode("cp949"), keys=["a/고양이.jpg"])


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            [b"ramen/1100.JPG\n"],
            r"1 of its 1 images .* 'ramen/1100.JPG'; .* 'ramen/1100.jpg' differs .* upper and lower",
        ),
        ([b"tea/1100.jpg\nramen/1101.jpg"], "1 of its 2 images are not in the source, such as 'tea/1100.jpg'"),
        ([b"train/ramen/1100.jpg"], "not in the source, such as 'train/ramen/1100.jpg'"),
        ([b"1000 1\n1001 0\n"], "2 of its 2 images are not in the source, such as '1000 1'"),  # an index and a flag?
        ([b"1100", b"ramen/1100"], "'ramen/1100.jpg' is on the lists of val and test"),
    ],
)
def test_a_name_that_means_no_image_or_two_splits_is_refused(tmp_path, contents, message):
    with pytest.raises(DataError, match=message):
        assigned(tmp_path, *contents)


def test_a_name_that_fits_two_images_is_refused_but_a_complete_key_is_not(tmp_path):
    keys = ["1.jpg", "a/1.jpg", "b/1.jpg"]
    assert assigned(tmp_path, b"1.jpg", keys=keys)[0] == {"val": ["1.jpg"]}
    with pytest.raises(DataError, match=r"'1' fits '1.jpg' and .*write the complete key"):
        assigned(tmp_path, b"1", keys=keys)


@pytest.mark.parametrize(("content", "message"), [(b"", "names no image"), (b"\n \r\n", "names no image")])
def test_an_empty_list_is_refused(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        assigned(tmp_path, content)


@settings(max_examples=300, derandomize=True, deadline=None)
@example(b"name")  # a header and nothing else
@given(st.binary(max_size=40) | st.text("./ ,#\t\n\"'10ramen\0\ufeff", max_size=24).map(str.encode))
def test_any_bytes_are_a_list_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    try:
        names, _ = assigned(folder, data)
    except (ConfigError, DataError) as error:
        assert "--split" in str(error)
        return
    assert set(names["val"]) <= set(KEYS)
    assert names["val"]


def test_a_list_in_another_encoding_is_read_where_it_is_named(tmp_path, capsys):
    root = write_photos(tmp_path / "photos", {"고양이": 2, "개": 2})
    (tmp_path / "val.txt").write_bytes("고양이/000.jpg\n".encode("cp949"))
    command = ["pack", "folder", str(root), "--split", f"val={tmp_path}/val.txt", "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 2
    assert "name its encoding with --encoding" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "b"), "--encoding", "cp949"]) == 0
    records = Records.open(tmp_path / "b" / "val" / "shard-000000.records.safetensors")
    assert [records[0].source, len(records)] == ["고양이/000.jpg", 1]


def test_tasks_of_an_array_and_the_merge_keep_the_encoding_of_the_lists(tmp_path):
    root = write_photos(tmp_path / "photos", {"고양이": 2, "개": 2})
    (tmp_path / "val.txt").write_bytes("고양이/000.jpg\n".encode("cp949"))
    options = ["--split", f"val={tmp_path}/val.txt", "--encoding", "cp949", "--workers", "1"]
    out = str(tmp_path / "out")
    assert main(["pack", "folder", str(root), "--out", out, *options, "--task", "1/1"]) == 0
    assert main(["pack", "merge", out]) == 0
    assert ShardTable.load(tmp_path / "out" / "val").num_samples == 1
