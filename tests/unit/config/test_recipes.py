"""The recipes beyond the ViT paper's tables, against what their sources print, and the page that lists all of them."""

from __future__ import annotations

import re

import pytest

from pretrain.config.loader import load_experiment
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.objective import SigmoidConfig
from pretrain.config.schema.optim.elementwise import AdamWConfig
from pretrain.config.schema.optim.schedules import CosineConfig
from pretrain.config.schema.transforms import InceptionConfig, InceptionTfConfig
from pretrain.models.families.registry import family_of
from pretrain.optim.schedules import build_schedule
from tests.unit.config.test_configs import CONFIGS, RECIPES, ROOT

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


def load(name: str, kind: str = "pretrain") -> Experiment:
    return load_experiment(CONFIGS / kind / f"{name}.yaml").experiment


# Source: the names of AugReg's released checkpoints, such as
# B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.
@pytest.mark.parametrize(
    ("name", "variant", "preset", "decay", "dropout"),
    [
        ("ti16_i21k", "Ti/16", "none", 0.03, 0.0),
        ("s16_i21k", "S/16", "light1", 0.03, 0.0),
        ("b32_i21k", "B/32", "light1", 0.1, 0.0),
        ("b16_i21k", "B/16", "medium1", 0.1, 0.0),
        ("l16_i21k", "L/16", "strong1", 0.1, 0.0),
        ("s16_i1k", "S/16", "medium2", 0.1, 0.0),
        ("b32_i1k", "B/32", "medium2", 0.1, 0.1),
        ("b16_i1k", "B/16", "strong2", 0.1, 0.1),
    ],
)
def test_augreg(name: str, variant: str, preset: str, decay: float, dropout: float) -> None:
    experiment = load(f"augreg_{name}")
    model, data, optim = experiment.model, experiment.data, experiment.optim
    objective = experiment.objective
    assert isinstance(optim, AdamWConfig) and isinstance(objective, SigmoidConfig)
    assert (model.variant, data.augreg, optim.weight_decay) == (variant, preset, decay)
    assert (model.dropout, model.drop_path, model.pool) == (dropout, dropout, "token")
    assert (str(experiment.duration), experiment.global_batch_size, optim.lr) == ("300 epochs", 4096, 1e-3)
    assert (optim.momentum_dtype, optim.clip_grad, optim.schedule.name) == ("bf16", 1.0, "cosine")
    assert objective.reduction == "sum_classes"
    assert model.head_bias == (-10.0 if name.endswith("i21k") else -6.9)
    assert (data.mean, data.std) == HALF


@pytest.mark.parametrize("epochs", [90, 150, 300])
def test_better_baselines(epochs: int) -> None:
    """Source: 2205.01580; big_vision configs/vit_s16_i1k.py (its wd of 1e-4 is 0.1 in AdamW's convention)."""
    experiment = load(f"baseline_s16_i1k_{epochs}ep")
    model, data, optim = experiment.model, experiment.data, experiment.optim
    assert isinstance(optim, AdamWConfig)
    assert (model.variant, model.class_token, model.pool) == ("S/16", False, "norm_avg")
    assert (model.pos_embed, model.representation_size) == ("sincos2d_big_vision", "width")
    assert (experiment.global_batch_size, experiment.duration.value, data.num_samples) == (1024, epochs, 1_268_355)
    policy, mixing = data.augmentation.randaugment, data.effective_mixing
    assert policy is not None and (policy.num_layers, policy.magnitude) == (2, 10)
    assert (mixing.mixup, mixing.cutmix, mixing.keep_larger) == (0.2, 0.0, True)
    assert (optim.lr, optim.weight_decay, optim.clip_grad, optim.momentum_dtype) == (1e-3, 0.1, 1.0, "bf16")
    assert (optim.schedule.name, experiment.steps(optim.schedule.warmup)) == ("cosine", 10_000)


DEIT = [("ti16", "Ti/16"), ("s16", "S/16"), ("b16", "B/16")]


