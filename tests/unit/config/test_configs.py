"""Every config that is delivered: it loads, passes --check on the clusters it is for, and its head tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.sources.vtab import TASKS
from pipelines.weights.transfer import published
from pretrain.check.experiment import check
from pretrain.config.loader import Resolved, load_experiment
from pretrain.config.schema.objective import SigmoidConfig
from pretrain.config.schema.optim.elementwise import AdamWConfig, SGDConfig
from pretrain.config.schema.optim.scaled import AdafactorConfig
from pretrain.config.schema.optim.schedules import CosineConfig, LinearConfig
from pretrain.models.families.registry import training_flops
from pretrain.models.tensor_shapes import parameter_shapes
from pretrain.optim.groups import assign_rules
from pretrain.optim.schedules import build_schedule

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
PRETRAIN = sorted(path.stem for path in (CONFIGS / "pretrain").glob("*.yaml") if not path.name.startswith("base_"))
FINETUNE = sorted(
    path.stem
    for path in (CONFIGS / "finetune").glob("*.yaml")
    if not path.name.startswith("base_") and not path.stem.startswith("my_images")  # tests/unit/check/test_derived.py
)
RECIPES = [("pretrain", name) for name in PRETRAIN] + [("finetune", name) for name in FINETUNE]
RECIPES = [recipe for recipe in RECIPES if not recipe[1].startswith("demo_")]
PAPER = [name for name in PRETRAIN if re.fullmatch(r"vit_.*_(jft300m|i21k)(_.*ep)?", name)]
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}  # dense bf16, as the vendor states them
MFU = 0.4

# Source: ViT (2010.11929), Table 3: data → model, epochs, learning rate, decay, dropout. Batch 4096, 224 px.
# H/14 on ImageNet-21k has no row there; it takes that of L/16.
TABLE_3 = {
    "vit_b32_jft300m": ("B/32", 303_000_000, 18_291, 7, 8e-4, 0.1, 0.0),
    "vit_l32_jft300m": ("L/32", 303_000_000, 18_291, 7, 6e-4, 0.1, 0.0),
    "vit_b32_i21k_90ep": ("B/32", 14_197_122 - 51_200, 21_843, 90, 1e-3, 0.03, 0.1),
    "vit_l32_i21k_90ep": ("L/32", 14_197_122 - 51_200, 21_843, 90, 1e-3, 0.03, 0.1),
    "vit_b16_jft300m": ("B/16", 303_000_000, 18_291, 7, 8e-4, 0.1, 0.0),
    "vit_l16_jft300m": ("L/16", 303_000_000, 18_291, 7, 4e-4, 0.1, 0.0),
    "vit_l16_jft300m_14ep": ("L/16", 303_000_000, 18_291, 14, 4e-4, 0.1, 0.0),
    "vit_h14_jft300m": ("H/14", 303_000_000, 18_291, 14, 3e-4, 0.1, 0.0),
    "vit_b16_i21k_90ep": ("B/16", 14_197_122 - 51_200, 21_843, 90, 1e-3, 0.03, 0.1),
    "vit_l16_i21k_30ep": ("L/16", 14_197_122 - 51_200, 21_843, 30, 1e-3, 0.03, 0.1),
    "vit_l16_i21k_90ep": ("L/16", 14_197_122 - 51_200, 21_843, 90, 1e-3, 0.03, 0.1),
    "vit_h14_i21k_90ep": ("H/14", 14_197_122 - 51_200, 21_843, 90, 1e-3, 0.03, 0.1),
}


def load(kind: str, name: str, *overrides: str, cluster: str | None = None) -> Resolved:
    path = CONFIGS / "cluster" / f"{cluster}.yaml" if cluster else None
    return load_experiment(CONFIGS / kind / f"{name}.yaml", cluster=path, overrides=overrides)


def test_the_table_covers_every_config_of_the_paper() -> None:
    assert sorted(TABLE_3) == PAPER


@pytest.mark.parametrize("name", PAPER)
def test_pretraining_follows_table_3(name: str) -> None:
    experiment = load("pretrain", name).experiment
    model, data, optim = experiment.model, experiment.data, experiment.optim
    epochs = experiment.num_steps * experiment.global_batch_size / data.num_samples
    row = (model.variant, data.num_samples, data.num_classes, optim.lr, optim.weight_decay, model.dropout)
    variant, num_samples, num_classes, expected_epochs, *rest = TABLE_3[name]
    assert row == (variant, num_samples, num_classes, *rest)
    assert epochs == pytest.approx(expected_epochs, rel=1e-5)
    assert (experiment.global_batch_size, model.img_size, model.pool) == (4096, 224, "token")
    schedule, objective = optim.schedule, experiment.objective
    assert isinstance(optim, AdamWConfig) and (optim.betas, optim.clip_grad) == ((0.9, 0.999), None)
    assert isinstance(schedule, LinearConfig) and schedule.end_lr == 1e-5
    assert experiment.steps(schedule.warmup) == 10_000
    assert isinstance(objective, SigmoidConfig) and objective.reduction == "sum_classes"
    assert (model.head_bias, model.head_init, model.representation_size) == (-10.0, "zero", "width")
    assert (data.mean, data.std, data.train_transform.crop) == ((0.5,) * 3, (0.5,) * 3, "inception_tf")


@pytest.mark.parametrize("name", PRETRAIN)
def test_the_name_is_the_files(name: str) -> None:
    assert load("pretrain", name).experiment.name == name


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_the_head_of_the_file_states_the_cost(kind: str, name: str) -> None:
    experiment = load(kind, name).experiment
    flops = sum(
        training_flops(
            experiment.at_tiling(tiling).model, experiment.num_outputs, count * experiment.batches.of(tiling)
        )
        for tiling, count in experiment.image_sizes.counts(experiment.num_steps).items()
    )
    text = (CONFIGS / kind / f"{name}.yaml").read_text().replace(",", "")
    exaflops, a100, h100 = map(float, re.findall(r"([0-9.]+) (?:exaFLOPs|A100-hours|H100-hours)", text)[:3])
    assert exaflops == pytest.approx(flops / 1e18, rel=2e-3)
    assert a100 == pytest.approx(flops / (MFU * PEAK_FLOPS["A100"]) / 3600, rel=5e-3)
    assert h100 == pytest.approx(flops / (MFU * PEAK_FLOPS["H100"]) / 3600, rel=5e-3)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_the_head_of_the_file_says_how_to_run_it_and_what_comes_out(kind: str) -> None:
    for name in PRETRAIN if kind == "pretrain" else FINETUNE:
        text = (CONFIGS / kind / f"{name}.yaml").read_text()
        head = text[: text.index("\nname:")]
        assert "# Run: " in head and "# Expect: " in head and f"--config configs/{kind}/{name}.yaml" in head, name
        assert name.startswith("demo_") or re.search(r"\((\d{4}\.\d{5})\)|2205\.01580", head), f"{name} names no source"


def named_cluster(kind: str, name: str) -> str | None:
    """The cluster that the head's command uses."""
    found = re.search(r"--cluster configs/cluster/(\w+)\.yaml", (CONFIGS / kind / f"{name}.yaml").read_text())
    return found[1] if found else None


