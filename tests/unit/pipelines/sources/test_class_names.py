"""Lists of classes as users have them: which number is which class, under which id and name."""

from __future__ import annotations

import pytest

from pipelines.sources.class_names import read_class_names
from pretrain.data.storage.classes import encode_classes
from pretrain.errors import ConfigError, DataError

A, B, C = ("tench", "tench"), ("crane", "crane"), ("maillot", "maillot")


@pytest.mark.parametrize(
    ("text", "classes", "numbers"),
    [
        ("tench\ncrane\nmaillot\n", (A, B, C), ()),
        ("tench\r\ncrane\r\nmaillot\r\n\r\n", (A, B, C), ()),
        ("crane\ntench\ncrane\n", (("0", "crane"), ("1", "tench"), ("2", "crane")), ()),
        ("crane, bird\ncrane, machine\n", (("crane, bird",) * 2, ("crane, machine",) * 2), ()),
        ('"crane, bird"\nshark\n', (("crane, bird",) * 2, ("shark",) * 2), ()),
        ("n01,tench, Tinca tinca\nn02,crane\n", (("n01", "tench, Tinca tinca"), ("n02", "crane")), ()),
        ("n01440764 tench, Tinca tinca\nn02 crane\n", (("n01440764", "tench, Tinca tinca"), ("n02", "crane")), ()),
        ("n01\ttench\nn02\tcrane\n", (("n01", "tench"), ("n02", "crane")), ()),
        ("1,crane\n0,tench\n", (A, B), (0, 1)),
        ("0: tench\n1: crane\n", (A, B), (0, 1)),
        ("1 crane\n2 tench\n", (B, A), (1, 2)),
        ("1,crane\n3,tench\n90,maillot\n", (B, A, C), (1, 3, 90)),
        ("0,n01,tench\n1,n02,crane\n", (("n01", "tench"), ("n02", "crane")), (0, 1)),
        ("747 jumbo\n737 max\n", (("747 jumbo",) * 2, ("737 max",) * 2), ()),
        ("index,id,name\n1,n02,crane\n0,n01,tench\n", (("n01", "tench"), ("n02", "crane")), (0, 1)),
        ("id,name\nn01,tench\n", (("n01", "tench"),), ()),
        ("name,class_index\ncrane,1\ntench,0\n", (A, B), (0, 1)),
        ("class_id\tclass_name\nn01\ttench\n", (("n01", "tench"),), ()),
        ("name\ntench\n", (("name", "name"), A), ()),
    ],
)
def test_lists_of_text(tmp_path, text, classes, numbers):
    path = tmp_path / "names.txt"
    path.write_bytes(text.encode())
    found = read_class_names(path)
    assert (found.classes, found.numbers) == (classes, numbers)
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le")):
        path.write_bytes(mark + text.encode(encoding))
        assert read_class_names(path) == found, "a byte-order mark is not part of a name"


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ('["tench", "crane"]', (A, B)),
        ('{"1": "crane", "0": "tench"}', (A, B)),
        ('{"0": ["n01", "tench"], "1": ["n02", "crane"]}', (("n01", "tench"), ("n02", "crane"))),
        ('{"tench": 0, "crane": 1}', (A, B)),
        ('{"1": "tench", "90": "crane"}', (A, B)),
        ('{"id2label": {"0": "tench", "1": "crane"}, "label2id": {}}', (A, B)),
    ],
)
def test_json(tmp_path, text, classes):
    (tmp_path / "names.json").write_text(text)
    assert read_class_names(tmp_path / "names.json").classes == classes


def test_a_table_with_one_column_has_a_header(tmp_path):
    (tmp_path / "names.csv").write_text("name\ntench\ncrane\n")
    assert read_class_names(tmp_path / "names.csv").classes == (A, B)


def test_the_list_of_a_packed_set_is_read_as_it_was_written(tmp_path):
    classes = [("n01", 'crane, "bird"'), ("n02", "crane, machine"), ("n03", "구")]
    (tmp_path / "classes.csv").write_bytes(encode_classes(classes))
    assert list(read_class_names(tmp_path / "classes.csv").classes) == classes


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", ConfigError, "names no class"),
        (b"a\n\nb\n", ConfigError, "names.txt:2: an empty line"),
        (b"a\np\xe9tale\n", DataError, "names.txt:2: not UTF-8 text .byte 0xe9.; .*--encoding"),
        (b"n01,a\nb\n", ConfigError, "line 1 is id,name and line 2 is not"),
        (b"n01,a\nn01,b\n", ConfigError, "the id 'n01' is on two lines"),
        (b'"a\n', ConfigError, "names.txt:1"),
        (b"index,id,name\n0,a\n", ConfigError, "names.txt:2: '0,a' does not fit the header"),
        (b"index,name\n0,a\n0,b\n", ConfigError, "two lines have one number"),
        (b"{0: 'tench, Tinca tinca',\n 1: 'crane'}\n", ConfigError, "names.txt:1: .* is JSON or a Python dict"),
        (b"['tench',\n 'crane']\n", ConfigError, "names.txt:1: .* is JSON or a Python list"),
        (b'item {\n  id: 1\n  name: "tench"\n}\n', ConfigError, "names.txt:1: .* is a label map of TensorFlow"),
        (b"- tench\n- crane\n", ConfigError, "names.txt:1: .* is YAML"),
        (b"# classes\ntench\n", ConfigError, "names.txt:1: .* is a comment"),
    ],
)
def test_lists_that_cannot_be_read_are_named(tmp_path, data, error, message):
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    with pytest.raises(error, match=message):
        read_class_names(path)
    if b"\xe9" in data:
        assert read_class_names(path, "latin-1").classes == (("a", "a"), ("pétale", "pétale"))


@pytest.mark.parametrize("text", ['{"0": "tench", "0": "crane"}', '{"tench": 0, "crane": 1, "tench": 2}'])
def test_a_key_of_json_that_is_there_twice_is_refused(tmp_path, text):
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(ConfigError, match=r"the key '(0|tench)' is there twice"):
        read_class_names(tmp_path / "names.json")


def test_masks_need_the_numbers_from_zero(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("1 person\n2 car\n")
    with pytest.raises(ConfigError, match="its numbers are 1-2; masks need 0-1"):
        read_class_names(path).from_zero("masks")
