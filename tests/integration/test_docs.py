"""Every command that the docs show: the target exists, the stage runs, the config passes --check."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.command import ROOT, Commands
from tests.unit.pipelines.run_folders import write_run
from tests.unit.pipelines.test_collect import write_sweep

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Shown but not run here: what they do is named.
KNOWN = {
    "git clone": "the clone itself",
    ".venv/bin/tensorboard": "serves until it is stopped",
    "cd": "changes the folder",
    "cp": "copies a file",
    "touch": "makes a file",
    "sbatch": "needs a cluster; the script is checked by its own tests",
    "export": "sets a variable",
    "python benchmarks/": "benchmarks are run by make bench",
    "python -m pipelines evaluate data/demo/positions": "needs the set; tests/unit/pipelines/test_numbers.py",
    "python -m pipelines predict data/demo/positions": "likewise",
}


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line of every ``sh`` block, with continued lines joined."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.split(" #")[0].strip()
                if words:
                    found.append((page.name, words))
    return found


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value[:60])
def test_command_of_the_docs(command: Commands, digits: None, tmp_path: Path, page: str, words: str) -> None:
    if any(words.startswith(known) for known in KNOWN):
        return
    parts = shlex.split(words)
    if parts[0] == "make":
        command.run("make", "--dry-run", *parts[1:], check=True)
    elif "run.py" in words or "finetune.py" in words:
        script = next(index for index, part in enumerate(parts) if part.endswith(("run.py", "finetune.py")))
        arguments = parts[script:]
        arguments = [f"resume.from={tmp_path}" if part.startswith("resume.from=") else part for part in arguments]
        if "--from" in arguments:  # the run may not be there; all else is checked
            place = arguments.index("--from")
            arguments[place + 1] = str(tmp_path)
        extra = [] if {"--print-config", "--check", "--simulate"} & set(arguments) else ["--check"]
        command.run("python", *arguments, *extra, check=True)
    elif parts[1:3] == ["-m", "pipelines"]:
        arguments = parts[3:]
        if arguments[0] == "demo":
            return  # make demo; tests/integration/test_demo.py runs it
        for place in (index for index, word in enumerate(arguments) if word == "--out"):
            arguments[place + 1] = str(tmp_path / Path(arguments[place + 1]).name)
        if arguments[0] == "chain":
            (tmp_path / "site.sh").touch()
            command.run("python", *parts[1:], env={"SITE_FILE": str(tmp_path / "site.sh")}, check=True)
            return
        if arguments[0] == "status":
            arguments[1] = str(tmp_path)
            (tmp_path / "exit.json").write_text('{"outcome": "complete"}')
        if arguments[0] in ("report", "watch"):
            runs = [word for word in arguments if word.startswith("runs")]
            for run in runs:
                arguments[arguments.index(run)] = str(write_run(tmp_path / run.replace("/", "_")))
        if arguments[0] == "doctor":
            done = command.run("python", "-m", "pipelines", *arguments, timeout_s=300)
            assert (done.returncode in (0, 1, 2) and " green, " in done.stdout + done.stderr) or "--json" in arguments
            return
        if arguments[0] in ("figures", "average", "evaluate", "export", "predict", "probe"):
            weights = str(_weights(tmp_path / "weights.safetensors"))
            arguments = [weights if word.startswith("runs/") else word for word in arguments]
        if arguments[0] == "collect":
            write_sweep(tmp_path, "cifar10", [0.99, 0.98])
            arguments[1] = str(tmp_path)
        if "photo.jpg" in arguments:
            arguments[arguments.index("photo.jpg")] = str(next(_pictures(tmp_path / "pictures").rglob("*.png")))
        sources = [part for part in arguments if part.startswith("/path/to/")]
        for source in sources:
            folder = _pictures(tmp_path / "pictures")
            arguments[arguments.index(source)] = str(folder)
        command.run("python", "-m", "pipelines", *arguments, check=True)
    else:
        raise AssertionError(f"{page}: no test knows how to run {words!r}; add it here")


def _weights(path: Path) -> Path:
    """Weights of a small model, in the place of a trained run."""
    from pretrain.config.schema.data import EvalTransformConfig
    from pretrain.config.schema.model import ModelConfig
    from pretrain.models.init import initial_state
    from pretrain.models.interop import WeightsMetadata, save_weights

    model = ModelConfig(variant="mu/8", img_size=32)
    about = WeightsMetadata.of(model, 5, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), eval_transform=EvalTransformConfig())
    save_weights(path, initial_state(model, 5, seed=0), about)
    return path


def _pictures(folder: Path) -> Path:
    from PIL import Image

    for name, colour in (("cats", "red"), ("dogs", "blue")):
        for number in range(40):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + number, 16), colour).save(folder / name / f"{number}.png")
    return folder


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page}: {target}"
