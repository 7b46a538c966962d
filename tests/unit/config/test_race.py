"""The race: its config keeps the rules and tells the truth, and so does docs/race.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.report.race import RACES, S16_77
from pretrain.check.experiment import check
from pretrain.config.loader import load_experiment
from pretrain.config.schema.optim.kronecker import ShampooConfig
from pretrain.config.schema.optim.schedule_free import ScheduleFreeConfig
from pretrain.config.schema.transforms import InceptionConfig
from pretrain.models.families.registry import training_flops
from tests.unit.config.test_configs import CONFIGS, MFU, PEAK_FLOPS, ROOT
from tests.unit.config.test_recipes import IMAGENET

CONFIG = CONFIGS / "speedrun" / f"{S16_77}.yaml"


def test_the_config_keeps_the_rules_and_passes_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = load_experiment(CONFIG)
    assert resolved.experiment.name == S16_77
    assert list(RACES[S16_77].breaches(resolved.experiment, "val")) == []
    monkeypatch.chdir(tmp_path)  # where there is no data
    assert check(resolved, backend="deepspeed")


def test_the_settings_are_those_of_the_published_run() -> None:
    """Source: hparams.json of AlgoPerf's shampoo_submission, trial 2, of 186,666 steps; imagenet_resnet workload."""
    experiment = load_experiment(CONFIG).experiment
    optim, data = experiment.optim, experiment.data
    assert isinstance(optim, ShampooConfig) and isinstance(data.train_transform, InceptionConfig)
    assert optim.lr == pytest.approx(0.0014381744028656841, rel=1e-6)
    assert optim.weight_decay == pytest.approx(0.00019716633625688372, rel=1e-5)
    assert [1 - beta for beta in optim.betas] == pytest.approx([0.025337537053408913, 0.02508024059481679], rel=1e-4)
    assert (optim.eps, optim.epsilon, optim.momentum, optim.clip_grad) == (1e-8, 1e-8, 0, None)
    assert (optim.max_preconditioner_dim, optim.precondition_frequency, optim.first_refresh) == (1024, 100, 100)
    assert experiment.num_steps == pytest.approx(0.6 * 186_666, abs=1)
    assert experiment.steps(optim.schedule.warmup) == pytest.approx(0.05 * 0.6 * 186_666, abs=1)
    assert (experiment.objective.label_smoothing, experiment.model.dropout) == (0.2, 0.0)
    assert (experiment.global_batch_size, data.num_samples, data.effective_mixing.mixup) == (1024, 1_281_167, 0.2)
    crop = data.train_transform
    assert (crop.min_area, crop.ratio) == (0.08, pytest.approx((0.75, 4 / 3)))
    policy = data.augmentation.randaugment
    assert policy is not None and (policy.num_layers, policy.magnitude) == (2, 10)
    assert data.eval_transform.before_crop(224) == 256
    assert (data.mean, data.std) == IMAGENET


def test_schedule_free_has_the_settings_of_its_published_run() -> None:
    """Source: hparams.json of AlgoPerf's schedule_free_adamw, trial 3; 186,666 steps."""
    experiment = load_experiment(CONFIGS / "pretrain" / "algoperf_s16_i1k_schedule_free.yaml").experiment
    optim = experiment.optim
    assert (optim.name, optim.lr, optim.weight_decay, optim.clip_grad) == ("schedule_free", 0.002, 0.08, None)
    assert isinstance(optim, ScheduleFreeConfig) and (optim.betas, optim.eps) == ((0.9, 0.9955), 1e-8)
    assert experiment.steps(optim.schedule.warmup) == int(0.02 * 186_666)
    race = load_experiment(CONFIG).experiment
    assert (experiment.model, experiment.data, experiment.objective) == (race.model, race.data, race.objective)


def test_the_head_of_the_config_states_its_cost() -> None:
    experiment, text = load_experiment(CONFIG).experiment, CONFIG.read_text()
    images = experiment.num_steps * experiment.global_batch_size
    flops = training_flops(experiment.model, experiment.num_outputs, images)
    cost = text[text.index("# Cost:") :]
    exaflops, a100, h100 = map(float, re.findall(r"([0-9.]+) (?:exaFLOPs|A100-hours|H100-hours)", cost)[:3])
    assert exaflops == pytest.approx(flops / 1e18, rel=2e-3)
    assert a100 == pytest.approx(flops / (MFU * PEAK_FLOPS["A100"]) / 3600, rel=5e-3)
    assert h100 == pytest.approx(flops / (MFU * PEAK_FLOPS["H100"]) / 3600, rel=5e-3)


def test_the_page_counts_the_flops_of_published_runs() -> None:
    """Steps of 1,024 images of an S/16; the rows of other networks state no steps."""
    model = load_experiment(CONFIGS / "pretrain" / "baseline_s16_i1k_90ep.yaml").experiment.model
    page = (ROOT / "docs" / "race.md").read_text()
    rows = re.findall(r"^\|.+\| ([\d,]+) \| [^|]+ \| ([\d.]+) \|$", page, re.M)
    assert len(rows) == 10
    for steps, exaflops in rows:
        flops = training_flops(model, 1_000, 1024 * int(steps.replace(",", "")))
        assert float(exaflops) == pytest.approx(flops / 1e18, rel=5e-3)
    assert f"{100 * RACES[S16_77].value:.3f} %" in page
