"""Schedules against timm's, and the properties that a resume relies on; tests/golden has big_vision's."""

from __future__ import annotations

import pytest

from pretrain.optim.schedules import build_schedule
from tests.distributed.training import experiment


def test_ends_and_peak() -> None:
    lr = build_schedule(experiment(optim__schedule={"name": "linear", "warmup": "10 steps", "end_lr": 1e-5}))
    assert lr(0) == 0.0 and lr(10) == pytest.approx(3e-3) and lr(40) == pytest.approx(1e-5)


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
    with pytest.raises(ValueError, match=rf"schedule\.{schedule['name']}\.{ignored}\n.*not permitted"):
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


@pytest.mark.parametrize(
    "data",
    [
        {"num_samples": 400, "subset": "20 %"},
        {"num_samples": 400, "subset": "80 samples"},
        {"num_samples": 80, "drop_list": "drop.jsonl"},  # num_samples is what the list leaves
        {
            "num_samples": 420,
            "shards": None,
            "mixture": [
                {"shards": "a", "num_samples": 20, "weight": 9.0},
                {"shards": "b", "num_samples": 400, "subset": "15 %", "weight": 1.0},
            ],
        },
    ],
)
def test_a_rate_per_epoch_counts_the_epochs_that_are_drawn(data: dict) -> None:
    """DeiT's schedule on 80 drawn samples: 10 steps an epoch, whatever the size of the full set."""
    epochs, warmup = 20, 4
    wanted = _timm("cosine", epochs, warmup, prefix=False, total=epochs)
    schedule = {"name": "cosine", "warmup": f"{warmup} epochs", "warmup_lr": 1e-6, "end_lr": 1e-5, "per_epoch": True}
    changes = {f"data__{key}": value for key, value in data.items()}
    config = experiment(
        optim__schedule=schedule | {"warmup_prefix": False}, duration=f"{epochs} epochs", precision="fp32", **changes
    )
    lr = build_schedule(config)
    assert (config.num_steps, config.steps_per_epoch, config.epochs(1600)) == (200, 10, 20)
    assert [lr(step) for step in range(200)] == pytest.approx([wanted[step // 10] for step in range(200)], rel=1e-9)


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
