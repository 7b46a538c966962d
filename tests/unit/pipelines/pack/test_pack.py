"""Packing as a command: what comes out, what stock webdataset reads, what a second run does, what is refused."""

from __future__ import annotations

import errno
import fcntl
import gc
import io
import json
import os
import re
import subprocess
import sys
import warnings
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from webdataset.compat import WebDataset

from pipelines.__main__ import main
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import load_classes
from pretrain.data.storage.index import ShardTable
from pretrain.data.workers.reader import ShardReader
from tests.unit.pipelines.photos import encode, tree, write_photos

PHOTOS = {"cat": 9, "dog": 8, "owl": 7}


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos", PHOTOS)


def pack(*arguments) -> int:
    return main(["pack", *map(str, arguments)])


def result_of(capsys, *arguments) -> dict:
    assert pack(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@contextmanager
def webdatasets_open_files():
    """webdataset leaves the closing of a tar to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def read_with_webdataset(folder) -> list[dict]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    with webdatasets_open_files():
        return list(WebDataset(urls, shardshuffle=False))


@pytest.mark.parametrize("inside", ["", "/images"])
def test_no_image_of_a_split_folder_is_packed_into_another_split_than_train_and_its_hold_out(tmp_path, inside):
    splits = ("train", "validation", "test")
    root = write_photos(tmp_path / "set", {f"{one}/{name}{inside}": 9 for one in splits for name in ("cat", "dog")})
    assert pack("folder", root, "--out", tmp_path / "out", "--holdout", 0.3) == 0
    sources: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        reader = ShardReader(ShardTable.load(tmp_path / "out" / split))
        assert [name for name, _ in load_classes(tmp_path / "out" / split)] == ["cat", "dog"]
        sources[split] = [reader.record(number)[1].source for number in range(reader.table.num_samples)]
    of_split = {split: {name.partition("/")[0] for name in names} for split, names in sources.items()}
    assert of_split == {"train": {"train"}, "val": {"train", "validation"}, "test": {"test"}}
    assert sum(name.startswith("validation/") for name in sources["val"]) == len(sources["test"]) == 18


def test_stock_webdataset_reads_what_the_index_says(tmp_path, photos):
    assert pack("folder", photos, "--out", tmp_path / "out", "--shard-samples", 5, "--holdout", 0.3) == 0
    seen = []
    for split in ("train", "val"):
        folder = tmp_path / "out" / split
        reader = ShardReader(ShardTable.load(folder))
        names = [identifier for identifier, _ in load_classes(folder)]
        samples = read_with_webdataset(folder)
        assert len(samples) == reader.table.num_samples
        for sample_id, sample in enumerate(samples):
            ours = reader.read(sample_id)
            _, record = reader.record(sample_id)
            assert sample["jpg"] == ours.data == (photos / record.source).read_bytes()
            assert int(sample["cls"]) == ours.labels[0]
            assert names[ours.labels[0]] == record.source.split("/")[0]
            assert record.member == f"{sample['__key__']}.jpg"
            seen.append(record.source)
    assert sorted(seen) == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))


def test_webdatasets_own_decoders_understand_the_members(tmp_path, photos):
    assert pack("folder", photos, "--out", tmp_path / "out") == 0
    url = str(tmp_path / "out" / "train" / "shard-000000.tar")
    with webdatasets_open_files():
        dataset = WebDataset(url, shardshuffle=False).decode("pil").to_tuple("jpg", "cls")
        ((image, label), *_) = list(dataset)  # pyright: ignore[reportArgumentType]
    assert image.size == (16, 20)
    assert label in (0, 1, 2)


def test_nested_labels_become_json_members(tmp_path):
    photos = write_photos(tmp_path / "photos", {"animal/cat": 4, "animal": 2, "plant/tree/oak": 3}, "PNG")
    assert pack("folder", photos, "--nested-labels", "--out", tmp_path / "out", "--name", "nature") == 0
    folder = tmp_path / "out" / "train"
    reader = ShardReader(ShardTable.load(folder))
    for sample_id, sample in enumerate(read_with_webdataset(folder)):
        _, record = reader.record(sample_id)
        assert tuple(json.loads(sample["json"])["labels"]) == record.labels
        assert sample["png"] == (photos / record.source).read_bytes()
        assert len(record.labels) == record.source.count("/")
    card = Card.load(folder)
    assert (card.name, card.labels, card.max_labels, card.num_classes) == ("nature", "multi", 3, 5)


def test_digits_are_packed_with_their_labels(tmp_path, capsys):
    arguments = ("digits", "--classes", "5-9", "--per-class", 4, "--holdout", 0.2, "--out", tmp_path / "out")
    splits = result_of(capsys, *arguments)["splits"]
    assert splits["train"]["num_samples"] == 20
    assert splits["train"]["num_classes"] == splits["val"]["num_classes"] == 5
    bunch: Any = load_digits()
    for split in splits:
        folder = tmp_path / "out" / split
        reader = ShardReader(ShardTable.load(folder))
        assert load_classes(folder) == [(str(digit), str(digit)) for digit in range(5, 10)]
        for sample_id in range(reader.table.num_samples):
            number = int(reader.record(sample_id)[1].source.removeprefix("digit-"))
            sample = reader.read(sample_id)
            assert sample.labels == (bunch.target[number] - 5,)
            pixels = np.asarray(Image.open(io.BytesIO(sample.data)))
            assert np.array_equal(np.rint(pixels / (255 / 16)), bunch.images[number])


def without_times(folder) -> dict[str, bytes]:
    """A packed folder; pack.json without what tells whether the source's files were touched."""
    found = tree(folder)
    state = json.loads(found["pack.json"])
    return found | {"pack.json": json.dumps(state | {"fingerprint": ""}).encode()}


def test_the_bytes_depend_on_source_and_options_alone(tmp_path, photos):
    options = ("--shard-samples", 5, "--holdout", 0.2)
    assert pack("folder", photos, "--out", tmp_path / "a", *options, "--workers", 1) == 0
    for path in sorted(photos.rglob("*.jpg"), reverse=True):  # the same files, written again in another order
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
    assert pack("folder", photos, "--out", tmp_path / "b", *options, "--workers", 2) == 0
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")
    assert pack("folder", photos, "--out", tmp_path / "c", *options, "--seed", 1) == 0
    assert tree(tmp_path / "c")["train/shard-000000.tar"] != tree(tmp_path / "a")["train/shard-000000.tar"]


def test_the_folder_holds_data_set_card_and_classes(tmp_path, photos):
    assert pack("folder", photos, "--out", tmp_path / "out", "--licence", "CC0") == 0
    assert sorted(tree(tmp_path / "out")) == [
        "contents.json",
        "pack.json",
        "train/card.json",
        "train/card.md",
        "train/classes.csv",
        "train/index.json",
        "train/shard-000000.records.safetensors",
        "train/shard-000000.tar",
    ]
    card = Card.load(tmp_path / "out" / "train")
    assert (card.licence, card.num_samples) == ("CC0", 24)
    assert card.source == f"folder {photos}"


def test_a_finished_pack_has_nothing_to_do(tmp_path, photos, capsys):
    arguments = ("folder", photos, "--out", tmp_path / "out", "--shard-samples", 5)
    assert result_of(capsys, *arguments)["status"] == "packed"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = result_of(capsys, *arguments, "--workers", 3)
    assert again["status"] == "unchanged"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again["splits"]["train"]["num_samples"] == 24


def remove(*names):
    def damage(out):
        for name in names:
            (out / name).unlink()

    return damage


def _truncate(name):
    def damage(out):
        (out / name).write_bytes((out / name).read_bytes()[:700])
        (out / "train" / "index.json").unlink()

    return damage


def _leave_temporary_files(out):
    (out / "train" / "index.json").unlink()
    (out / "train" / "shard-000001.tar").rename(out / "train" / "shard-000001.tar.tmp")
    (out / "train" / "card.json.tmp").write_bytes(b"half")
    (out / ".pack.lock").write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        remove("train/index.json"),
        remove("train/index.json", "train/card.json", "train/classes.csv"),
        remove("train/index.json", "train/shard-000002.records.safetensors"),
        remove("train/index.json", "train/shard-000002.records.safetensors", "train/shard-000002.tar"),
        remove("train/index.json", "train/shard-000002.tar"),
        _truncate("train/shard-000003.tar"),
        _truncate("train/shard-000003.records.safetensors"),
        _leave_temporary_files,
        lambda out: [path.unlink() for path in (out / "train").iterdir()],
    ],
    ids=["index", "card", "records", "shard", "tar", "half a tar", "half a record file", "temporaries", "all"],
)
def test_what_a_kill_leaves_is_completed_byte_for_byte(tmp_path, photos, damage, capsys):
    arguments = ("folder", photos, "--out", tmp_path / "out", "--shard-samples", 5)
    assert pack(*arguments) == 0
    whole = tree(tmp_path / "out")
    damage(tmp_path / "out")
    capsys.readouterr()
    assert result_of(capsys, *arguments)["status"] == "packed"
    assert tree(tmp_path / "out") == whole