@pytest.mark.parametrize(("size", "variant"), DEIT)
@pytest.mark.parametrize("distilled", [False, True])
def test_deit(size: str, variant: str, distilled: bool) -> None:
    """Source: DeiT's main.py: its defaults, at batch 1024."""
    experiment = load(f"deit_{size}_distilled_i1k" if distilled else f"deit_{size}_i1k")
    model, data, optim = experiment.model, experiment.data, experiment.optim
    assert (model.variant, model.distilled, model.drop_path, model.dropout) == (variant, distilled, 0.1, 0.0)
    assert isinstance(optim, AdamWConfig)
    assert (optim.lr, optim.weight_decay) == (5e-4 * 1024 / 512, 0.05)
    assert (optim.clip_grad, optim.ema_decay, optim.betas, optim.eps) == (None, 0.99996, (0.9, 0.999), 1e-8)
    transform, mixing = data.train_transform, data.mixing
    assert (transform.auto_augment, transform.color_jitter) == ("rand-m9-mstd0.5-inc1", 0.0)
    assert transform.random_erasing is not None and transform.random_erasing.prob == 0.25
    assert (mixing.mixup, mixing.cutmix, mixing.switch_prob, mixing.per) == (0.8, 1.0, 0.5, "batch")
    assert (data.repeated_augmentation, experiment.objective.label_smoothing) == (3, 0.1)
    assert ((data.mean, data.std), data.eval_transform.crop_fraction) == (IMAGENET, 0.875)
    assert experiment.objective.name == ("distillation" if distilled else "softmax")


def test_deits_rate_by_epoch() -> None:
    """timm's cosine with DeiT's arguments: warmup 5 epochs from 1e-6, 300 epochs to 1e-5; here not an epoch late."""
    import torch
    from timm.scheduler.cosine_lr import CosineLRScheduler

    experiment = load("deit_b16_i1k")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    peer = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    lr, steps_per_epoch = build_schedule(experiment), 1_281_167 / 1024
    for epoch in (0, 1, 4, 5, 6, 150, 299):
        step = round((epoch + 0.5) * steps_per_epoch)
        assert lr(step) == pytest.approx(peer._get_lr(epoch)[0], rel=1e-9), epoch


