"""``--check``, ``plan``, ``--simulate`` and ``micro_batch_size: auto`` give the same bytes for the same question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan import cli as plan
from pretrain.check.experiment import check
from pretrain.check.simulate import simulate
from pretrain.config.loader import Resolved, load_experiment
from pretrain.sharding.choice import RESERVED_BYTES, resolve_micro_batch, sharding_of
from pretrain.sharding.protocol import size_text

RANKS = 4
BASE = """\
name: agree
duration: 100 steps
global_batch_size: 64
precision: autocast
data: {shards: none, num_samples: 1000, num_classes: 10}
optim: {lr: 1e-3, ema_decay: 0.999, layer_decay: 0.9}
cluster: {num_devices: 4, micro_batch_size: 8}
"""
MODELS = {
    "vit": ["model={variant: S/16, img_size: 32, depth: 4}"],
    "timm": ["model={name: timm/vit_tiny_patch16_224, img_size: 32, kwargs: {depth: 4}}"],
}
POLICIES = {"vit": ["none", "full", "every_2", "selective"], "timm": ["none", "full"]}
SHARDINGS = {
    "DDP": ["cluster.backend=accelerate"],
    "FSDP2": ["cluster.backend=fsdp2"],
    **{f"ZeRO-{stage}": [f"cluster.zero_stage={stage}"] for stage in range(4)},
    "bf16, ZeRO-2, frozen": [
        "cluster.zero_stage=2", "precision=bf16", "optim.overrides=[{pattern: '^blocks.0', freeze: true}]"
    ],
}  # fmt: skip


def of_check(resolved: Resolved) -> dict[str, str]:
    """Part → size, as printed by ``--check``."""
    line = next(line for line in check(resolved, world=RANKS) if line.startswith("memory"))
    peak, parts = line.removeprefix("memory").split(" per device ")
    pairs = [part.split(" ", 1) for part in parts.split(": ", 1)[1].split(", ")]
    return {"peak": peak.strip(), **dict(pairs)}


def of_simulate(resolved: Resolved) -> dict[str, str]:
    """Part → size, as printed by ``--simulate``."""
    words = [line.split() for line in simulate(resolved, RANKS, 0, backend="deepspeed").lines(["none"])]
    names = ("peak", "weights", "gradients", "optimiser", "average", "buckets", "activations")
    return {line[0]: " ".join(line[1:3]).rstrip(",") for line in words if line[0] in names}


def of_plan(path: Path, settings: list[str], policy: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """The layouts of one sharding and policy in the JSON that ``plan`` prints, a micro-batch each."""
    assert plan.main(["--config", str(path), "--json", *settings]) == 0
    layouts = json.loads(capsys.readouterr().out)["layouts"]
    name = sharding_of(load_experiment(path, overrides=settings).experiment).name
    return [one for one in layouts if (one["sharding"], one["activation_checkpointing"]) == (name, policy)]


@pytest.mark.parametrize(
    ("model", "policy"), [(model, policy) for model, policies in POLICIES.items() for policy in policies]
)
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_one_number_for_one_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, policy: str, sharding: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE)
    settings = [*MODELS[model], *SHARDINGS[sharding], f"cluster.activation_checkpointing={policy}"]
    resolved = load_experiment(path, overrides=settings)
    (layout,) = of_plan(path, settings, policy, capsys)
    planned = {name: size_text(size) for name, size in layout["memory_bytes"].items()}
    planned["peak"] = size_text(layout["peak_bytes"])
    assert of_check(resolved) == of_simulate(resolved) == planned
    traffic = simulate(resolved, RANKS, 0, backend="deepspeed").traffic
    assert layout["sent_bytes_per_step"] == round(sum(one.sent(RANKS) for one in traffic))


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_auto_takes_what_the_plan_says_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str], sharding: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(BASE)
    settings = [*MODELS["vit"], *SHARDINGS[sharding], "global_batch_size=512", "cluster.micro_batch_size=auto"]
    experiment = load_experiment(path, overrides=settings).experiment
    peaks = {one["micro_batch_size"]: one["peak_bytes"] for one in of_plan(path, settings, "none", capsys)}
    assert list(peaks) == [2, 4, 8, 16, 32, 64, 128]
    for peak in peaks.values():
        largest = max(size for size, other in peaks.items() if other <= peak)
        assert resolve_micro_batch(experiment, RANKS, peak + RESERVED_BYTES)[0] == largest