@pytest.mark.parametrize(("kind", "name"), RECIPES)
def test_a_recipe_passes_the_check(kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own, and on the cluster that its head names."""
    monkeypatch.chdir(tmp_path)  # where there is no data
    backend = "deepspeed" if kind == "pretrain" else "accelerate"
    for cluster in (None, named_cluster(kind, name)):
        report = check(load(kind, name, cluster=cluster), backend=backend)
        assert any("data not found, not checked" in line for line in report)


@pytest.mark.parametrize("name", PAPER)
def test_pretraining_passes_the_check_on_64_devices(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check(load("pretrain", name, cluster="64xa100_80"))


@pytest.mark.parametrize("name", FINETUNE)
def test_fine_tuning_passes_the_check_on_8_devices(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check(load("finetune", name, cluster="8xa100_80"), backend="accelerate")


# Source: ViT (2010.11929), Table 4: steps; the rate is one of its sweep.
@pytest.mark.parametrize(
    ("name", "steps", "rates"),
    [
        ("imagenet", 20_000, (0.003, 0.01, 0.03, 0.06)),
        ("cifar10", 10_000, (0.001, 0.003, 0.01, 0.03)),
        ("cifar100", 10_000, (0.001, 0.003, 0.01, 0.03)),
        ("pets", 500, (0.001, 0.003, 0.01, 0.03)),
        ("flowers", 500, (0.001, 0.003, 0.01, 0.03)),
    ],
)
def test_fine_tuning_follows_table_4(name: str, steps: int, rates: tuple[float, ...]) -> None:
    experiment = load("finetune", name).experiment
    optim = experiment.optim
    assert experiment.num_steps == steps and optim.lr in rates
    assert isinstance(optim, SGDConfig)
    assert (optim.momentum, optim.weight_decay, optim.clip_grad) == (0.9, 0.0, 1.0)
    assert (experiment.global_batch_size, experiment.model.img_size, optim.schedule.name) == (512, 384, "cosine")
    assert experiment.evaluation.sets


# Source: ViT (2010.11929), Table 4: the share of the training images that choose the rate.
@pytest.mark.parametrize(
    ("name", "share"), [("imagenet", 0.01), ("cifar10", 0.02), ("cifar100", 0.02), ("pets", 0.1), ("flowers", 0.1)]
)
def test_the_sweeps_follow_table_4(name: str, share: float) -> None:
    experiment = load("finetune", name).experiment
    sweep = experiment.sweep
    assert sweep is not None
    rates = [0.003, 0.01, 0.03, 0.06] if name == "imagenet" else [0.001, 0.003, 0.01, 0.03]
    assert sweep.grid == {"optim.lr": rates} and sweep.num_seeds == 3
    dev = sweep.dev["evaluation.sets"]["dev"]["num_samples"]
    assert dev + sweep.dev["data.num_samples"] == experiment.data.num_samples
    assert dev == pytest.approx(share * experiment.data.num_samples, abs=1)


def test_the_19_tasks_of_vtab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(path.stem for path in (CONFIGS / "finetune" / "vtab").glob("*.yaml") if path.stem != "base_vtab")
    assert names == sorted(TASKS)
    monkeypatch.chdir(tmp_path)
    for name, task in TASKS.items():
        resolved = load("finetune", f"vtab/{name}")
        experiment = resolved.experiment
        data, optim, test = experiment.data, experiment.optim, experiment.evaluation.sets["test"]
        assert (data.num_samples, data.num_classes, test.num_samples) == (1_000, task.num_classes, task.num_test)
        assert (data.shards, test.shards) == (f"data/vtab/{name}/train800val200", f"data/vtab/{name}/test")
        assert (experiment.num_steps, experiment.global_batch_size, optim.lr) == (2_500, 512, 0.01)
        assert isinstance(optim, SGDConfig)
        assert (optim.momentum, experiment.model.img_size) == (0.9, 384)
        assert experiment.name == f"finetune_vtab_{name}" and experiment.sweep is not None
        text = (CONFIGS / "finetune" / "vtab" / f"{name}.yaml").read_text()
        assert f"pack vtab /path/to/vtab-1k/{name} --out data/vtab/{name}\n" in text
        assert f"--config configs/finetune/vtab/{name}.yaml" in text and f"vtab-1k, {task.group}" in text.lower()
        figures = [row.value for row in published(f"vtab/{name}")]
        assert all(f"{value} from" in text for value in (figures[0], figures[2]))
        assert check(resolved, backend="accelerate")
        flops = training_flops(experiment.model, experiment.num_outputs, 2_500 * 512)
        exaflops = re.search(r"([0-9.]+) exaFLOPs", text)
        assert exaflops is not None and float(exaflops[1]) == pytest.approx(flops / 1e18, rel=2e-3)


def test_the_demo_runs_on_two_cpu_ranks() -> None:
    assert check(load("pretrain", "demo_digits", cluster="cpu"), world=2)


@pytest.mark.parametrize(
    ("name", "variant"), [("vit_b16_i1k", "B/16"), ("vit_b32_i1k", "B/32"), ("vit_l16_i1k", "L/16")]
)
def test_the_imagenet_rows_follow_table_3(name: str, variant: str) -> None:
    experiment = load("pretrain", name).experiment
    model, optim = experiment.model, experiment.optim
    assert (model.variant, model.dropout, model.representation_size) == (variant, 0.1, "width")
    assert (optim.lr, optim.weight_decay, optim.clip_grad) == (3e-3, 0.3, 1.0)
    assert (experiment.global_batch_size, experiment.duration.value) == (4096, 300)
    assert experiment.objective.name == "softmax"
    assert isinstance(optim.schedule, CosineConfig) and optim.schedule.end_lr == 0.0


@pytest.mark.parametrize(("name", "variant"), [("l16", "L/16"), ("g14", "g/14"), ("bigg14", "G/14")])
def test_scaling_vit_decays_head_and_body_apart(name: str, variant: str) -> None:
    """Source: Scaling ViT (2106.04560), section 3; as AdamW writes it, head 3.0 and body 0.03."""
    experiment = load("pretrain", f"scaling_{name}_jft3b").experiment
    model, optim = experiment.model, experiment.optim
    assert (model.variant, model.pool, model.class_token, model.head_bias) == (variant, "map", False, -10.0)
    names = {name: len(shape) for name, shape in parameter_shapes(model, 5).items()}
    decays = {name: rule.weight_decay for name, rule in assign_rules(names, optim).items()}
    assert decays["head.weight"] == 3.0 and decays["blocks.0.attn.qkv.weight"] == 0.03
    assert decays["head.bias"] == decays["attn_pool.latent"] == decays["pos_embed"] == 0.0
    assert isinstance(optim, AdafactorConfig)
    assert (optim.momentum_dtype, optim.beta2_cap, optim.beta2_power) == ("bf16", 0.999, 0.8)
    lr = build_schedule(experiment)
    assert [lr(10_000), lr(20_000), lr(experiment.num_steps)] == pytest.approx([8e-4, 8e-4 / 2**0.5, 0.0])
