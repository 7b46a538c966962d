"""The README's first commands and the start page, run in order on real photos as a reader would, killed on the way.

The commands are those of the pages; ``SMALLER`` adds what makes a training take seconds on a CPU.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
from timm.models import save_for_hf

from pipelines.sources.sample_photos import write_photos
from tests.command import ROOT, Commands, kill_tree

NUM_PHOTOS = 60
TINY = ["global_batch_size=16", "cluster.micro_batch_size=4", "cluster.num_workers=1", "optim.schedule.warmup=1 steps"]
# The beginning of a command → settings that make it small.
SMALLER = {
    "deepspeed": [*TINY, "model.variant=mu/8", "model.img_size=32", "duration=12 epochs", "checkpoint.every=5 steps"],
    "python pretrain/run.py": [*TINY, "model.variant=mu/8", "model.img_size=32"],
    "python -m pipelines bench-data": ["--images-per-second", "100", "--num-images", "20", *TINY],
    "accelerate launch": [*TINY, "duration=2 epochs", "model.img_size=64"],
}
# Not run here: what they need, or the test that runs them.
ELSEWHERE = {
    "git clone": "a repository",
    "cd ": "a shell",
    "source ": "a shell",
    "make demo": "tests/integration/test_demo.py",
    "python -m pipelines watch runs/demo": "the demo's runs",
    "python -m pipelines report runs/demo": "likewise",
    "python -m pipelines predict data/demo": "likewise",
    "sbatch": "tests/slurm",
    "python -m pipelines plan --config configs/pretrain/vit_h14": "tests/integration/test_docs.py",
    "deepspeed --num_gpus 8 pretrain/run.py --config configs/pretrain/vit_l16": "tests/integration/test_docs.py",
}


def commands(page: str) -> Iterator[list[str]]:
    """The commands of a page's ``sh`` blocks, in order."""
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and not any(line.startswith(known) for known in ELSEWHERE):
                yield words


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A working folder as after ``git clone``, with photos in folders of their classes, and weights of timm."""
    for name in ("pretrain", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("configs", "slurm"):
        shutil.copytree(ROOT / name, tmp_path / name)
    write_photos(tmp_path / "photos", NUM_PHOTOS)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    save_for_hf(model, str(tmp_path / "timm_weights"), model_args={"img_size": 32, "depth": 2}, safe_serialization=True)
    return tmp_path


class Reader:
    """Types the commands of a page into one shell."""

    def __init__(self, command: Commands, folder: Path) -> None:
        self.command, self.folder = command, folder
        self.ran: list[str] = []

    def type(self, words: list[str]) -> None:
        line = " ".join(words)
        more = next((more for start, more in SMALLER.items() if line.startswith(start)), [])
        words = [self._mine(word) for word in [*words, *more]]
        self.ran.append(line)
        if words[0] == "deepspeed":
            words[words.index("--num_gpus") + 1] = "2"
            self._kill_once(words)
        self.command.run(*words, cwd=self.folder, timeout_s=600, check=True)

    def _mine(self, word: str) -> str:
        """This reader's own word for a stand-in of the text."""
        photos = self.folder / "photos"
        own = {"/path/to/images": str(photos), "photo.jpg": str(photos / "china" / "0000.jpg")}
        return "timm_weights" if word.startswith("timm/") else own.get(word, word)

    def _kill_once(self, words: list[str]) -> None:
        """The job ends with kill -9 after its first checkpoint; the reader then types the same command again."""
        process = self.command.start(*words, cwd=self.folder)
        while not any((self.folder / "runs/mine/checkpoints").glob("step-*/COMPLETE.json")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        kill_tree(process)
        process.wait()
        assert not (self.folder / "runs/mine/exit.json").exists()


@pytest.mark.slow
def test_photos_become_an_exported_model_by_the_readme(command: Commands, checkout: Path) -> None:
    reader = Reader(command, checkout)
    for words in commands("README.md"):
        reader.type(words)
    assert json.loads((checkout / "runs/my_images/exit.json").read_text())["outcome"] == "complete"
    assert (checkout / "my_images.html").stat().st_size > 10_000
    exported = timm.create_model(f"local-dir:{checkout}/exported/my_images", pretrained=True)
    assert exported.num_classes == 2 and len(reader.ran) >= 7


@pytest.mark.slow
def test_the_start_page_works_to_its_last_line(command: Commands, checkout: Path) -> None:
    reader = Reader(command, checkout)
    for words in commands("docs/index.md"):
        reader.type(words)
        if "verify" in words:
            _write_config(checkout)
    history = [json.loads(line)["kind"] for line in (checkout / "runs/mine/history.jsonl").read_text().splitlines()]
    assert [kind for kind in history if kind != "first_step"] == ["launch", "start", "launch", "resume"], (
        "killed once, and resumed by the same command"
    )
    assert json.loads((checkout / "runs/mine/exit.json").read_text())["outcome"] == "complete"
    exported = timm.create_model(f"local-dir:{checkout}/exported/mine", pretrained=True)
    assert exported.num_classes == 2
    assert reader.ran[-1].startswith("python -m pipelines chain"), "the last command of the page"
    assert os.path.exists(checkout / "results/mine.json") or any(checkout.glob("results/mine*"))


def _write_config(folder: Path) -> None:
    """The page's configs/pretrain/mine.yaml, with the numbers of the cards."""
    (text,) = re.findall(
        r"```yaml\n(# configs/pretrain/mine\.yaml\n.*?)```", (ROOT / "docs/index.md").read_text(), re.S
    )
    for split, shown in (("train", "12_000"), ("val", "1_300")):
        card = json.loads((folder / "data/mine" / split / "card.json").read_text())
        assert text.count(f"num_samples: {shown}") == 1
        text = text.replace(f"num_samples: {shown}", f"num_samples: {card['num_samples']}")
    text = text.replace("num_classes: 37", "num_classes: 2").replace("duration: 30 epochs", "duration: 12 epochs")
    (folder / "configs/pretrain/mine.yaml").write_text(f"{text}global_batch_size: 16\n")
