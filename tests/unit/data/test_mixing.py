"""Mixup and CutMix: timm's pixels and targets for the same λ and box, the published statistics, and no other inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import mixup as timm_mixup

from pretrain.config.schema.data import MixingConfig
from pretrain.data.on_device import Mixing, cutmix_boxes

HEIGHT, WIDTH, CLASSES, BATCH, LANES = 12, 16, 7, 32, 4


def mixing(seed: int = 3, **config: Any) -> Mixing:
    return Mixing(MixingConfig(**config), seed, BATCH)


def slots_of(step: int) -> np.ndarray:
    """The slots of a global batch, lane after lane."""
    draws = np.arange(BATCH // LANES) + step * (BATCH // LANES)
    return (draws[None] * LANES + np.arange(LANES)[:, None]).ravel()


def batch(size: int = BATCH, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, HEIGHT, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    return images, torch.nn.functional.one_hot(labels, CLASSES).float()


@pytest.mark.parametrize("config", [{"mixup": 0.8}, {"cutmix": 1.0}], ids=["mixup", "cutmix"])
def test_one_choice_for_a_batch_gives_timms_tensors(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """timm pairs the first image with the last one; put into that order, its batch is ours."""
    ours, (images, targets) = mixing(**config), batch()
    mix = ours.plan(slots_of(0), HEIGHT, WIDTH)
    assert (mix.lam == mix.lam[0]).all() and (mix.boxes == mix.boxes[0]).all()
    theirs = timm_mixup.Mixup(mixup_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_batch", lambda: (float(mix.lam[0]), "cutmix" in config))
    monkeypatch.setattr(
        timm_mixup, "cutmix_bbox_and_lam", lambda shape, lam, **_: (tuple(mix.boxes[0]), float(mix.lam[0]))
    )
    order = np.concatenate([np.arange(0, BATCH, 2), np.arange(1, BATCH, 2)[::-1]])
    expected, expected_targets = theirs(images[order].clone(), targets[order].argmax(1))
    made, made_targets = ours(images, targets, slots_of(0))
    torch.testing.assert_close(made[order], expected)
    smoothed = made_targets * 0.9 + 0.1 / CLASSES
    torch.testing.assert_close(smoothed[order], expected_targets)
    assert not torch.equal(made, images)


def test_one_choice_for_a_pair_gives_timms_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, (images, targets) = mixing(mixup=0.8, cutmix=1.0, per="pair", prob=0.8), batch()
    mix = ours.plan(slots_of(2), HEIGHT, WIDTH)
    lam, boxes = mix.lam[::2], iter(mix.boxes[::2][(mix.lam[::2] < 1) & (mix.boxes[::2, 1] > 0)])
    cut = mix.boxes[::2, 1] > 0
    assert 0 < cut.sum() < len(cut) and (lam == 1).any() and len(np.unique(lam)) > 8
    theirs = timm_mixup.Mixup(mode="pair", label_smoothing=0.0, num_classes=CLASSES)
    monkeypatch.setattr(theirs, "_params_per_elem", lambda size: (lam.astype(np.float32), cut))
    monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", lambda shape, lam, **_: (tuple(next(boxes)), lam))
    order = np.concatenate([np.arange(0, BATCH, 2), np.arange(1, BATCH, 2)[::-1]])
    expected, expected_targets = theirs(images[order].clone(), targets[order].argmax(1))
    made, made_targets = ours(images, targets, slots_of(2))
    torch.testing.assert_close(made[order], expected)
    torch.testing.assert_close(made_targets[order], expected_targets)


@pytest.mark.parametrize("lam", [0.0, 0.05, 0.3, 0.5, 0.77, 0.999, 1.0])
def test_boxes_are_timms_for_the_same_centre(lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in (0.0, 0.4, 0.99):
        for column in (0.0, 0.6, 0.99):
            drawn = iter([int(row * HEIGHT), int(column * WIDTH)])
            monkeypatch.setattr(timm_mixup.np.random, "randint", lambda *_, drawn=drawn, **__: next(drawn))
            expected = timm_mixup.rand_bbox((3, HEIGHT, WIDTH), lam)
            made = cutmix_boxes(np.array([lam]), np.array([row]), np.array([column]), HEIGHT, WIDTH)
            assert tuple(made[0]) == tuple(map(int, expected))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_lambda_follows_its_beta_distribution(alpha: float) -> None:
    lam = np.array([mixing(mixup=alpha).plan(slots_of(step)[:2], HEIGHT, WIDTH).lam[0] for step in range(1500)])
    assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    larger = mixing(mixup=alpha, keep_larger=True)
    kept = np.array([larger.plan(slots_of(step)[:2], HEIGHT, WIDTH).lam[0] for step in range(1500)])
    assert np.array_equal(kept, np.maximum(lam, 1 - lam))


def test_kinds_are_chosen_as_often_as_asked() -> None:
    made = mixing(mixup=0.8, cutmix=1.0, prob=0.7, switch_prob=0.25, per="pair")
    mixes = [made.plan(slots_of(step), HEIGHT, WIDTH) for step in range(300)]
    lam = np.concatenate([mix.lam[::2] for mix in mixes])
    cut = np.concatenate([mix.boxes[::2, 1] > mix.boxes[::2, 0] for mix in mixes])
    assert abs((lam == 1).mean() - 0.3) < 0.06  # cut boxes may be empty too
    assert abs(cut.mean() - 0.7 * 0.25) < 0.03


@pytest.mark.parametrize("per", ["batch", "pair"])
def test_cutmix_takes_its_share_exactly(per: Any) -> None:
    """Images of one value each: the mean of a mixed image shows how much of each is in it, and the target agrees."""
    images = torch.arange(BATCH).float().view(-1, 1, 1, 1).expand(-1, 3, HEIGHT, WIDTH)
    targets = torch.eye(BATCH)
    made, shares = mixing(cutmix=1.0, per=per)(images, targets, slots_of(1))
    torch.testing.assert_close(made.mean((1, 2, 3)), shares @ torch.arange(BATCH).float())
    assert set(made.unique().tolist()) <= set(range(BATCH))


@pytest.mark.parametrize("per", ["batch", "pair"])
def test_micro_batches_make_no_difference(per: Any) -> None:
    made, (images, targets) = mixing(mixup=0.8, cutmix=1.0, per=per), batch()
    for step in range(4):
        slots = slots_of(step)
        whole = made(images, targets, slots)
        for size in (2, 4, 8, 16):
            parts = [
                made(images[first : first + size], targets[first : first + size], slots[first : first + size])
                for first in range(0, BATCH, size)
            ]
            for which in (0, 1):
                assert torch.equal(torch.cat([part[which] for part in parts]), whole[which])


def test_seeds_and_steps_differ_and_repeat() -> None:
    plan = mixing(mixup=0.8).plan(slots_of(5), HEIGHT, WIDTH)
    assert np.array_equal(mixing(mixup=0.8).plan(slots_of(5), HEIGHT, WIDTH).lam, plan.lam)
    assert mixing(mixup=0.8).plan(slots_of(6), HEIGHT, WIDTH).lam[0] != plan.lam[0]
    assert mixing(4, mixup=0.8).plan(slots_of(5), HEIGHT, WIDTH).lam[0] != plan.lam[0]


def test_several_labels_keep_their_sum() -> None:
    images, _ = batch()
    targets = torch.rand(BATCH, CLASSES).gt(0.6).float()
    _, mixed = mixing(mixup=0.8)(images, targets, slots_of(0))
    torch.testing.assert_close(mixed.view(-1, 2, CLASSES).sum(1), targets.view(-1, 2, CLASSES).sum(1))
