"""``report --submission``: the entry of a run to a race, its rules, and a checker that finds what is inconsistent."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pipelines.report import cli as report
from pipelines.report import submission
from pipelines.report.race import RACES, S16_77
from pipelines.report.submission_check import problems
from pretrain.config import changes
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError, DataError, UserError
from tests.command import ROOT
from tests.unit.pipelines.run_folders import write_run

# A start on two ranks that is killed after step 60, and one on four ranks that continues from step 50, 15 s later.
TIMES: list[dict[str, Any]] = [
    {"kind": "begin", "start": 1, "step": 0, "ms": {}, "began_ms": 1_000_000, "world_size": 2},
    {"kind": "spent", "start": 1, "step": 0, "ms": {"startup": 4_000}, "from_step": 0},
    {"kind": "spent", "start": 1, "step": 50, "ms": {"step": 30_000, "data": 1_000}},
    {"kind": "spent", "start": 1, "step": 50, "ms": {"evaluate": 2_000}},
    {"kind": "spent", "start": 1, "step": 60, "ms": {"step": 5_000}},
    {"kind": "begin", "start": 2, "step": 0, "ms": {}, "began_ms": 1_060_000, "world_size": 4}
    | {"seen_before_ms": 1_045_000},
    {"kind": "spent", "start": 2, "step": 50, "ms": {"startup": 3_000, "load": 1_000}, "from_step": 50},
    {"kind": "spent", "start": 2, "step": 100, "ms": {"step": 20_000}},
    {"kind": "spent", "start": 2, "step": 100, "ms": {"evaluate": 1_500}},
    {"kind": "spent", "start": 2, "step": 100, "ms": {"save": 9_000}},
    {"kind": "end", "start": 2, "step": 100, "ms": {"shutdown": 9_000}, "outcome": "complete", "reason": "done"},
]
IMAGENET = (
    *(
        "model.variant=S/16",
        "model.depth=12",
        "model.img_size=224",
        "data.num_samples=1281167",
        "data.num_classes=1000",
    ),
    "evaluation.sets.val.num_samples=50000",
)


# Images at their own aspect ratio, with so many patches.
NATIVE = (
    "data.augreg=null data.train_transform=null data.train_transform.crop=native data.train_transform.max_tokens=256 "
    "data.eval_transform=null data.eval_transform.resize=native data.eval_transform.max_tokens={}"
)


def timed_run(path: Path, *overrides: str) -> Path:
    """A run with the times above; its val/top1 is 0.25 after 50 and 0.5 after 100 steps."""
    run = write_run(path, *overrides, resumed_at=50)
    (run / "timesheet.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in TIMES))
    return run


def written(run: Path, *arguments: str) -> dict[str, Any]:
    """The file that the command writes."""
    out = run.parent / f"{run.name}.json"
    assert report.main([str(run), "--submission", "--out", str(out), *arguments]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timed_run(tmp_path_factory.mktemp("entry") / "run")


@pytest.fixture(scope="module")
def entry(a_run: Path) -> dict[str, Any]:
    return written(a_run, "--target", "val/top1=0.5")


@pytest.fixture
def run(a_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to spoil it."""
    return Path(shutil.copytree(a_run, tmp_path / "run"))


def test_what_a_run_took_to_its_target(entry: dict[str, Any]) -> None:
    """Expected values by hand: the first start lasts 42 s and is lost for 3 s, the second begins 60 s after it."""
    assert (entry["race"], entry["step"], entry["samples"]) == (None, 100, 100 * 64)
    assert entry["seconds"] == 60 + 3 + 1 + 20 + 1.5
    assert entry["seconds_without_evaluation"] == 85.5 - 2 - 1.5
    assert entry["gpu_hours"] == pytest.approx((2 * (42 + 3) + 4 * 25.5) / 3600)
    assert [(point["step"], point["seconds"], point["value"]) for point in entry["curve"]] == [
        (50, 37.0, 0.25),
        (100, 85.5, 0.5),
    ]
    assert entry["data_order"]["lines"] == 100 and entry["devices"] == ["<cpu & co>"]
    assert entry["source"] == "5" * 32 and entry["settings"]["model"]["variant"] == "nano/2"