def fails(capsys, *arguments) -> str:
    """The message of a pack that a user's mistake ends."""
    assert pack(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("extra", [("--seed", 1), ("--shard-samples", 6), ("--holdout", 0.5), ("--classes", "cat")])
@pytest.mark.parametrize("finished", [True, False])
def test_other_options_are_refused(tmp_path, photos, extra, finished, capsys):
    arguments = ("folder", photos, "--out", tmp_path / "out")
    assert pack(*arguments) == 0
    if not finished:
        (tmp_path / "out" / "train" / "index.json").unlink()
    capsys.readouterr()
    before = tree(tmp_path / "out")
    message = fails(capsys, *arguments, *extra)
    assert extra[0].strip("-").replace("-", "_") in message
    assert "choose another --out" in message
    assert tree(tmp_path / "out") == before


def test_a_changed_source_is_refused(tmp_path, photos, capsys):
    arguments = ("folder", photos, "--out", tmp_path / "out")
    assert pack(*arguments) == 0
    (photos / "cat" / "new.jpg").write_bytes(encode(99))
    capsys.readouterr()
    assert "the source has changed" in fails(capsys, *arguments)


def test_a_damaged_finished_pack_is_no_silent_success(tmp_path, photos, capsys):
    arguments = ("folder", photos, "--out", tmp_path / "out")
    assert pack(*arguments) == 0
    tar = tmp_path / "out" / "train" / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    capsys.readouterr()
    assert "shard-000000.tar is truncated" in fails(capsys, *arguments)


def test_bad_files_are_quarantined_with_their_reason(tmp_path, photos, capsys):
    (photos / "cat" / "broken.jpg").write_bytes(encode(50)[:200])
    (photos / "dog" / "text.png").write_text("no image")
    arguments = ("folder", photos, "--out", tmp_path / "out", "--max-bad-rate", 0.1, "--shard-samples", 5)
    result = result_of(capsys, *arguments)
    assert result["splits"]["train"]["num_samples"] == 24
    assert result["splits"]["train"]["quarantined"] == {"decode": 2}
    lines = (tmp_path / "out" / "train" / "quarantine.jsonl").read_text().splitlines()
    entries = {row["source"]: row for row in map(json.loads, lines)}
    assert set(entries) == {"cat/broken.jpg", "dog/text.png"}
    assert "truncated" in entries["cat/broken.jpg"]["detail"].lower()
    assert len(read_with_webdataset(tmp_path / "out" / "train")) == 24
    assert "decode: 2" in (tmp_path / "out" / "train" / "card.md").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_bad_files_are_refused_and_a_higher_rate_goes_on(tmp_path, photos, workers, capsys):
    for index in range(3):
        (photos / "cat" / f"broken{index}.jpg").write_bytes(b"no image")
    arguments = ("folder", photos, "--out", tmp_path / "out", "--shard-samples", 5, "--workers", workers)
    message = fails(capsys, *arguments)
    assert "of 27 images cannot be used (decode ×" in message
    assert "--max-bad-rate 0.01" in message
    assert (tmp_path / "out" / "quarantine.jsonl").is_file()
    assert not (tmp_path / "out" / "train" / "index.json").exists()
    assert "of 27 images" in fails(capsys, *arguments)
    assert pack(*arguments, "--max-bad-rate", 0.2) == 0
    assert pack("folder", photos, "--out", tmp_path / "b", "--shard-samples", 5, "--max-bad-rate", 0.2) == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "b")


