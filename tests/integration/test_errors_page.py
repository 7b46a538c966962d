"""docs/errors.md: every command there is run on the spoilt input that it names, and must say what the page says.

python -m tests.integration.test_errors_page     # writes the answers of today into the page
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

PAGE = ROOT / "docs" / "errors.md"
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


def answer_to(command: str) -> str:
    """What a command of the page says, on both outputs; it must leave with an error."""
    words = shlex.split(command)
    assert words.pop(0) == "python"
    take = 2 if words[0] == "-m" else 1
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = MAINS[" ".join(words[:take])](words[take:])
    said = f"{out.getvalue()}{err.getvalue()}".replace(str(ROOT), "/home/user/vit")
    assert code in (1, 2), f"{command}: exit code {code}\n{said}"
    assert "Traceback" not in said
    return said


def shown() -> list[tuple[str, str]]:
    """(command, answer) of every block of the page."""
    return BLOCK.findall(PAGE.read_text())


@pytest.fixture(scope="module")
def spoilt(digits: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    furnish(folder)
    return folder


@pytest.mark.parametrize(("command", "answer"), shown(), ids=lambda value: value[:70])
def test_the_page_says_what_the_command_says(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch, command: str, answer: str
) -> None:
    monkeypatch.chdir(spoilt)
    assert answer_to(command) == answer
    assert not list(spoilt.glob("out/*/index.json")), "nothing half-made looks finished"


def test_every_block_of_the_page_is_run() -> None:
    assert len(shown()) == PAGE.read_text().count("```console") > 20


def write_page() -> None:
    """Puts the answers of today into the page."""
    text = PAGE.read_text()
    with tempfile.TemporaryDirectory() as name:
        furnish(Path(name))
        os.chdir(name)
        answers = {command: answer_to(command) for command, _ in shown()}
        os.chdir(ROOT)
    PAGE.write_text(BLOCK.sub(lambda found: f"```console\n$ {found[1]}\n{answers[found[1]]}```", text))


if __name__ == "__main__":
    write_page()
