"""The digest of settings that decide the result, differences of two configs, and which a resume accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.changes import NOT_SET, Change, changes, decides_result, refuse_another_order, refuse_changes
from pretrain.config.loader import Resolved, load_experiment
from pretrain.errors import ConfigError
from tests.unit.config.test_loader import MINIMAL


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    return path


FREE = [
    "name=other",
    "output_dir=elsewhere",
    "data.shards=moved",
    "data.drop_list=drop.jsonl",
    "data.allow_pipe=true",
    "data.max_bad_sample_rate=0.5",
    "evaluation={every: 3 steps, micro_batch_size: 3, sets: {a: {shards: a, num_samples: 3}}}",
    "checkpoint.every=1 steps",
    "resume.allow_changes=[seed]",
    "guard.max_consecutive_skips=1",
    "telemetry.log_every=1",
    "cluster={zero_stage: 3, micro_batch_size: 2, num_workers: 0, deepspeed: {x: 1}}",
]
DECISIVE = [
    "seed=1",
    "duration=8 epochs",
    "global_batch_size=32",
    "precision=fp32",
    "model.dropout=0.1",
    "objective.label_smoothing=0.1",
    "data.lanes=4",
    "data.num_samples=1001",
    "data.shuffle_window=1",
    "data.subset=10 %",
    "data.train_transform.hflip=0",
    "optim.lr=1",
    "optim.schedule.warmup=1 steps",
    "init.from=weights",
]


@pytest.mark.parametrize("override", FREE)
def test_these_leave_the_digest_alone(config: Path, override: str) -> None:
    before, after = load_experiment(config), load_experiment(config, overrides=[override])
    assert before.experiment != after.experiment
    assert before.digest == after.digest
    assert changes(before.to_dict(), after.to_dict()) == []


@pytest.mark.parametrize("override", DECISIVE)
def test_these_change_the_digest_and_are_named(config: Path, override: str) -> None:
    before, after = load_experiment(config), load_experiment(config, overrides=[override])
    assert before.digest != after.digest
    assert [change.key for change in changes(before.to_dict(), after.to_dict())] == [override.partition("=")[0]]


def test_a_default_that_is_written_out_changes_nothing(config: Path) -> None:
    before, after = load_experiment(config), load_experiment(config, overrides=["seed=0", "optim.betas=[0.9, 0.999]"])
    assert before.digest == after.digest


def test_each_change_has_its_old_and_new_value(config: Path) -> None:
    before = load_experiment(config)
    after = load_experiment(config, overrides=["optim.name=sgd", "optim.lr=2", "model.img_size=[8, 8]"])
    found = changes(before.to_dict(), after.to_dict())
    assert Change("optim.lr", 1e-4, 2.0) in found
    assert Change("model.img_size", 224, [8, 8]) in found
    assert Change("optim.betas", [0.9, 0.999], NOT_SET) in found
    assert Change("optim.momentum", NOT_SET, 0.9) in found
    assert str(Change("optim.lr", 1e-4, 2.0)) == "optim.lr: 0.0001 → 2.0"


@pytest.mark.parametrize(
    ("key", "decides"),
    [("optim.lr", True), ("data.num_samples", True), ("data.shards", False), ("cluster", False), ("cluster.x", False)],
)
def test_decides_result(key: str, decides: bool) -> None:
    assert decides_result(key) is decides


CHANGES = [Change("optim.lr", 1.0, 2.0), Change("optim.schedule.name", "cosine", "linear")]


@pytest.mark.parametrize(
    "allowed", [["optim"], ["optim.lr", "optim.schedule"], ["optim.schedule.name", "optim.lr", "seed"]]
)
def test_changes_that_are_named_pass(allowed: list[str]) -> None:
    assert refuse_changes(CHANGES, allowed) == CHANGES


@pytest.mark.parametrize(
    ("allowed", "parts"),
    [
        ([], ["optim.lr: 1.0 → 2.0", "cosine → linear", "resume.allow_changes=[optim.lr, optim.schedule.name]"]),
        (["optim.schedule"], ["resume.allow_changes=[optim.lr]"]),
        (["opt"], ["resume.allow_changes: opt is not a key"]),
        (["optim.rl"], ["optim.rl is not a key; did you mean optim.lr?"]),
    ],
)
def test_other_changes_are_refused(allowed: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_changes(CHANGES, allowed)
    for part in parts:
        assert part in str(caught.value)


def test_the_digest_does_not_depend_on_how_it_was_written(config: Path, tmp_path: Path) -> None:
    first: Resolved = load_experiment(config)
    (tmp_path / "y.yaml").write_text(first.to_yaml())
    assert load_experiment(tmp_path / "y.yaml").digest == first.digest


MIXED = (
    "data={shards: null, num_samples: 30, num_classes: 3, mixture: "
    "[{%s, num_samples: 10, weight: 3}, {shards: b, num_samples: 20, weight: %s}]}"
)


@pytest.mark.parametrize(
    ("first", "weight", "changed"),
    [
        ("shards: moved", "1", []),
        ("shards: a", "2", ["data.mixture.1.weight"]),
        ("shards: a, subset: 50 %", "1", ["data.mixture.0.subset"]),
    ],
)
def test_of_a_mixture_all_but_its_places_decides(config: Path, first: str, weight: str, changed: list[str]) -> None:
    before = load_experiment(config, overrides=[MIXED % ("shards: a", "1")])
    after = load_experiment(config, overrides=[MIXED % (first, weight)])
    found = changes(before.to_dict(), after.to_dict())
    assert [change.key for change in found] == changed
    assert (before.digest == after.digest) == (not changed)
    assert refuse_changes(found, ["data.mixture"]) == found


def test_another_sampling_cannot_be_allowed(config: Path) -> None:
    before, after = load_experiment(config), load_experiment(config, overrides=["data.sampling=balanced"])
    with pytest.raises(ConfigError, match=r"data\.sampling: natural → balanced"):
        refuse_another_order(changes(before.to_dict(), after.to_dict()))
