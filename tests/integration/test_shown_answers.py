"""Every ``console`` block of the docs: the command is run, and must say what the page says.

docs/errors.md is about spoilt input, which is in ``bad/`` of the folder in which the commands are run.
``python -m tests.integration.test_shown_answers`` writes the answers of today into the pages.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines import finetune
from pipelines.__main__ import main as stage
from pipelines.sources.array_sets import encode_grey
from pretrain import run
from pretrain.files import digest
from tests.command import ROOT
from tests.integration.test_docs import _pictures, _weights

PAGES = {path.name: path for path in sorted((ROOT / "docs").glob("*.md")) if "```console" in path.read_text()}
OF_ERRORS = "errors.md"
DIGEST = re.compile(r"\b[0-9a-f]{24,32}\b")  # of packed images: other versions of the libraries, other bytes
SECONDS = re.compile(r"\bin [\d.]+ s\b")
BLOCK = re.compile(r"```console\n\$ (.+)\n((?:(?!```).*\n)*)```")
MAINS: dict[str, Callable[[list[str]], int]] = {
    "-m pipelines": stage,
    "pretrain/run.py": run.main,
    "pipelines/finetune.py": finetune.main,
}


def furnish(folder: Path) -> None:
    """The demo's sets and the configs, and what is wrong, in ``bad/``."""
    for name in ("configs", "data"):
        (folder / name).symlink_to(ROOT / name)
    bad = folder / "bad"
    (bad / "empty").mkdir(parents=True)
    (bad / "demo.yaml").write_text("extends: ../configs/pretrain/demo_digits.yaml\noptim:\n  learning_rate: 1e-3\n")
    (bad / "table.csv").write_text("path,label\nphotos/cats/1.png,cat\nphotos/cats/2.png\n")
    _label_tables(bad)
    _pictures(bad / "photos")
    _collection(folder / "photos")
    (bad / "photos" / "cats" / "0.png").write_bytes(b"no image")
    for place in ("train/cats", "val/cats", "extra/cats"):
        shutil.copytree(bad / "photos" / "dogs", bad / "mixed" / place)
    (bad / "val.txt").write_text("dogs/1.png\ndogs/7.PNG\n")
    _masks(bad / "pairs")
    _spoil(bad / "cut", lambda data: data[: len(data) // 2])
    _spoil(bad / "flipped", lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:])
    _hostile_index(bad / "hostile")
    assert stage(["pack", "digits", "--classes", "0-1", "--out", str(bad / "two")]) == 0
    (bad / "run").mkdir()
    (bad / "run" / "config.resolved.yaml").write_text("name: run\nmodel: {variant: B/16\n")
    _weights(bad / "vit.safetensors")
    _resnet(bad / "resnet.safetensors")


def _collection(photos: Path) -> None:
    """Two classes of pictures, and what else people have in such a folder."""
    for number, name in enumerate((*("cat",) * 9, *("dog",) * 6)):
        (photos / name).mkdir(parents=True, exist_ok=True)
        picture = np.full((24, 32), 10 * number, np.uint8)
        (photos / name / f"{number:02d}.png").write_bytes(encode_grey(picture))
    (photos / "cat" / "cut.png").write_bytes(encode_grey(np.zeros((24, 32), np.uint8))[:50])
    for name, data in (("cat/notes.txt", b""), ("cat/.DS_Store", b""), ("dog/IMG_1.heic", b"\0\0\0\x18ftypheic")):
        (photos / name).write_bytes(data)
    (photos / "dog" / "annexed.png").symlink_to("/annex/blob")
    (photos / "puppy").symlink_to("dog")
    (photos / "bird").mkdir()


def _label_tables(bad: Path) -> None:
    """Labels that could be read in several ways."""
    images = [f"photos/cats/{number}.png" for number in (1, 2)]
    lists = zip(images, ("[1, 0]", "[0, 1]"), strict=True)
    (bad / "lists.jsonl").write_text("".join(f'{{"path": "{path}", "label": {text}}}\n' for path, text in lists))
    for name, labels, encoding in (
        ("captions", ("a cat on a sofa", "two cats at night"), "utf-8"),
        ("korean", ("고양이", "고양이"), "cp949"),
    ):
        rows = "".join(f"{path},{label}\n" for path, label in zip(images, labels, strict=True))
        (bad / f"{name}.csv").write_bytes(f"path,label\n{rows}".encode(encoding))


def _masks(target: Path) -> None:
    """A figure in each mask, stored as 255."""
    for kind in ("images", "masks"):
        (target / kind).mkdir(parents=True)
    for number in range(4):
        figure = np.zeros((24, 32), np.uint8)
        figure[4:20, 2 + number : 12 + number] = 255
        (target / "images" / f"{number}.png").write_bytes(encode_grey(figure // 2))
        (target / "masks" / f"{number}.png").write_bytes(encode_grey(figure))
    (target / "names.txt").write_text("background\nfigure\n")


def _spoil(target: Path, spoil: Callable[[bytes], bytes]) -> None:
    shutil.copytree(ROOT / "data/demo/upstream/train", target)
    tar = next(target.glob("*.tar"))
    tar.write_bytes(spoil(tar.read_bytes()))


def _hostile_index(target: Path) -> None:
    """An index that wants its reader to run a command, with a digest that fits."""
    shutil.copytree(ROOT / "data/demo/upstream/train", target)
    content = json.loads((target / "index.json").read_text())
    content.pop("digest")
    content["shards"][0][0] = "$(rm -rf ~)shard.tar"
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    (target / "index.json").write_text(json.dumps(content | {"digest": digest(canonical)}))


def _resnet(path: Path) -> None:
    from pretrain.config.schema.model import ModelConfig
    from pretrain.config.schema.transforms import EvalTransformConfig
    from pretrain.models.families.registry import build_model
    from pretrain.models.interop import save_weights
    from pretrain.models.metadata import WeightsMetadata

    config = ModelConfig(name="timm/resnet10t", img_size=32)
    half = (0.5, 0.5, 0.5)
    about = WeightsMetadata.of(config, 5, half, half, eval_transform=EvalTransformConfig())
    save_weights(path, build_model(config, 5).state_dict(), about)


def answer_to(command: str) -> tuple[int, str]:
    """A command's exit code and both of its outputs."""
    words = shlex.split(command)
    assert words.pop(0) == "python"
    take = 2 if words[0] == "-m" else 1
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = MAINS[" ".join(words[:take])](words[take:])
    said = f"{out.getvalue()}{err.getvalue()}".replace(str(ROOT), "/home/user/vit")
    assert "Traceback" not in said
    return code, said


def _steady(text: str) -> str:
    """Without what differs from run to run, and between versions of the libraries."""
    return SECONDS.sub("in … s", DIGEST.sub("…", text))


def shown() -> list[tuple[str, str, str]]:
    """(page, command, answer) of every block."""
    return [(page, *block) for page, path in PAGES.items() for block in BLOCK.findall(path.read_text())]


@pytest.fixture(scope="module")
def spoilt(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    furnish(folder)
    return folder


@pytest.mark.parametrize(("page", "command", "answer"), shown(), ids=lambda value: value[:70])
def test_the_page_says_what_the_command_says(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch, page: str, command: str, answer: str
) -> None:
    monkeypatch.chdir(spoilt)
    code, said = answer_to(command)
    assert _steady(said) == _steady(answer)
    assert code in ((1, 2) if page == OF_ERRORS else (2,) if "error: " in answer else (0,))
    assert not list(spoilt.glob("out/*/index.json")), "nothing half-made looks finished"


def test_every_block_is_run() -> None:
    assert len(shown()) == sum(path.read_text().count("```console") for path in PAGES.values()) > 25


def write_pages() -> None:
    """Puts the answers of today into the pages."""
    with tempfile.TemporaryDirectory() as name:
        furnish(Path(name))
        os.chdir(name)
        answers = {command: answer_to(command)[1] for _, command, _ in shown()}
        os.chdir(ROOT)
    for path in PAGES.values():
        text = BLOCK.sub(lambda found: f"```console\n$ {found[1]}\n{answers[found[1]]}```", path.read_text())
        path.write_text(text)


if __name__ == "__main__":
    write_pages()