@pytest.mark.parametrize(
    ("size", "variant", "pixels", "lr", "drop_path"),
    [
        ("s16", "S/16", 224, 4e-3, 0.05),
        ("b16", "B/16", 192, 3e-3, 0.2),
        ("l16", "L/16", 192, 3e-3, 0.45),
        ("h14", "H/14", 160 // 14 * 14, 3e-3, 0.6),
    ],
)
def test_deit3(size: str, variant: str, pixels: int, lr: float, drop_path: float) -> None:
    """Source: DeiT III's README for ImageNet-1k (no --src, so timm's random resized crop), and its models_v2.py."""
    experiment = load(f"deit3_{size}_i1k")
    model, data, optim = experiment.model, experiment.data, experiment.optim
    assert (model.variant, model.img_size, model.drop_path, model.pos_embed_prefix) == (
        variant, pixels, drop_path, False,
    )  # fmt: skip
    assert (optim.name, optim.lr, optim.weight_decay, optim.clip_grad) == ("lamb", lr, 0.05, 1.0)
    assert (experiment.global_batch_size, str(experiment.duration)) == (2048, "800 epochs")
    objective, crop = experiment.objective, data.train_transform
    assert isinstance(objective, SigmoidConfig) and isinstance(crop, InceptionConfig)
    assert (objective.reduction, objective.binarise, objective.label_smoothing) == ("mean", True, 0)
    assert (crop.min_area, crop.ratio, crop.three_augment) == (0.08, (0.75, 4 / 3), True)
    assert (model.drop_path_shape, model.layer_scale) == ("constant", 1e-4)
    assert (data.train_transform.color_jitter, data.repeated_augmentation) == (0.3, 3)


@pytest.mark.parametrize(("size", "drop_path"), [("b16", 0.2), ("l16", 0.45), ("h14", 0.55)])
def test_deit3_second_stage(size: str, drop_path: float) -> None:
    experiment = load(f"deit3_{size}_224", "finetune")
    optim = experiment.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", 1e-5, 0.1)
    lr, warm = build_schedule(experiment), experiment.steps(optim.schedule.warmup)
    assert [lr(step) for step in (warm + 1, experiment.num_steps // 2, experiment.num_steps)] == pytest.approx(
        [1e-5] * 3
    )
    assert lr(0) == pytest.approx(1e-6)
    assert (str(experiment.duration), experiment.model.img_size, experiment.model.drop_path) == (
        "20 epochs", 224, drop_path,
    )  # fmt: skip
    first = load(f"deit3_{size}_i1k").model
    same = ("variant", "layer_scale", "pos_embed_prefix", "pool", "drop_path_shape")
    assert all(getattr(first, key) == getattr(experiment.model, key) for key in same)


@pytest.mark.parametrize(
    ("size", "variant", "pixels", "lr", "epochs", "drop_path", "second_drop_path"),
    [
        ("s16", "S/16", 224, 4e-3, 800, 0.05, 0.05),
        ("b16", "B/16", 192, 3e-3, 800, 0.2, 0.25),
        ("l16", "L/16", 192, 3e-3, 400, 0.35, 0.5),
    ],
)
# many: the columns of the table
def test_vit5(
    size: str, variant: str, pixels: int, lr: float, epochs: int, drop_path: float, second_drop_path: float
) -> None:
    """Source: the commands in the README of wangf3014/ViT-5, and vit5_* in its models_vit5.py (2602.08071)."""
    first, second = load(f"vit5_{size}_i1k"), load(f"vit5_{size}_224", "finetune")
    assert [(one.model.variant, one.model.drop_path) for one in (first, second)] == [
        (variant, drop_path), (variant, second_drop_path),
    ]  # fmt: skip
    for model in (first.model, second.model):
        assert (model.norm, model.qkv_bias, model.qk_norm, model.num_registers) == ("rms_norm", False, True, 4)
        assert (model.rope, model.rope_temperature, model.rope_register_temperature) == ("axial", None, 100)
        assert (model.pos_embed_prefix, model.layer_scale, model.drop_path_shape) == (False, 1e-4, "constant")
        assert (model.pool, model.class_token, model.mlp, model.layer_norm_eps) == ("token", True, "mlp", 1e-6)
    optim, crop = first.optim, first.data.train_transform
    assert (optim.name, optim.lr, optim.weight_decay, optim.ema_decay) == ("lamb", lr, 0.05, 0.99996)
    assert (first.model.img_size, first.duration.value, first.global_batch_size) == (pixels, epochs, 8 * 256)
    assert (crop.three_augment, crop.color_jitter, first.data.repeated_augmentation) == (True, 0.3, 3)
    objective = first.objective
    assert isinstance(objective, SigmoidConfig) and (objective.binarise, objective.label_smoothing) == (True, 0)
    optim, data = second.optim, second.data
    assert (optim.name, optim.lr, optim.weight_decay, second.duration.value) == ("adamw", 1e-5, 0.1, 20)
    assert (second.model.img_size, second.global_batch_size, data.repeated_augmentation) == (224, 8 * 64, 1)
    assert (data.train_transform.auto_augment, second.objective.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
    assert data.train_transform.random_erasing is None and data.eval_transform.crop_fraction == 1.0


def test_muon_differs_from_the_baseline_in_the_optimiser_only() -> None:
    baseline, muon = load("baseline_s16_i1k_90ep"), load("baseline_s16_i1k_90ep_muon")
    assert muon.optim.name == "muon" and muon.optim.scale == "moonlight"
    same = ("lr", "weight_decay", "clip_grad", "schedule")
    assert all(getattr(muon.optim, key) == getattr(baseline.optim, key) for key in same)
    update = {"name": baseline.name, "optim": baseline.optim}
    assert muon.model_copy(update=update) == baseline


def test_deit_at_384_pixels_sees_what_its_code_sees() -> None:
    """Source: DeiT's README and main.py: --eval-crop-ratio 0.875, one rate of 5e-6."""
    experiment = load("deit_b16_384", "finetune")
    assert experiment.data.eval_transform.before_crop(384) == 438
    optim, schedule = experiment.optim, experiment.optim.schedule
    assert isinstance(schedule, CosineConfig)
    assert (optim.lr, schedule.end_lr, optim.weight_decay) == (5e-6, 5e-6, 1e-8)


def test_scaling_vits_lengths_and_fine_tuning() -> None:
    """Source: Scaling ViT, appendix F: 5 M × 4,096 images for G/14, fine-tuned at a constant rate with an average."""
    images = {name: load(f"scaling_{name}_jft3b") for name in ("g14", "bigg14")}
    assert [e.num_steps * e.global_batch_size for e in images.values()] == [4_000_000 * 4096, 5_000_000 * 4096]
    tuned = load("imagenet_bigg14_518", "finetune")
    assert (tuned.optim.schedule.name, tuned.optim.ema_decay) == ("constant", 0.9999)
    assert tuned.sweep is not None and tuned.sweep.grid == {"optim.lr": [0.03, 0.01]} and tuned.optim.lr == 0.03
    assert build_schedule(tuned)(tuned.num_steps) == 0.03


def test_augregs_fine_tuning_rate_is_that_of_the_released_b16() -> None:
    """Source: google-research/vision_transformer, README: …steps_20k-lr_0.03-res_384, 85.49 %."""
    assert load("augreg_imagenet", "finetune").optim.lr == 0.03


def test_swin_and_pvt() -> None:
    swin, pvt = load("swin_tiny_i1k"), load("pvt_v2_b2_i1k")
    assert (swin.model.name, swin.model.drop_path) == ("timm/swin_tiny_patch4_window7_224", 0.2)
    assert (swin.optim.lr, swin.optim.clip_grad, swin.data.repeated_augmentation) == (1e-3, 5.0, 1)
    lr = build_schedule(swin)
    assert lr(0) == pytest.approx(1e-6) and lr(swin.num_steps) == pytest.approx(1e-5)
    assert lr(swin.steps(swin.optim.schedule.warmup)) == pytest.approx(1e-3)
    assert (pvt.model.name, pvt.optim.ema_decay, pvt.optim.lr) == ("timm/pvt_v2_b2", None, 1e-3)


def test_masked_patch_prediction() -> None:
    experiment = load("masked_b16_jft300m")
    assert (experiment.objective.name, experiment.num_steps) == ("masked_patches", 1_000_000)
    assert (experiment.optim.lr, experiment.global_batch_size) == (2e-4, 4096)


@pytest.mark.parametrize(
    ("size", "drop_path", "epochs", "rate", "layer_decay"),
    [("b16", 0.1, 100, 5e-4, 0.65), ("l16", 0.2, 50, 1e-3, 0.75)],
)
def test_mae(size: str, drop_path: float, epochs: int, rate: float, layer_decay: float) -> None:
    """Source: MAE (2111.06377), Table 8; its repository, main_pretrain.py, models_mae.py, PRETRAIN.md, FINETUNE.md."""
    experiment = load(f"mae_{size}_i1k")
    model, optim, crop = experiment.model, experiment.optim, experiment.data.train_transform
    assert isinstance(optim, AdamWConfig) and isinstance(crop, InceptionConfig) and model.decoder is not None
    assert (model.patch_drop, model.pos_embed, model.pool) == (0.75, "sincos2d_mae", "token")
    assert (model.decoder.embed_dim, model.decoder.depth, model.decoder.num_heads) == (512, 8, 16)
    assert (optim.lr, optim.weight_decay, optim.betas) == (pytest.approx(1.5e-4 * 4096 / 256), 0.05, (0.9, 0.95))
    assert (experiment.global_batch_size, str(experiment.duration)) == (4096, "1600 epochs")
    assert str(optim.schedule.warmup) == "40 epochs"
    assert (crop.min_area, crop.ratio, crop.hflip, crop.resize_filter) == (0.2, (0.75, 4 / 3), 0.5, "bicubic_aa")
    tuned = load(f"mae_{size}_224", "finetune")
    optim = tuned.optim
    assert isinstance(optim, AdamWConfig) and isinstance(optim.schedule, CosineConfig)
    assert (optim.lr, optim.layer_decay, optim.weight_decay) == (rate * 1024 / 256, layer_decay, 0.05)
    assert (tuned.global_batch_size, str(tuned.duration), str(optim.schedule.warmup)) == (
        1024,
        f"{epochs} epochs",
        "5 epochs",
    )
    assert (tuned.model.drop_path, tuned.model.pool, optim.schedule.end_lr) == (drop_path, "avg_norm", 1e-6)
    assert (experiment.data.mean, experiment.data.std) == (tuned.data.mean, tuned.data.std) == IMAGENET


# Settings that a fine-tuning changes on purpose: MAE's trains the positions and classifies the mean.
CHANGED = {"mae_b16_224": ("pool", "pos_embed"), "mae_l16_224": ("pool", "pos_embed")}


def test_a_fine_tuned_model_is_the_pretrained_one() -> None:
    """Settings of the architecture that the weights depend on, for each recipe whose head names their source."""
    for kind, name in RECIPES:
        text = (CONFIGS / kind / f"{name}.yaml").read_text()
        source = re.search(r"--from runs/(\w+)", text)
        if kind == "pretrain" or source is None:
            continue
        before, after = load(source[1]).model, load(name, kind).model
        for key in ("variant", "class_token", "pool", "pos_embed", "pos_embed_prefix", "gelu", "layer_scale"):
            is_same = getattr(before, key) == getattr(after, key)
            assert is_same == (key not in CHANGED.get(name, ())), (name, key)


def test_the_page_lists_every_recipe_with_its_cost() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+)\]\(\.\./configs/\w+/\w+\.yaml\) \|.*\| ([0-9,.]+) \|", page, re.M))
    costs = {}
    for kind, name in RECIPES:
        found = re.search(r"# Cost:\s+([0-9,.]+) exaFLOPs", (CONFIGS / kind / f"{name}.yaml").read_text())
        assert found is not None
        costs[name] = found[1]
    assert rows == costs
    assert all((ROOT / "docs" / target).exists() for target in re.findall(r"\]\((\.\./configs[^)]+)\)", page))


def test_recipes_with_dropout_state_its_cost() -> None:
    stated, counted = {}, {}
    for kind, name in RECIPES:
        config = load(name, kind)
        found = re.search(r"Dropout keeps (\d+) % more activations", (CONFIGS / kind / f"{name}.yaml").read_text())
        if found is not None:
            stated[name] = int(found[1])
        if kind == "pretrain" and config.model.dropout:
            counted[name] = round(100 * (_kept(config, config.model.dropout) / _kept(config, 0.0) - 1))
    assert stated == counted


def _kept(config: Experiment, dropout: float) -> int:
    """Bytes per image that the forward pass keeps."""
    model = config.model.model_copy(update={"dropout": dropout})
    policy = config.cluster.activation_checkpointing
    footprint = family_of(model).footprint(model, config.num_outputs, precision=config.precision, checkpointing=policy)
    return footprint.kept


def test_googles_recipes_crop_by_tensorflows_law() -> None:
    """Pixels in [-1, 1] are Google's; MAE's and the segmentation's recipes take others, and VTAB crops nothing."""
    others = {"ade20k_b16_512", "imagenet_layer_decay", "imagenet_linear_probe"}
    crops = {}
    for kind, name in RECIPES:
        data = load(name, kind).data
        if (data.mean, data.std) == HALF and name not in others:
            crop = data.train_transform
            assert isinstance(crop, InceptionTfConfig), name
            crops[name] = (crop.min_area, crop.ratio)
    assert len(crops) > 35 and set(crops.values()) == {(0.05, (0.75, 1.33))}