def test_the_clock_ends_at_the_target(run: Path, entry: dict[str, Any]) -> None:
    early = written(run, "--target", "val/top1=0.2")
    assert (early["step"], early["seconds"], early["seconds_without_evaluation"]) == (50, 37.0, 35.0)
    assert early["gpu_hours"] == pytest.approx(2 * 37 / 3600) and early["data_order"]["lines"] == 50
    assert early["exaflops"] == pytest.approx(entry["exaflops"] / 2)


def test_steps_with_small_images_cost_less(tmp_path: Path, entry: dict[str, Any]) -> None:
    """The first 50 of 100 steps have a quarter of the patches; targets are reached after them and at the end."""
    run = timed_run(tmp_path / "run", "data.resolution=[[0, 4], [50 %, 8]]")
    small = written(run, "--target", "val/top1=0.2")
    both = written(run, "--target", "val/top1=0.5")
    assert small["step"] == 50 and small["exaflops"] < entry["exaflops"] / 4
    assert both["exaflops"] == pytest.approx(small["exaflops"] + entry["exaflops"] / 2)


def test_the_file_fits_its_schema(entry: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "configs/schema/submission.schema.json").read_text())
    value = {key: content for key, content in entry.items() if key != "blake2b"}
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(value)
    for key in value:
        assert not validator.is_valid({name: content for name, content in value.items() if name != key}), key


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: Any) -> None:
        for key in path[:-1]:
            value = value[key]
        value[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("seconds", to=80.0), "seconds must be 85.5"),
        (_set("seconds_without_evaluation", to=85.5), "seconds_without_evaluation must be 82.0"),
        (_set("gpu_hours", to=0.01), "gpu_hours must be 0.05"),
        (_set("exaflops", to=1.0), "exaflops must be"),
        (_set("samples", to=64), "samples must be 6,400"),
        (_set("step", to=101), "after the end of the run"),
        (_set("seed", to=12), "seed and run"),
        (_set("settings", "optim", "lr", to=0.5), "config_digest"),
        (_set("settings", "optim", "lr", to=-1.0), "not valid"),
        (_set("curve", 1, "value", to=0.4), "below the target"),
        (_set("curve", 0, "value", to=0.9), "reached at step 50 already"),
        (_set("curve", 0, "seconds", to=90.0), "must increase"),
        (_set("curve", 1, "step", to=99), "must end at"),
        (_set("starts", 1, "parts", "step", "ms", to=10_000), "seconds must be"),
        (_set("starts", 1, "parts", "step", "gpu_ms", to=10_000), "gpu_ms is not"),
        (_set("starts", 0, "parts", "coffee", to={"ms": 0, "gpu_ms": 0}), "unknown parts coffee"),
        (_set("target", "metric", to="test/top1"), "no evaluation set test"),
        (_set("race", to="nothing"), "unknown 'nothing'"),
        (_set("race", to="s16_77"), "the race is to top1 0.77309"),
    ],
)
def test_what_is_inconsistent(entry: dict[str, Any], change: Callable[[dict[str, Any]], None], words: str) -> None:
    value = json.loads(json.dumps({key: content for key, content in entry.items() if key != "blake2b"}))
    assert problems(submission.parsed(value, "entry")) == []
    change(value)
    assert words in "; ".join(problems(submission.parsed(value, "entry")))


def test_faster_than_its_devices(entry: dict[str, Any]) -> None:
    """The starts held devices for 160 seconds of productive steps at most: 2 · 35 s and 4 · 20 s."""
    value = json.loads(json.dumps({key: content for key, content in entry.items() if key != "blake2b"}))
    value["devices"] = ["NVIDIA A100-SXM4-80GB"]
    assert problems(submission.parsed(value, "entry")) == []
    value["exaflops"] = 312e12 * 160 / 1e18
    assert "exceed the peak" in "; ".join(problems(submission.parsed(value, "entry")))


def test_an_edited_file_is_refused(run: Path, tmp_path: Path) -> None:
    written(run, "--target", "val/top1=0.5")
    path = tmp_path / "run.json"
    assert report.main([str(path), "--submission"]) == 0
    path.write_text(path.read_text().replace('"seconds": 85.5', '"seconds": 25.5'))
    with pytest.raises(ConfigError, match="hash that it was written with"):
        report.main([str(path), "--submission"])
    value = {key: content for key, content in json.loads(path.read_text()).items() if key != "blake2b"}
    submission.write(path, submission.parsed(value, "edited"))
    with pytest.raises(DataError, match=r"seconds must be 85\.5"):
        report.main([str(path), "--submission"])


