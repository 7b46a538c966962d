"""The figures of docs/sharding.md are those of the arithmetic that ``plan`` uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.loader import load_experiment
from pretrain.sharding.choice import SHARDINGS
from pretrain.sharding.protocol import Sharding
from pretrain.sharding.step import step_of

ROOT = Path(__file__).resolve().parents[3]
RANKS, BATCH = 8, 256
MODEL = ["model.variant=H/14", "data.num_classes=1000", f"global_batch_size={BATCH}"]
EVERY = [one for possible in SHARDINGS.values() for one in possible]
PRECISIONS = ("fp32", "bf16", "autocast")


def figures(sharding: Sharding, precision: str) -> list[str]:
    """GiB between steps, GiB of gradients, and the gigabytes sent in a step of one and of four micro-batches."""
    experiment = load_experiment(
        ROOT / "configs" / "pretrain" / "vit_h14_jft300m.yaml", overrides=[*MODEL, f"precision={precision}"]
    ).experiment
    steps = [step_of(experiment, RANKS, BATCH // RANKS // passes) for passes in (1, 4)]
    held, carried = (sharding.memory(step) for step in steps)
    sent = [sum(one.sent(RANKS) for one in sharding.traffic(step)) / 1e9 for step in steps]
    gibibytes = [held.state / 2**30, held.gradients / 2**30, carried.gradients / 2**30]
    return [f"{number:.1f}" for number in (*gibibytes, *sent)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("sharding", EVERY, ids=lambda one: one.name)
def test_a_row_of_the_page(sharding: Sharding, precision: str) -> None:
    row = f"| {sharding.name} | {precision} | {' | '.join(figures(sharding, precision))} |"
    assert row in (ROOT / "docs" / "sharding.md").read_text().splitlines()