def test_two_packs_into_one_folder_are_refused(tmp_path, photos, capsys):
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".pack.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is packing" in fails(capsys, "folder", photos, "--out", out)
    assert pack("folder", photos, "--out", out) == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errno.ENOLCK, "cannot be locked (No locks available); --out needs a file system with locks"),
        (errno.EOPNOTSUPP, "cannot be locked"),
        (errno.EWOULDBLOCK, "another process is packing"),
    ],
)
def test_a_file_system_without_locks_is_not_another_process(tmp_path, photos, capsys, monkeypatch, error, message):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert message in fails(capsys, "folder", photos, "--out", tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["{", "[]", '"x"', '{"version": 2}', '{"version": 2, "options": [], "listing": ""}']
)
def test_a_damaged_state_is_named_with_what_to_do(tmp_path, photos, capsys, content):
    out = tmp_path / "out"
    assert pack("folder", photos, "--out", out) == 0
    (out / "pack.json").write_text(content)
    capsys.readouterr()
    for arguments in (("folder", photos, "--out", out), ("merge", out)):
        assert re.search(r"pack.json (cannot be read|is damaged).*delete .*, and pack again", fails(capsys, *arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder",), "needs a PATH"),
        (("folder", "/does/not/exist"), "/does/not/exist is not a folder"),
        (("digits", "some/path"), "takes no PATH"),
        (("digits", "--nested-labels"), "--nested-labels belongs to folder; with digits it would be ignored"),
        (("digits", "--licence", "MIT"), "--licence belongs to"),
        (("digits", "--holdout", 1.5), "--holdout 1.5 is out of range"),
        (("digits", "--workers", 0), "--workers 0 is out of range"),
        (("digits", "--shard-samples", 0), "--shard-samples 0 is out of range"),
        (("digits", "--classes", "ten"), "'ten' is not a class"),
        (("digits", "--max-pixels", 10**9), "--max-pixels 1000000000 is out of range"),
        (("digits", "--short-side", 9), "--short-side changes images; it needs --images rgb"),
        (("folder", ".", "--wordnet", "x"), "--wordnet is the file of --hierarchy"),
        (("imagenet21k", "a.tar", "--class-names", "x"), "--class-names belongs to folder, manifest, masks"),
        (("webdataset", "/does/not/exist.tar"), "/does/not/exist.tar does not exist"),
    ],
)
def test_mistakes_are_named(tmp_path, arguments, message, capsys):
    assert message in fails(capsys, *arguments, "--out", tmp_path / "out")


