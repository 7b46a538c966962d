"""A run whose images change their size has the same losses at any layout, and after a resume in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.test_elastic import run
from tests.distributed.test_equality_laws import losses, settings
from tests.pool import Pool

# The run of 40 steps changes at 2, draws from 3 on, and changes at 8; the checkpoint at 5 is between drawn sizes.
GROWING = {"data__resolution": [[0, 4], ["5 %", 6], ["3 steps", [4, 6, 8]], ["20 %", 8]], "model__patch_drop": 0.25}


FLEXIBLE = {"model__patch_sizes": [1, 2]}


@pytest.fixture(scope="module")
def expected(pool1: Pool) -> list[float]:
    values = losses(pool1, settings(0, 8, **GROWING))
    assert values != losses(pool1, settings(0, 8, model__patch_drop=0.25)), "sizes must matter"
    return values


SLOW = {
    "zero1": (1, 1, "deepspeed", {}),
    "zero3": (3, 2, "deepspeed", {}),
    "fsdp2": (0, 2, "fsdp2", {}),
    "fsdp2 compiled": (0, 4, "fsdp2", {"cluster__compile": True}),
    "accelerate": (0, 4, "accelerate", {}),
    "patches, zero3": (3, 2, "deepspeed", FLEXIBLE),
    "patches, fsdp2": (0, 2, "fsdp2", FLEXIBLE),
    "rotary, before every block": (
        2, 4, "deepspeed",
        {"model__rope": "axial", "model__pos_embed_placement": "every_layer_shared", "model__patch_drop": 0.0},
    ),
}  # fmt: skip


def test_two_ranks_in_two_passes(pool2: Pool, expected: list[float]) -> None:
    assert losses(pool2, settings(2, 2, **GROWING)) == pytest.approx(expected, rel=1e-5)


# Batches of 8 images of 8 × 8, and of 32 of 4 × 4.
TOKENS = {"data__resolution": [[0, [4, 8]], ["40 %", 8]], "batch_unit": 4}


@pytest.mark.parametrize(
    ("stage", "ranks", "kind"),
    [
        (1, 2, "deepspeed"),
        pytest.param(0, 2, "deepspeed", marks=pytest.mark.slow),
        pytest.param(3, 1, "deepspeed", marks=pytest.mark.slow),
        pytest.param(0, 2, "fsdp2", marks=pytest.mark.slow),
    ],
)
def test_batches_of_constant_tokens(pool1: Pool, pool2: Pool, stage: int, ranks: int, kind: str) -> None:
    """Batches of different numbers of images: two passes give the losses of plain steps with complete batches."""
    pool, micro = (pool1, 4) if ranks == 1 else (pool2, 2)
    expected = losses(pool1, settings(0, 8, **TOKENS))
    assert losses(pool, settings(stage, micro, **TOKENS), kind) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_resume_between_batches_of_different_numbers(pool1: Pool, pool2: Pool, pool4: Pool, tmp_path: Path) -> None:
    pools = {1: pool1, 2: pool2, 4: pool4}
    expected = losses(pool1, settings(0, 8, **TOKENS))
    first = run(pools, (1, 2, "deepspeed"), {"steps": 5, "save_at": 5, "folder": str(tmp_path)}, **TOKENS)
    second = run(pools, (3, 4, "deepspeed"), {"steps": 10, "folder": str(tmp_path), "resume": True}, **TOKENS)
    found = first["losses"] | second["losses"]
    assert [found[step] for step in range(10)] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW)
def test_every_layout(pool1: Pool, pool2: Pool, expected: list[float], case: str) -> None:
    stage, micro, kind, more = SLOW[case]
    own = any(key.startswith("model__") for key in more)
    reference = losses(pool1, settings(0, 8, **(GROWING | more))) if own else expected
    assert losses(pool2, settings(stage, micro, **(GROWING | more)), kind) == pytest.approx(reference, rel=1e-5)


@pytest.mark.slow
def test_a_resume_between_drawn_sizes_at_another_layout(
    pool1: Pool, pool2: Pool, pool4: Pool, expected: list[float], tmp_path: Path
) -> None:
    pools = {1: pool1, 2: pool2, 4: pool4}
    first = run(pools, (1, 2, "deepspeed"), {"steps": 5, "save_at": 5, "folder": str(tmp_path)}, **GROWING)
    for layout in ((3, 4, "deepspeed"), (0, 1, "fsdp2")):
        second = run(pools, layout, {"steps": 10, "folder": str(tmp_path), "resume": True}, **GROWING)
        found = first["losses"] | second["losses"]
        assert [found[step] for step in range(10)] == pytest.approx(expected, rel=1e-5)
