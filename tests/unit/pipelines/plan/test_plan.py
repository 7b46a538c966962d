"""``python -m pipelines plan``: the paper's figures, the recommendation, the command line and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.plan import cli as plan
from pipelines.plan.estimate import Assumptions, Plan, make_plan
from pretrain.config.devices import find_device, load_devices
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError
from pretrain.sharding.micro_batch import resolve_micro_batch
from tests.unit.data.sets import write_set

ROOT = Path(__file__).resolve().parents[4]
CONFIGS = ROOT / "configs" / "pretrain"
# The demo's keys that these tests lean on are pinned here.
SMALL = ["--config", str(CONFIGS / "demo_digits.yaml"), "global_batch_size=64", "duration=400 steps"]


def planned(name: str, *overrides: str, device: str = "a100_80", num_devices: int = 8, mfu: float = 0.4) -> Plan:
    experiment = load_experiment(CONFIGS / f"{name}.yaml", overrides=overrides).experiment
    return make_plan(experiment, find_device(device, load_devices()), num_devices, Assumptions(mfu=mfu))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert plan.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "exaflops"),
    [
        ("vit_b16_jft300m", 224),
        ("vit_l16_jft300m", 783),
        ("vit_l16_jft300m_14ep", 1567),
        ("vit_h14_jft300m", 4262),
    ],
)
def test_the_papers_exaflops(capsys: pytest.CaptureFixture[str], name: str, exaflops: float) -> None:
    """ViT, Table 6; the head is not counted."""
    found = printed(capsys, "--config", str(CONFIGS / f"{name}.yaml"))
    assert found["train_exaflops"] == pytest.approx(exaflops, rel=5e-3)
    assert found["train_exaflops"] < found["train_exaflops_with_head"]


@pytest.mark.parametrize(
    ("name", "core_days", "low", "high"),
    [("vit_h14_jft300m", 2500, 0.30, 0.35), ("vit_l16_jft300m_14ep", 680, 0.40, 0.46)],
)
def test_against_the_papers_core_days(name: str, core_days: float, low: float, high: float) -> None:
    """ViT, Table 2, in TPUv3 core-days. The MFU at which the plan needs as many is what such hardware reached."""
    at_peak = planned(name, device="tpu_v3_core", mfu=1.0)
    assert low < at_peak.work.gpu_hours / 24 / core_days < high


def test_hours_days_and_cost_belong_together() -> None:
    experiment = load_experiment(CONFIGS / "vit_l16_i21k_90ep.yaml").experiment
    found = make_plan(experiment, find_device("a100_80", load_devices()), 64, Assumptions(price=2.0))
    work = found.work
    assert work.gpu_hours == pytest.approx(1047, rel=0.01)  # the head of the config
    assert work.days * 24 * 64 == pytest.approx(work.gpu_hours) and work.cost == pytest.approx(2 * work.gpu_hours)
    seconds = work.days * 86400
    assert work.images_per_s * seconds == pytest.approx(experiment.num_steps * experiment.global_batch_size)
    assert found.num_nodes == 8 and found.data.images_per_s * 8 == pytest.approx(work.images_per_s)


@pytest.mark.parametrize("name", ["vit_l16_jft300m", "vit_h14_jft300m"])
@pytest.mark.parametrize("num_devices", [8, 64])
def test_l_and_h_need_no_zero_3_on_80_gb(name: str, num_devices: int) -> None:
    found = planned(name, num_devices=num_devices)
    assert (
        found.recommended is not None and found.recommended.sharding.stage == 1 and found.recommended.policy == "none"
    )
    assert any("ZeRO-3 is needless" in reason for reason in found.reasons)


def test_what_is_recommended_fits_and_nothing_plainer_does() -> None:
    """H/14 with 40 GB: no smaller policy is taken than is needed, and no larger micro-batch fits."""
    found = planned("vit_h14_jft300m", device="a100_40")
    chosen, limit = found.recommended, found.machine.limit_bytes
    assert chosen is not None and chosen.fits and chosen.memory.peak <= limit
    larger = [
        layout
        for layout in found.layouts
        if layout.row == chosen.row and layout.micro_batch_size > chosen.micro_batch_size
    ]
    assert larger and not any(layout.fits for layout in larger)
    assert all(layout.fits == (layout.memory.peak <= limit) for layout in found.layouts)


def test_a_giant_model_is_sharded_or_nothing_fits() -> None:
    """22 thousand million parameters: 44 GB of bf16 weights fit beside nothing else."""
    settings = ["model.variant=L/16", "model.embed_dim=6144", "model.depth=48", "model.num_heads=48"]
    settings.append("model.mlp_dim=24576")
    found = planned("vit_l16_jft300m", *settings, num_devices=64, device="a100_40")
    assert found.recommended is not None and found.recommended.sharding.stage == 3
    alone = planned("vit_l16_jft300m", *settings, num_devices=1)
    assert alone.recommended is None and alone.configured is None


def test_the_run_takes_the_planners_micro_batch() -> None:
    """``cluster.micro_batch_size: auto`` and the plan are one arithmetic."""
    found = planned("vit_h14_jft300m", "cluster.zero_stage=1")
    assert found.configured is not None
    experiment = found.experiment
    micro, _ = resolve_micro_batch(experiment, 8, int(find_device("a100_80", load_devices()).memory_gib * 2**30))
    assert found.configured.micro_batch_size == micro


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        (["precision=bf16"], [1, 2, 3]),
        (["precision=autocast"], [0, 1, 2, 3]),
        (["precision=autocast", "cluster.compile=true"], [0, 1, 2]),
        (["precision=autocast", "cluster.backend=accelerate", "cluster.zero_stage=0"], [0]),
    ],
)
def test_only_what_can_be_run_is_planned(settings: list[str], stages: list[int]) -> None:
    found = planned("vit_b16_jft300m", *settings)
    assert sorted({layout.sharding.stage for layout in found.layouts}) == stages
    selective = any(layout.policy == "selective" for layout in found.layouts)
    assert selective == ("cluster.compile=true" not in settings)


def test_checkpoints_and_disk() -> None:
    """AdamW: fp32 weights and two moments in slices, and plain weights beside them; an average is two more."""
    plain, averaged = planned("vit_b16_jft300m"), planned("vit_b16_jft300m", "optim.ema_decay=0.999")
    assert plain.disk.checkpoint_bytes == 16 * plain.work.parameters
    assert averaged.disk.checkpoint_bytes == 24 * plain.work.parameters
    short = planned("vit_b16_jft300m", "duration=10 steps", "checkpoint.every=4 steps", "checkpoint.keep_last=2")
    assert short.disk.num_saves == 3 and short.disk.held_bytes == 3 * 16 * plain.work.parameters


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, *SMALL)
    assert {"parameters", "train_exaflops", "steps", "gpu_hours", "fits"} <= found.keys()
    assert found["steps"] == 400 and found["fits"] is True and found["num_devices"] == 8
    text = " ".join(found["assumed"])
    assert "no --cluster was given" in text and "never measured on a GPU" in text
    found = printed(capsys, *SMALL, "cluster.num_devices=4", "--device", "h100", "--mfu", "0.3")
    assert found["num_devices"] == 4 and "no --cluster" not in " ".join(found["assumed"])


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["--config", str(CONFIGS / "vit_h14_jft300m.yaml"), "--price", "2"]) == 0
    out = capsys.readouterr().out
    for part in (
        "630.76 M",
        "4,258 exaFLOPs",
        "← recommended",
        "ZeRO-3 is needless",
        "cost ",
        "never measured on a GPU",
    ):
        assert part in out


def test_a_packed_set_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_set(tmp_path / "set", [70, 30])
    found = printed(capsys, *SMALL, f"data.shards={folder}", "data.num_samples=100")["data"]
    assert found["measured"] is True and found["num_shards"] == 2
    total = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert found["epoch_bytes"] == total
    part = printed(capsys, *SMALL, f"data.shards={folder}", "data.num_samples=100", "data.subset=50 %")
    assert part["data"]["epoch_bytes"] == pytest.approx(total / 2, abs=1), "an epoch reads the subset only"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["cluster.num_devices=7"], "7 ranks cannot share"),
        (["global_batch_size=63"], "63 is odd"),
        (["cluster.micro_batch_size=7"], "cluster.micro_batch_size: 7 does not divide the"),
        (["--mfu", "40"], "--mfu 40"),
        (["--price", "-1"], "--price -1"),
        (["--devices", "nowhere.yaml"], "nowhere.yaml: cannot read"),
        (["optim.lrr=1"], "optim.lrr"),
        (["precision=fp32", "--device", "tpu_v3_core"], "no fp32_tflops"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.main([*SMALL, *arguments])


def test_it_imports_no_torch() -> None:
    code = (
        "import sys; from pipelines.__main__ import main; "
        f"code = main(['plan', '--config', '{CONFIGS / 'vit_l16_jft300m.yaml'}', '--json']); "
        "sys.exit(code or ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_a_timm_backbone_is_measured_on_the_meta_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bit.yaml"
    path.write_text(
        "name: bit\nduration: 1 epoch\nglobal_batch_size: 256\noptim: {lr: 1e-3}\n"
        "model: {name: timm/resnetv2_50x1_bit}\ndata: {shards: nowhere, num_samples: 100_000, num_classes: 1000}\n"
    )
    found = printed(capsys, "--config", str(path))
    assert found["parameters"] / 1e6 == pytest.approx(25.55, abs=0.01)
    head = 2048 * 1000
    work = 6 * head * found["steps"] * 256 / 1e18
    assert found["train_exaflops_with_head"] - found["train_exaflops"] == pytest.approx(work, rel=1e-6)
    assert {layout["activation_checkpointing"] for layout in found["layouts"]} == {"none", "full"}