def test_an_entry_to_the_race(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = []
    for seed in range(3):
        run = timed_run(tmp_path / f"run{seed}", *IMAGENET, f"seed={seed}")
        _reaching_it(run)
        entry = written(run)
        assert (entry["race"], entry["target"]) == ("s16_77", {"metric": "val/top1", "value": 1 - 0.22691})
        seconds.append(entry["seconds"])
    capsys.readouterr()
    assert report.main([*(str(tmp_path / f"run{seed}.json") for seed in range(3)), "--submission"]) == 0
    said = capsys.readouterr()
    assert "median of 3 seeds: 1 min 26 s" in said.out and said.out.count("s16_77") == 3
    assert said.err.count("the speed was not checked") + said.out.count("the speed was not checked") == 3
    path = str(tmp_path / "run0.json")
    with pytest.raises(DataError, match="same seed"):
        report.main([path, path, "--submission"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=3", ""),
        ("model.rope=axial", ""),
        ("model.variant=S/14", "patches of S/16"),
        ("model.embed_dim=768", "patches of S/16"),
        ("model.img_size=192", "img_size must be 224"),
        (NATIVE.format(256), "at most 196 patches"),
        (NATIVE.format(196), ""),
        ("init.from=runs/other", "init.from"),
        ("data.num_samples=14000000", "training images"),
        ("evaluation.sets.val.num_samples=12811", "all 50,000 validation images"),
        ("evaluation.sets.val.targets=imagenet_real", "with their own labels"),
    ],
)
def test_the_rules(override: str, words: str) -> None:
    experiment = load_experiment(ROOT / "configs/speedrun/s16_77.yaml", overrides=override.split()).experiment
    found = list(RACES[S16_77].breaches(experiment, "val"))
    assert len(found) == bool(words) and words in "".join(found)


def _relabelled(run: Path) -> None:
    """The second launch had other settings."""
    first, *rest = (run / "history.jsonl").read_text().splitlines(keepends=True)
    changed = [re.sub(r'"digest": "\w+"', f'"digest": "{"0" * 24}"', line) for line in rest]
    (run / "history.jsonl").write_text("".join([first, *changed]))


def _reaching_it(run: Path) -> None:
    """The accuracy of the race, by the demo's network."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "eval", "step": 100, "time": 2.0, "val/top1": 0.7735}) + "\n")


def _without_source(run: Path) -> None:
    path = run / "history.jsonl"
    path.write_text(path.read_text().replace('"source"', '"other"'))


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (lambda run: None, [], "has reached 0.50000 at most; the target is 0.77309"),
        (lambda run: None, ["--target", "test/top1=0.5"], "no evaluation has test/top1; there are val/5_shot"),
        (lambda run: None, ["--target", "val/top1"], "METRIC=VALUE"),
        (lambda run: None, ["--target", "val/top1=50"], "METRIC=VALUE"),
        (lambda run: None, ["--target", "val/top1=0.5", "--price", "2"], "--price"),
        (_reaching_it, [], "widths, depth, heads and patches of S/16"),
        (_relabelled, ["--target", "val/top1=0.5"], "settings that decide the result changed"),
        (_without_source, ["--target", "val/top1=0.5"], "did not record its code"),
        (lambda run: (run / "timesheet.jsonl").unlink(), ["--target", "val/top1=0.5"], "no usable timesheet"),
        (lambda run: (run / "config.resolved.yaml").unlink(), ["--target", "val/top1=0.5"], "without its config"),
    ],
)
def test_no_submission(run: Path, spoil: Callable[[Path], Any], arguments: list[str], words: str) -> None:
    spoil(run)
    out = run.parent / "out.json"
    with pytest.raises(UserError, match=re.escape(words)):
        report.main([str(run), "--submission", "--out", str(out), *arguments])
    assert not out.exists()


def test_the_digest_of_saved_settings_is_that_of_the_run(entry: dict[str, Any]) -> None:
    assert changes.digest(entry["settings"]) == entry["config_digest"]
