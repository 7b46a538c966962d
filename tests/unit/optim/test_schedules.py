"""Schedules against their published formulas, and the properties that a resume relies on."""

from __future__ import annotations

import math

import pytest

from pretrain.optim.schedules import build_schedule
from tests.distributed.training import experiment


def _published(name: str, step: int, total: int, warmup: int, base: float, end: float) -> float:
    """big_vision ``utils.create_learning_rate_schedule``, written from its definition."""
    progress = min(max((step - warmup) / (total - warmup), 0.0), 1.0)
    lr = {
        "linear": end + (base - end) * (1 - progress),
        "cosine": end + 0.5 * (base - end) * (1 + math.cos(math.pi * progress)),
        "constant": base,
    }[name]
    return lr * min(1.0, step / warmup) if warmup else lr


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_equals_the_published_formula(name: str, warmup: int) -> None:
    end = {} if name == "constant" else {"end_lr": 1e-5}
    schedule = {"name": name, "warmup": f"{warmup} steps", **end}
    lr = build_schedule(experiment(optim__schedule=schedule))
    for step in range(41):
        wanted = _published(name, step, 40, warmup, 3e-3, end.get("end_lr", 0.0))
        assert lr(step) == pytest.approx(wanted, rel=1e-12, abs=1e-18), step


def test_ends_and_peak() -> None:
    lr = build_schedule(experiment(optim__schedule={"name": "linear", "warmup": "10 steps", "end_lr": 1e-5}))
    assert lr(0) == 0.0 and lr(10) == pytest.approx(3e-3) and lr(40) == pytest.approx(1e-5)


@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize("cooldown", [0, 8])
def test_rsqrt_equals_the_published_formula(warmup: int, cooldown: int) -> None:
    """Scaling ViT: base / sqrt(1 + (t + shift − warmup) / timescale), ramped up and cooled down."""
    schedule = {"name": "rsqrt", "warmup": f"{warmup} steps", "cooldown": f"{cooldown} steps"}
    schedule |= {"timescale": "10 steps", "shift": "3 steps"}
    lr = build_schedule(experiment(optim__schedule=schedule))
    for step in range(41):
        wanted = 3e-3 / math.sqrt(1 + max(0, step + 3 - warmup) / 10)
        wanted *= min(1, step / warmup) if warmup else 1
        wanted *= min(1, (40 - step) / cooldown) if cooldown else 1
        assert lr(step) == pytest.approx(wanted, rel=1e-12, abs=1e-18), step


def test_polynomial_and_a_constant_with_cooldown() -> None:
    lr = build_schedule(experiment(optim__schedule={"name": "polynomial", "power": "3", "end_lr": 1e-4}))
    assert lr(20) == pytest.approx(1e-4 + (3e-3 - 1e-4) / 8) and lr(40) == pytest.approx(1e-4)
    lr = build_schedule(experiment(optim__schedule={"name": "constant", "cooldown": "10 steps"}))
    assert [lr(30), lr(35), lr(40)] == pytest.approx([3e-3, 1.5e-3, 0.0])


@pytest.mark.parametrize(
    ("schedule", "ignored"),
    [
        ({"name": "constant", "end_lr": 0.1}, "end_lr"),
        ({"name": "cosine", "power": 2}, "power"),
        ({"name": "rsqrt", "end_lr": 0.1}, "end_lr"),
        ({"name": "linear", "timescale": "5 steps"}, "timescale"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(schedule: dict, ignored: str) -> None:
    with pytest.raises(ValueError, match=f"{ignored} would be ignored by name: {schedule['name']}"):
        experiment(optim__schedule=schedule)


def _timm(kind: str, epochs: int, warmup: int, **settings: float) -> list[float]:
    """The rate of each epoch by timm's scheduler."""
    import torch
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.poly_lr import PolyLRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    maker = {"cosine": CosineLRScheduler, "polynomial": PolyLRScheduler}[kind]
    more = {"power": 2.0, "k_decay": 1.0} if kind == "polynomial" else {}
    scheduler = maker(
        optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, cycle_limit=1,
        warmup_prefix=bool(settings.get("prefix")), **more,
    )  # fmt: skip
    return [scheduler._get_lr(epoch)[0] for epoch in range(int(settings["total"]))]


@pytest.mark.parametrize("kind", ["cosine", "polynomial"])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("hold", [0, 3])
def test_a_rate_per_epoch_equals_timms(kind: str, prefix: bool, hold: int) -> None:
    """DeiT: warmup from 1e-6, cosine to 1e-5, one rate per epoch; timm's cooldown epochs stay at the last rate."""
    epochs, warmup = 20, 4
    decays = epochs - hold - (warmup if prefix else 0)
    wanted = _timm(kind, decays, warmup, prefix=prefix, total=epochs)
    schedule = {"name": kind, "warmup": f"{warmup} epochs", "warmup_lr": 1e-6, "end_lr": 1e-5, "per_epoch": True}
    schedule |= {"warmup_prefix": prefix} | ({"end_hold": f"{hold} epochs"} if hold else {})
    config = experiment(optim__schedule=schedule, duration=f"{epochs} epochs", data__num_samples=80)
    lr = build_schedule(config)
    assert config.num_steps == 200
    for step in range(200):
        assert lr(step) == pytest.approx(wanted[step // 10], rel=1e-9), step


def test_an_epoch_that_is_no_whole_number_of_steps_begins_at_the_next_step() -> None:
    schedule = {"name": "linear", "per_epoch": True}
    lr = build_schedule(experiment(optim__schedule=schedule, duration="3 epochs", data__num_samples=28))  # 3.5 steps
    assert [step for step in range(1, 11) if lr(step) != lr(step - 1)] == [4, 7]


def test_warmup_from_a_start_value_by_the_step() -> None:
    lr = build_schedule(
        experiment(optim__schedule={"name": "cosine", "warmup": "10 steps", "warmup_lr": 1e-3, "end_lr": 1e-4})
    )
    assert [lr(0), lr(5), lr(10), lr(40)] == pytest.approx([1e-3, 2e-3, 3e-3, 1e-4])


@pytest.mark.parametrize("key", [{"warmup_lr": 1e-6}, {"warmup_prefix": False}])
def test_a_start_value_without_a_warmup_is_refused(key: dict) -> None:
    with pytest.raises(ValueError, match="would be ignored without warmup"):
        experiment(optim__schedule={"name": "cosine", **key})


@pytest.mark.parametrize("name", ["rsqrt", "constant"])
def test_a_shorter_run_is_a_cooldown_from_the_trunk(name: str) -> None:
    """A fork with another duration has the trunk's rates up to its own cooldown, and ends at 0."""
    more = {"timescale": "10 steps"} if name == "rsqrt" else {}
    schedule = {"name": name, "warmup": "4 steps", "cooldown": "10 steps", **more}
    trunk, fork = (build_schedule(experiment(optim__schedule=schedule, duration=f"{n} steps")) for n in (40, 25))
    assert [fork(step) for step in range(16)] == [trunk(step) for step in range(16)]
    assert 0 < fork(24) < trunk(24) and fork(25) == 0
