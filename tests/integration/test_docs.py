"""Every command that the docs show: the target exists, the stage runs, the config passes --check.

Commands in ``sh`` blocks are run, or are of a kind in ``KNOWN``. Of those in running text, in tables and beside their
output, which stand for many or lack a file, stage, target and options must exist; so must each file that is named.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.__main__ import STAGES
from tests.command import ROOT, Commands
from tests.unit.pipelines.collect.test_collect import write_sweep
from tests.unit.pipelines.run_folders import write_run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DIGITS = ["data.shards=data/demo/upstream/train", "data.num_samples=714", "data.num_classes=5"]
# Shown but not run here: what they do is named.
KNOWN = {
    "git clone": "the clone itself",
    ".venv/bin/tensorboard": "serves until it is stopped",
    "cd": "changes the folder",
    "docker": "needs docker; tests/integration/test_public_files.py",
    "enroot": "likewise",
    "apptainer": "likewise",
    "pip install dist/": "tests/integration/test_wheel.py builds and installs the wheel",
    "cp": "copies a file",
    "source": "takes the environment into the shell",
    "sbatch": "needs a cluster; the script is checked by its own tests",
    "SPARE_NODES=1 sbatch": "likewise",
    "export": "sets a variable",
    "python benchmarks/": "benchmarks are run by make bench",
    "python -m pipelines replay": "needs a run with checkpoints; tests/faults/test_replay.py",
    "python -m pipelines doctor --first-light": "trains for minutes; tests/unit/pipelines/doctor/test_first_light.py",
    "python -m pipelines report first_light/first_light.json": "likewise",
    "apt-get install": "needs root and a network",
    "python -m benchmarks.conformance": "takes an hour; tests/unit/benchmarks/test_conformance.py",
    "python -m benchmarks.transfer": "takes an hour; its tiny form: tests/integration/test_transfer_experiment.py",
    "python -m pipelines evaluate data/demo/positions": "needs the set; tests/unit/pipelines/evaluate/test_numbers.py",
    "python -m pipelines predict data/demo/positions": "likewise",
    "python -m pipelines evaluate data/demo/masks": "needs the set; tests/unit/pipelines/evaluate/test_masks.py",
    "python -m pipelines predict data/demo/masks": "likewise",
}


TRAININGS = ("run.py", "finetune.py", "pretrain.run", "pipelines.finetune")


def commands() -> list[tuple[str, str]]:
    """(page, command) for every line of every ``sh`` block, with continued lines joined; each command once."""
    found: dict[str, str] = {}
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = line.split(" #")[0].strip()
                if words:
                    found.setdefault(words, page.name)
    return [(page, words) for words, page in found.items()]


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: value[:60])
def test_command_of_the_docs(command: Commands, digits: None, tmp_path: Path, page: str, words: str) -> None:
    if any(words.startswith(known) for known in KNOWN):
        return
    parts = [_stand_in(part, page, tmp_path) for part in shlex.split(words)]
    if parts[0] == "vit-pretrain":  # the same program; tests/integration/test_wheel.py uses the command
        parts = ["python", "-m", "pipelines", *parts[1:]]
    if parts[0] == "make":
        command.run("make", "--dry-run", *parts[1:], check=True)
    elif any(part.endswith(TRAININGS) for part in parts):
        script = next(index for index, part in enumerate(parts) if part.endswith(TRAININGS))
        arguments = parts[script:] if parts[script].endswith(".py") else ["-m", *parts[script:]]
        (tmp_path / "step-00000001").mkdir()  # as if a checkpoint were there
        (tmp_path / "step-00000001" / "COMPLETE.json").touch()
        arguments = [f"resume.from={tmp_path}" if part.startswith("resume.from=") else part for part in arguments]
        if "--from" in arguments:  # the run may not be there; all else is checked
            place = arguments.index("--from")
            says_no_model = any(part.endswith(("my_images.yaml", "my_images_lora.yaml")) for part in arguments)
            arguments[place + 1] = str(_weights(tmp_path / "weights.safetensors") if says_no_model else tmp_path)
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
        if arguments[0] == "slurm-scripts":
            arguments[1] = str(tmp_path / "scripts")
        if arguments[0] == "status":
            arguments[1] = str(tmp_path)
            (tmp_path / "exit.json").write_text('{"outcome": "complete"}')
        if arguments[0] in ("report", "watch", "goodput"):
            runs = [word for word in arguments if word.startswith("runs")]
            for run in runs:
                arguments[arguments.index(run)] = str(write_run(tmp_path / run.replace("/", "_")))
        if arguments[0] == "bench-data" and "--images-per-second" not in arguments:  # which a GPU would be asked for
            arguments += ["--images-per-second", "100", "--num-images", "50", *DIGITS]
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


def test_every_kind_that_is_not_run_is_shown_somewhere() -> None:
    shown = [words for _, words in commands()]
    assert [kind for kind in KNOWN if not any(words.startswith(kind) for words in shown)] == []


def _stand_in(word: str, page: str, tmp_path: Path) -> str:
    """The demo's data for a reader's, and for a config that the page shows that very text."""
    if word.startswith(("data/mine/", "data.shards=data/mine/")):
        return word.replace("data/mine", "data/demo/downstream")
    for text in re.findall(r"```yaml\n(.*?)```", next(p for p in PAGES if p.name == page).read_text(), re.S):
        name = text.splitlines()[0].removeprefix("# ")
        if name == word:
            path = tmp_path / Path(name).name
            folder = (ROOT / name).parent
            path.write_text(re.sub(r"(?m)^extends: ", f"extends: {folder}/", text))
            return str(path)
    return word


def _weights(path: Path) -> Path:
    """Weights of a small model instead of a trained run."""
    from pretrain.config.schema.model import ModelConfig
    from pretrain.config.schema.transforms import EvalTransformConfig
    from pretrain.models.init import initial_state
    from pretrain.models.interop import save_weights
    from pretrain.models.metadata import WeightsMetadata

    model = ModelConfig(variant="mu/8", img_size=32)
    half, digits = (0.5, 0.5, 0.5), tuple("56789")  # the classes of data/demo/downstream
    about = WeightsMetadata.of(
        model, 5, half, half, eval_transform=EvalTransformConfig(), class_names=digits, class_ids=digits
    )
    save_weights(path, initial_state(model, 5, seed=0), about)
    return path


def _pictures(folder: Path) -> Path:
    from PIL import Image

    for name, colour in (("cats", "red"), ("dogs", "blue")):
        for number in range(40):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + number, 16), colour).save(folder / name / f"{number}.png")
    return folder


MENTION = re.compile(r"(?:python -m |`make |(?:pretrain/run|pipelines/finetune|benchmarks/\w+)\.py )[^`\n|│─]*")


def mentions() -> Iterator[tuple[str, list[str]]]:
    """(page, words) for every command of ours outside of the ``sh`` blocks."""
    for page in PAGES:
        text = re.sub(r"```(?:sh|bash)\n.*?```", "", page.read_text(), flags=re.S)
        for found in MENTION.findall(text):
            words = found.lstrip("`").replace("[", " ").replace("]", " ").split()
            yield page.name, [word.rstrip(":") for word in words]  # ":" follows the command that makes a table


def test_stages_targets_and_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text())
    wrong = []
    for page, words in mentions():
        if words[0] == "make":
            wrong += [f"{page}: {' '.join(words)}: no such target"] * (words[1] not in targets)
            continue
        known = _options(words, capsys)
        options = [match[0] for word in words if (match := re.match(r"--[a-z][\w-]*", word))]
        wrong += [f"{page}: {' '.join(words)}: {option}" for option in options if f"{option} " not in known]
    assert not wrong, "\n".join(wrong)


def _options(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The text that lists the options of a command: its help, or the source of a benchmark."""
    if words[0] != "python":
        if words[0].startswith("benchmarks/"):
            return (ROOT / words[0]).read_text().replace('"', " ")
        return _help(words[0].removesuffix(".py").replace("/", "."), (), capsys)
    if words[2] != "pipelines":
        place = ROOT / words[2].replace(".", "/")
        return (place / "__main__.py" if place.is_dir() else place.with_suffix(".py")).read_text().replace('"', " ")
    if len(words) == 3 or words[3].isupper():  # any of them
        return ""
    known = _help(STAGES[words[3]][0], (), capsys)
    if words[3] == "pack" and len(words) > 4:  # each source has options of its own
        known += _help(STAGES[words[3]][0], (words[4],), capsys)
    return known


_SEEN: dict[tuple[str, ...], str] = {}


def _help(module: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """The output of ``--help``."""
    key = (module, *words)
    if key not in _SEEN:
        with pytest.raises(SystemExit) as left:
            importlib.import_module(module).main([*words, "--help"])
        assert left.value.code == 0
        _SEEN[key] = re.sub(r"[\s,=\]]+", " ", capsys.readouterr().out)
    return _SEEN[key]


FILE = re.compile(r"`((?:pretrain|pipelines|tests|configs|slurm|benchmarks|docs)/[\w./-]+)(?:::(\w+))?`")
NOT_THERE = {"slurm/site.sh": "the reader's own"}


def test_files_that_the_text_names_exist() -> None:
    wrong = []
    for page in PAGES:
        for name, function in FILE.findall(page.read_text()):
            path = ROOT / name
            if name in NOT_THERE or "NAME" in name or "STAGE" in name:
                continue
            if not path.exists() or (function and not re.search(rf"(?m)^(def )?{function}\b", path.read_text())):
                wrong.append(f"{page.name}: {name} {function}".strip())
    assert not wrong, "\n".join(wrong)


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page}: {target}"