def test_a_folder_with_other_files_is_left_alone(tmp_path, photos, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert "holds other files, such as thesis.tex" in fails(capsys, "folder", photos, "--out", tmp_path / "out")
    assert tree(tmp_path / "out") == {"thesis.tex": b"precious"}


def test_splits_are_packed_as_the_folders_say_and_the_card_says_how(tmp_path, capsys):
    photos = write_photos(tmp_path / "set", {"train/cat": 4, "train/dog": 3, "testing/dog": 2})
    assert pack("folder", photos, "--out", tmp_path / "out") == 0
    assert "splits: from the names of folders (--split-from auto)" in capsys.readouterr().out
    cards = {split: Card.load(tmp_path / "out" / split) for split in ("train", "test")}
    assert {split: card.class_counts for split, card in cards.items()} == {"train": [4, 3], "test": [0, 2]}
    assert {card.split_rule for card in cards.values()} == {"from the names of folders (--split-from auto)"}
    assert result_of(capsys, "folder", photos, "--split-from", "none", "--out", tmp_path / "one")["splits"].keys() == {
        "train"
    }
    assert Card.load(tmp_path / "one" / "train").options["of_source.split_from"] == "none"


def test_nothing_is_written_outside_the_folder(tmp_path, photos, capsys):
    (photos / "m.csv").write_text("path,label,split\ncat/000.jpg,a,train\ncat/001.jpg,a,../../escaped\n")
    (photos / "val.txt").write_text("000.jpg")
    before = tree(tmp_path)
    out = tmp_path / "deep" / "out"
    assert "m.csv:3: '../../escaped' cannot be" in fails(capsys, "manifest", photos / "m.csv", "--out", out)
    wrong = ("folder", photos, "--split", f"../x={photos}/val.txt", "--out", out)
    assert "'../x' cannot be the name of a split" in fails(capsys, *wrong)
    assert {name: data for name, data in tree(tmp_path).items() if not name.startswith("deep/out/")} == before


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("256MB", 256_000_000), ("1GiB", 2**30), ("1.5 kB", 1500), ("77", 77), ("2b", 2)]
)
def test_sizes_have_units(tmp_path, photos, text, num_bytes):
    assert pack("folder", photos, "--out", tmp_path / "out", "--shard-bytes", text) == 0
    assert json.loads((tmp_path / "out" / "pack.json").read_text())["options"]["shard_bytes"] == num_bytes


def test_a_size_that_is_none_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        pack("digits", "--out", tmp_path, "--shard-bytes", "lots")
    assert caught.value.code == 2
    assert "'lots' is not a size" in capsys.readouterr().err


HELP = """
import sys
from pipelines.__main__ import main
try:
    code = main({argv!r})
except SystemExit as stop:
    code = stop.code
heavy = sorted({{"torch", "torchvision", "webdataset", "sklearn", "deepspeed"}} & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else code)
"""


@pytest.mark.parametrize("argv", [["--help"], ["pack", "--help"]])
def test_help_has_an_example_and_imports_no_torch(argv):
    done = subprocess.run([sys.executable, "-c", HELP.format(argv=argv)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m pipelines pack digits" in done.stdout


@pytest.mark.parametrize(("argv", "word"), [(["nonsense"], "unknown stage 'nonsense'"), ([], "")])
def test_an_unknown_stage_is_an_error(argv, word, capsys):
    assert main(argv) == 2
    assert word in capsys.readouterr().err


def test_a_pack_of_the_first_version_is_read(tmp_path, capsys):
    arguments = ("digits", "--out", tmp_path / "out", "--per-class", 3)
    assert pack(*arguments) == 0
    path = tmp_path / "out" / "pack.json"
    state = json.loads(path.read_text())
    options = {key: state["options"][key] for key in ("source", "seed", "per_class", "holdout", "shard_samples")}
    path.write_text(json.dumps({"version": 1, "options": options, "listing": "of another kind"}))
    capsys.readouterr()
    assert result_of(capsys, *arguments)["status"] == "unchanged"
    (tmp_path / "out" / "train" / "index.json").unlink()
    assert "begun by an earlier version" in fails(capsys, *arguments)
