"""The table of combinations: ``--check`` accepts every supported row and refuses every other with its reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pretrain.check.experiment import check
from pretrain.config.combinations import AXES, RULES, Value, all_combinations, as_markdown, refusals
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from pretrain.sharding.choice import SHARDINGS

ROOT = Path(__file__).resolve().parents[3]
SMALL = """\
name: small
duration: 100 steps
global_batch_size: 64
model: {variant: nano/2, img_size: 8, depth: 4}
data: {shards: none, num_samples: 714, num_classes: 5}
optim: {lr: 1e-4}
"""
SETTINGS = {one.name: one.setting for possible in SHARDINGS.values() for one in possible}


def settings(combination: dict[str, Value]) -> list[str]:
    """The combination as settings of a command line."""
    policy = str(combination["activation_checkpointing"])
    return [
        SETTINGS[str(combination["sharding"])].replace(": ", "="),
        f"precision={combination['precision']}",
        f"cluster.compile={str(combination['compile']).lower()}",
        f"cluster.activation_checkpointing={policy.replace('every_k', 'every_2')}",
    ]


@pytest.mark.parametrize("sharding", AXES["sharding"])
def test_every_row_is_accepted_or_refused_with_its_reason(tmp_path: Path, sharding: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(SMALL)
    accepted = refused = 0
    for combination in all_combinations():
        if combination["sharding"] != sharding:
            continue
        reasons = [reason for _, reason in refusals(**combination)]
        try:
            check(load_experiment(path, overrides=settings(combination)), world=2)
            assert not reasons, combination
            accepted += 1
        except ConfigError as error:  # the schema refuses by the first rule that it knows, check by all the others
            assert any(reason in str(error) for reason in reasons), (combination, error)
            refused += 1
    assert accepted and bool(refused) == any(sharding in rule.when.get("sharding", (sharding,)) for rule in RULES)


def test_every_rule_refuses_something_and_a_part_of_a_combination_is_enough() -> None:
    for rule in RULES:
        assert any(rule.applies(combination) for combination in all_combinations())
        assert set(rule.when) <= set(AXES) and all(set(values) <= set(AXES[axis]) for axis, values in rule.when.items())
        axes = {axis: values[0] for axis, values in rule.when.items()}
        assert (rule.key, rule.reason) in refusals(**axes)
        for axis in axes:
            assert not rule.applies({other: value for other, value in axes.items() if other != axis})


def test_a_refusal_names_its_remedy_and_the_versions_that_were_tried() -> None:
    for rule in RULES:
        assert "use " in rule.reason and re.search(r"(torch|DeepSpeed|Accelerate) \d+\.\d+", rule.tried), rule
        assert f"tried with {rule.tried}" in as_markdown()


def test_the_page_shows_the_table() -> None:
    assert as_markdown() in (ROOT / "docs" / "models.md").read_text()
