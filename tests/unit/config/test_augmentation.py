"""Settings of augmentation and mixing: AugReg's table, and what would be ignored is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pretrain.config.loader import load_experiment
from pretrain.config.schema.transforms import InceptionTfConfig
from pretrain.errors import ConfigError
from tests.unit.config.test_loader import MINIMAL

# Source: google-research/big_vision, configs/vit_i1k.py (RANDAUG_DEF, MIXUP_DEF).
PRESETS = {
    "none": (None, 0.0),
    "light1": ((2, 0), 0.0),
    "light2": ((2, 10), 0.2),
    "medium1": ((2, 15), 0.2),
    "medium2": ((2, 15), 0.5),
    "strong1": ((2, 20), 0.5),
    "strong2": ((2, 20), 0.8),
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_of_augreg(config: Path, preset: str) -> None:
    data = load_experiment(config, overrides=[f"data.augreg={preset}", "data.train_transform.hflip=1"]).experiment.data
    policy, mixing = data.augmentation.randaugment, data.effective_mixing
    assert (None if policy is None else (policy.num_layers, policy.magnitude), mixing.mixup) == PRESETS[preset]
    assert data.augmentation.hflip == 1.0
    assert not mixing.active or (mixing.keep_larger, mixing.per, mixing.prob, mixing.cutmix) == (True, "batch", 1, 0)


REFUSED = {
    "data.augreg=light1 data.train_transform.three_augment=true": "remove train_transform.three_augment or augreg",
    "data.augreg=none data.mixing.cutmix=1": "augreg sets mixing",
    "data.train_transform.auto_augment=rand-m9-w3": "'w3' is not a known part of timm's RandAugment",
    "data.train_transform.auto_augment=augmix-m5": "starts with rand-",
    "data.train_transform.auto_augment=rand-m9 data.train_transform.three_augment=true": "two policies for one place",
    "data.train_transform.crop=resmall": "crop: resmall needs short_side",
    "data.train_transform.short_side=256": "belongs to crop: resmall",
    "data.train_transform.crop=resmall data.train_transform.short_side=100": "100 is smaller than the model's 224",
    "data.train_transform.crop=simple data.train_transform.min_area=0.5": "min_area belongs to crop: inception",
    "data.train_transform.crop=resize data.train_transform.ratio=[0.5, 2]": "inception or inception_tf; with resize",
    "data.eval_transform.resize=squash data.eval_transform.crop_fraction=0.9": "short_side, resmall or squash_crop",
    "model.drop_path_shape=constant": "drop_path_shape: constant belongs to drop_path",
    "data.train_transform.random_erasing.min_area=0.9": "min_area 0.9 is larger than max_area",
    "data.mixing.prob=0.5": "prob belongs to mixup and cutmix",
    "data.mixing.per=pair": "per belongs to mixup and cutmix",
    "data.mixing.mixup=0.8 data.mixing.switch_prob=0.3": "switch_prob chooses between",
    "data.mixing.cutmix=1 data.mixing.keep_larger=true": "keep_larger belongs to mixup",
    "data.mixing.mixup=0.8 cluster.micro_batch_size=3": "3 is odd",
    "objective.name=sigmoid objective.binarise=true": "binarise acts on mixed targets",
    "objective.name=sigmoid objective.binarise=true data.augreg=light1": "binarise acts on mixed targets",
    "objective.name=masked_patches model.mask_token=true data.mixing.mixup=1": "mixes labels",
    "data.mixing.prob=1.5": "not a number ≥ 0 and ≤ 1",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_would_be_ignored_or_cannot_be_is_refused(config: Path, overrides: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(config, overrides=re.split(r" (?=[a-z_]+\.)", overrides))
    assert REFUSED[overrides] in str(caught.value)


ACCEPTED = [
    "data.train_transform.crop=inception_tf data.train_transform.min_area=0.2",
    "data.train_transform.crop=inception_tf data.train_transform.ratio=[0.5,2.0]",
    "data.eval_transform.resize=resmall model.drop_path=0.1 model.drop_path_shape=constant",
    "data.train_transform.auto_augment=rand-m9-mstd0.5-inc1 data.train_transform.random_erasing.prob=1",
    "data.mixing.mixup=0.8 data.mixing.cutmix=1 data.mixing.switch_prob=1 data.mixing.prob=1 data.mixing.per=pair",
    "objective.name=sigmoid objective.binarise=true data.mixing.mixup=0.8",
    "data.augreg=strong2 objective.name=sigmoid objective.binarise=true",
    "data.train_transform.crop=resmall data.train_transform.short_side=256",
    "data.train_transform.random_erasing.prob=0.25 data.train_transform.random_erasing=null",
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_a_saved_config_is_read_again_as_the_same_experiment(config: Path, tmp_path: Path, overrides: str) -> None:
    resolved = load_experiment(config, overrides=overrides.split())
    saved = tmp_path / "saved.yaml"
    saved.write_text(resolved.to_yaml())
    again = load_experiment(saved)
    assert again.experiment == resolved.experiment and again.digest == resolved.digest


def test_the_ratio_of_tensorflows_crop_is_tensorflows(config: Path) -> None:
    """Its default is 1.33 and no third; what is given stays."""
    ratios = []
    for more in ([], ["data.train_transform.ratio=[0.5, 2]"]):
        experiment = load_experiment(config, overrides=["data.train_transform.crop=inception_tf", *more]).experiment
        crop = experiment.data.train_transform
        assert isinstance(crop, InceptionTfConfig)
        ratios.append(crop.ratio)
    assert ratios == [(0.75, 1.33), (0.5, 2.0)]


@pytest.mark.parametrize(
    "override",
    [
        "data.augreg=light1",
        "data.mixing.mixup=0.1",
        "data.train_transform.color_jitter=0.1",
        "data.train_transform.crop=inception_tf",
    ],
)
def test_they_decide_the_result(config: Path, override: str) -> None:
    assert load_experiment(config).digest != load_experiment(config, overrides=[override]).digest
