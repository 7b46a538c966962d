"""The table of combinations: ``--check`` accepts every supported row and refuses every other with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.check.experiment import check
from pretrain.config.combinations import AXES, RULES, Value, all_combinations, as_markdown, refusals
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
SMALL = """\
name: small
duration: 100 steps
global_batch_size: 64
model: {variant: nano/2, img_size: 8, depth: 4}
data: {shards: none, num_samples: 714, num_classes: 5}
optim: {lr: 1e-4}
"""
OPTIMIZERS = {False: ("adamw", "sgd"), True: ("adafactor", "lamb")}


def settings(combination: dict[str, Value], optimizer: str) -> list[str]:
    """The combination as settings of a command line."""
    name, policy = str(combination["sharding"]), str(combination["activation_checkpointing"])
    sharding = "cluster.backend=accelerate" if name == "DDP" else f"cluster.zero_stage={name.removeprefix('ZeRO-')}"
    return [
        sharding,
        f"precision={combination['precision']}",
        f"cluster.compile={str(combination['compile']).lower()}",
        f"cluster.activation_checkpointing={policy.replace('every_k', 'every_2')}",
        f"optim.name={optimizer}",
    ]


@pytest.mark.parametrize("sharding", AXES["sharding"])
def test_every_row_is_accepted_or_refused_with_its_reason(tmp_path: Path, sharding: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(SMALL)
    accepted = refused = 0
    for combination in all_combinations():
        if combination["sharding"] != sharding:
            continue
        for optimizer in OPTIMIZERS[bool(combination["needs_unsharded"])]:
            reasons = [reason for _, reason in refusals(**combination, optimizer=optimizer)]
            try:
                check(load_experiment(path, overrides=settings(combination, optimizer)), world=2)
                assert not reasons, combination
                accepted += 1
            except ConfigError as error:  # the schema refuses by the first rule that it knows, check by all the others
                assert any(reason in str(error) for reason in reasons), (combination, error)
                refused += 1
    assert accepted and refused


def test_every_rule_refuses_something_and_a_part_of_a_combination_is_enough() -> None:
    for rule in RULES:
        assert any(rule.applies(combination) for combination in all_combinations())
        assert set(rule.when) <= set(AXES) and all(set(values) <= set(AXES[axis]) for axis, values in rule.when.items())
    assert refusals(sharding="ZeRO-3", compile=True) and not refusals(compile=True)
    assert refusals(compile=True, activation_checkpointing="selective")
    assert not refusals(compile=True, activation_checkpointing="every_7")


def test_the_page_shows_the_table() -> None:
    assert as_markdown() in (ROOT / "docs" / "models.md").read_text()
