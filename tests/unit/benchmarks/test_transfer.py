"""The experiment of benchmarks/transfer.py: which runs there are, which learning rate counts, what the tables say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.transfer import wanted
from benchmarks.transferring.cells import FULL, POSITIONS, Plan
from benchmarks.transferring.runs import Results, Run, all_runs, arguments_of, check_same, settings_of
from benchmarks.transferring.sets import SETS
from benchmarks.transferring.tables import Tables, fill, shown
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError, DataError
from pretrain.models.families.registry import family_of


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The whole plan over sets of which there are only the cards."""
    for dataset in SETS.values():
        for split in (dataset.train, dataset.dev, dataset.test):
            labels = "multi" if dataset.multi_label else "single"
            (tmp_path / split).mkdir(parents=True, exist_ok=True)
            card = {"num_samples": 1000, "num_classes": 10, "labels": labels}
            (tmp_path / split / "card.json").write_text(json.dumps(card))
    return Plan(FULL, tmp_path, photos=True)


def line(run: str, **metrics: float) -> dict[str, Any]:
    named = {name.replace("__", "/"): value for name, value in metrics.items()}
    return {
        "run": run, "metrics": named, "failed": "" if metrics else "diverged", "seconds": 2.0, "cpu_seconds": 1.0
    }  # fmt: skip


def test_every_cell_is_a_config_that_the_project_takes(plan: Plan, tmp_path: Path) -> None:
    results = Results(tmp_path / "none", plan.cells)
    for cell in plan.cells.values():
        settings = settings_of(Run(cell, 1, 1e-3), results, tmp_path, None)
        assert settings is not None
        words = arguments_of(settings)
        experiment = load_experiment(words[1], overrides=words[2:]).experiment
        assert experiment.seed == 1
        assert experiment.optim.lr == 1e-3
        family_of(experiment.model).geometry(experiment.model)
        assert ("photos" in cell.key or "resolution" in cell.key) == (experiment.model.img_size == FULL.high)


def test_what_a_cell_needs_is_a_cell_and_stands_before_it(plan: Plan) -> None:
    keys = list(plan.cells)
    for number, cell in enumerate(plan.cells.values()):
        for needed in (cell.source, cell.rates if isinstance(cell.rates, str) else None):
            assert needed is None or keys.index(needed) < number


def test_without_photos_no_cell_needs_them(plan: Plan) -> None:
    cells = Plan(FULL, plan.data, photos=False).cells
    assert not any("photos" in key or "resolution" in key for key in cells)
    assert not any("few_photos" in str(cell.settings) for cell in cells.values())


def test_seed_0_of_everything_comes_first(plan: Plan) -> None:
    runs = all_runs(list(plan.cells.values()), 3)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run.name for run in runs}) == len(runs)
    trials = [run.rate for run in runs if run.cell.key == "scale/resnet/100"]
    assert trials == [*FULL.upstream_rates, None, None]


def test_only_takes_what_is_needed_along(plan: Plan) -> None:
    assert wanted(plan.cells, ["resolution/fashion"]) == {
        "resolution/fashion/new", "transfer/photos/fashion", "scale/vit_small/100"
    }  # fmt: skip
    assert wanted(plan.cells, []) == set(plan.cells)
    with pytest.raises(ConfigError, match="no cell begins so"):
        wanted(plan.cells, ["scael"])


def test_the_dev_split_chooses_and_a_failed_trial_is_the_worst(plan: Plan, tmp_path: Path) -> None:
    results, cell = Results(tmp_path / "results.jsonl", plan.cells), plan.cells["scale/vit_small/100"]
    first, second, third = (Run(cell, 0, rate).name for rate in FULL.upstream_rates)
    results.add(line(third, dev__top1=0.4))
    results.add(line(first, dev__top1=0.5, test__top1=0.9))
    assert results.rate(cell) is None  # a trial is still out
    results.add(line(second, dev__top1=0.6, test__top1=0.1))
    assert results.rate(cell) == results.rate(plan.cells["positions/none"]) == FULL.upstream_rates[1]
    assert results.final(cell, 0) == second
    results.add(line(second))
    assert results.final(cell, 0) == first
    results.add(line(first, dev__top1=float("nan")))
    assert results.final(cell, 0) == third


def test_results_are_read_again_and_a_line_cut_short_is_passed_over(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path, plan.cells).add(line("a", test__top1=0.25))
    with open(path, "a") as file:
        file.write('\n{"run": "b", "met')
    Results(path, plan.cells).add(line("c", test__top1=0.5))
    again = Results(path, plan.cells)
    assert list(again.lines) == ["a", "c"]
    assert again.metric("a", "test/top1") == 0.25


def test_other_settings_are_refused(plan: Plan, tmp_path: Path) -> None:
    run = Run(plan.cells["scale/vit_small/100"], 0, 1e-3)
    settings = settings_of(run, Results(tmp_path / "none", plan.cells), tmp_path, None)
    assert settings is not None
    with pytest.raises(ConfigError, match="run with other settings"):
        check_same({"command": "python other"}, run, settings)


def test_tables_show_mean_and_spread_and_what_is_missing(plan: Plan, tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl", plan.cells)
    tables = Tables(plan, results, 3)
    assert len(tables.missing()) == len(plan.cells)
    cell = plan.cells["scale/vit_small/100"]
    for rate, value in zip(FULL.upstream_rates, (0.1, 0.7, 0.2), strict=True):
        results.add(line(Run(cell, 0, rate).name, dev__top1=value, test__top1=value))
    values = [0.7, 0.72, 0.77]
    for seed in (1, 2):
        results.add(line(Run(cell, seed).name, test__top1=values[seed]))
    wanted_text = f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"
    assert f"| 1-D learned | {wanted_text} | – | – |" in tables.positions()
    assert tables.transfer().count("same set") == 4
    assert tables.positions().count("\n") == 2 + len(POSITIONS)
    assert "0.0003: 10.0, 0.001: **70.0**, 0.003: 20.0" in tables.rates()
    assert not any(text.startswith(cell.key) for text in tables.missing())


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "–"),
        ([0.5], "50.0 (1 of 3 seeds)"),
        ([0.5, 0.7], "60.0 ± 14.1 (2 of 3 seeds)"),
        ([0.5, 0.6, 0.7], "60.0 ± 10.0"),
        ([float("nan")], "not finite"),
    ],
)
def test_shown(values: list[float], text: str) -> None:
    assert shown(values, 3) == text


def test_a_page_is_filled_between_its_marks_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- scale: written by x -->\nold\n<!-- end of scale -->\nafter\n")
    fill(page, {"scale": "new\n"})
    assert page.read_text() == "before\n<!-- scale: written by x -->\n\nnew\n\n<!-- end of scale -->\nafter\n"
    with pytest.raises(DataError, match="occur there 0 times"):
        fill(page, {"other": ""})
