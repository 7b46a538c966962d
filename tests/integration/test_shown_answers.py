"""Every ``console`` block of the docs: the command is run, and must say what the page says.

docs/errors.md is about spoilt input, which lies in ``bad/`` of the folder in which the commands are run.
``python -m tests.integration.test_shown_answers`` writes the answers of today into the pages.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import finetune
from pipelines.__main__ import main as stage
from pretrain import run
from pretrain.data.card import Card
from pretrain.data.index import ShardTable
from tests.command import ROOT
from tests.integration.test_docs import _pictures, _weights

PAGES = {path.name: path for path in sorted((ROOT / "docs").glob("*.md")) if "```console" in path.read_text()}
OF_ERRORS = "errors.md"
DIGEST = re.compile(r"\b[0-9a-f]{24,32}\b")  # of packed images: other versions of the libraries, other bytes
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
    _pictures(bad / "photos")
    (bad / "photos" / "cats" / "0.png").write_bytes(b"no image")
    _spoil(bad / "cut", lambda data: data[: len(data) // 2])
    _spoil(bad / "flipped", lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:])
    _spoil(bad / "foreign", lambda data: data[: len(data) // 2])
    for path in [*(bad / "foreign").glob("*.json"), *(bad / "foreign").glob("*.records.safetensors")]:
        path.unlink()
    _without_images(bad / "no_images")
    assert stage(["pack", "digits", "--classes", "0-1", "--out", str(bad / "two")]) == 0
    (bad / "run").mkdir()
    (bad / "run" / "config.resolved.yaml").write_text("name: run\nmodel: {variant: B/16\n")
    _weights(bad / "vit.safetensors")
    _resnet(bad / "resnet.safetensors")


def _spoil(target: Path, spoil: Callable[[bytes], bytes]) -> None:
    shutil.copytree(ROOT / "data/demo/upstream/train", target)
    tar = next(target.glob("*.tar"))
    tar.write_bytes(spoil(tar.read_bytes()))


def _without_images(target: Path) -> None:
    shutil.copytree(ROOT / "data/demo/downstream/val", target)
    table = ShardTable(target, [], num_classes=5, max_labels=1)
    table.save()
    card = Card.load(target).model_copy(update={"num_samples": 0, "num_shards": 0, "index_digest": table.digest})
    (target / "card.json").write_bytes(card.to_json())


def _resnet(path: Path) -> None:
    from pretrain.config.schema.data import EvalTransformConfig
    from pretrain.config.schema.model import ModelConfig
    from pretrain.models.interop import WeightsMetadata, save_weights
    from pretrain.models.zoo import build_model

    config = ModelConfig(name="timm/resnet10t", img_size=32)
    half = (0.5, 0.5, 0.5)
    about = WeightsMetadata.of(config, 5, half, half, eval_transform=EvalTransformConfig())
    save_weights(path, build_model(config, 5).state_dict(), about)


def answer_to(command: str) -> tuple[int, str]:
    """A command's exit code, and what it says on both outputs."""
    words = shlex.split(command)
    assert words.pop(0) == "python"
    take = 2 if words[0] == "-m" else 1
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = MAINS[" ".join(words[:take])](words[take:])
    said = f"{out.getvalue()}{err.getvalue()}".replace(str(ROOT), "/home/user/vit")
    assert "Traceback" not in said
    return code, said


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
    assert DIGEST.sub("…", said) == DIGEST.sub("…", answer)
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
