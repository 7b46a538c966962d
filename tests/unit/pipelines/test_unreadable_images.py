"""One rule for every stage that reads images: those that cannot be read are counted, and the exit code is 0.

Only a set of which not one image can be read is an error.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.unit.pipelines.evaluate.test_evaluate import save
from tests.unit.pipelines.photos import encode, write_photos
from tests.unit.pipelines.sources.test_tars import add

BROKEN = b"\xff\xd8\xff nothing"
CLASSES = ("cat", "dog")


def shards(folder: Path, num_broken: int) -> Path:
    """Four packed images that nobody has decoded before."""
    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number in range(4):
            add(tar, f"{number}.jpg", BROKEN if number < num_broken else encode(number))
            add(tar, f"{number}.cls", str(number % 2).encode())
    (folder.parent / "names.txt").write_text("\n".join(CLASSES))
    main(["verify", str(folder), "--class-names", str(folder.parent / "names.txt")])
    return folder


@pytest.mark.parametrize("stage", ["predict", "evaluate", "dedup"])
@pytest.mark.parametrize("num_broken", [0, 1, 4])
def test_an_unreadable_image_does_not_fail_a_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str, num_broken: int
) -> None:
    images = shards(tmp_path / "set", num_broken)
    write_photos(tmp_path / "test", {"a": 2})
    options = {
        "predict": ["--from", str(save(tmp_path / "w.safetensors", CLASSES))],
        "evaluate": ["--from", str(save(tmp_path / "w.safetensors", CLASSES)), "--num-workers", "0"],
        "dedup": ["--against", str(tmp_path / "test"), "--out", str(tmp_path / "out"), "--workers", "1"],
    }[stage]
    capsys.readouterr()
    code = main([stage, str(images), *options])
    shown = capsys.readouterr()
    if num_broken == 4:
        expected = "no image could be read, of 4" if stage == "predict" else "none of its 4 images could be read"
        assert code == 2 and expected in shown.err
    else:
        assert code == 0
        assert (f"{num_broken} left out" in shown.out + shown.err) == (num_broken > 0)
