"""``python -m pipelines plan``: the paper's figures, the recommendation, the command line and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.plan import cli as plan
from pipelines.plan.estimate import Assumptions, Plan, make_plan
from pretrain.config.devices import find_device, load_devices
from pretrain.config.loader import load_experiment
from pretrain.errors import ConfigError, DataError
from pretrain.sharding.choice import resolve_micro_batch
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
        found.recommended is not None and found.recommended.sharding.stage == 0 and found.recommended.policy == "none"
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


def test_another_backend_is_named_if_it_holds_or_sends_less() -> None:
    """H/14 on 80 GB: FSDP2 holds less than ZeRO-0, and ZeRO-1 sends less than FSDP2."""
    for backend, other, less in (("deepspeed", "FSDP2", "memory"), ("fsdp2", "ZeRO-1", "sent_bytes")):
        found = planned("vit_h14_jft300m", f"cluster.backend={backend}")
        chosen, elsewhere = found.recommended, found.elsewhere
        assert chosen is not None and elsewhere is not None and elsewhere.sharding.name == other
        assert (elsewhere.policy, elsewhere.micro_batch_size) == (chosen.policy, chosen.micro_batch_size)
        values = [one.memory.peak if less == "memory" else one.sent_bytes for one in (elsewhere, chosen)]
        assert values[0] < 0.95 * values[1]
        shown = plan.as_text(found, "", [])
        assert f"({other}) with the same checkpointing and micro-batch: " in shown


def test_decompositions_of_shampoo_are_a_named_pause_and_part_of_the_mean_step() -> None:
    """L/16 in blocks of 1024: 24 factors of 1024³ in each of 24 blocks, 1024³ + 768³ of the stem; 11 N³ each."""
    often, rarely = (
        planned("vit_l16_jft300m", f"optim={{name: shampoo, lr: 1e-3, precondition_frequency: {every}}}", num_devices=1)
        for every in (10, 100)
    )
    assert often.recommended is not None and rarely.recommended is not None
    reason = next(reason for reason in often.reasons if reason.startswith("optimiser: every 10 updates"))
    tera = 11 * (577 * 1024**3 + 768**3) / 1e12
    assert f"{tera:.2g} TFLOP" in reason and f"at least {1e12 * tera / often.machine.flops:.2g} s longer" in reason
    saved = often.recommended.step_s - rarely.recommended.step_s
    assert saved == pytest.approx(1e12 * tera * (1 / 10 - 1 / 100) / often.machine.flops)
    assert not any(reason.startswith("optimiser") for reason in planned("vit_l16_jft300m").reasons)


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
        (["precision=bf16"], [0, 1, 2, 3]),
        (["precision=autocast", "cluster.compile=true"], [0, 1, 2, 3]),
        (["precision=bf16", "cluster.deepspeed.zero_optimization.overlap_comm=false"], [1, 2, 3]),
        (["precision=autocast", "cluster.backend=accelerate", "cluster.zero_stage=0"], [0]),
    ],
)
def test_only_what_can_be_run_is_planned(settings: list[str], stages: list[int]) -> None:
    found = planned("vit_b16_jft300m", *settings)
    assert sorted({layout.sharding.stage for layout in found.layouts}) == stages
    assert {layout.policy for layout in found.layouts} == {"none", "selective", "every_2", "full"}


def test_a_wrong_number_of_samples_is_refused_where_the_shards_are(tmp_path: Path) -> None:
    write_set(tmp_path / "set", [20, 12])
    settings = [f"data.shards={tmp_path / 'set'}", "data.num_samples=1281167"]
    with pytest.raises(DataError, match=r"has 32, but data\.num_samples is 1,281,167; set data\.num_samples: 32"):
        planned("vit_b16_jft300m", *settings)


def test_a_cluster_of_cpus_is_not_planned_as_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", SMALL[1], "--cluster", "configs/cluster/cpu.yaml"]
    assert main(words) == 2
    assert "cluster.device: cpu: plan counts with the GPUs of" in capsys.readouterr().err
    assert main([*words, "--device", "h100"]) == 0
    assert "2 × NVIDIA H100" in capsys.readouterr().out


def test_checkpoints_and_disk() -> None:
    """AdamW: fp32 weights and two moments in slices, and plain weights beside them; an average is two more."""
    plain, averaged = planned("vit_b16_jft300m"), planned("vit_b16_jft300m", "optim.ema_decay=0.999")
    assert plain.disk.checkpoint_bytes == 16 * plain.work.parameters
    assert averaged.disk.checkpoint_bytes == 24 * plain.work.parameters
    half = planned("vit_b16_jft300m", "optim.momentum_dtype=bf16")
    assert half.disk.checkpoint_bytes == 14 * plain.work.parameters, "a bf16 moment is stored as bf16"
    short = planned("vit_b16_jft300m", "duration=10 steps", "checkpoint.every=4 steps", "checkpoint.keep_last=2")
    assert short.disk.num_saves == 3 and short.disk.held_bytes == 3 * 16 * plain.work.parameters
    assert short.disk.lost_steps == 4


def test_checkpoints_that_are_due_by_time() -> None:
    """Steps 3, 4, 7, 8 and 10: time is counted from the last one, whatever made it due."""
    step_s = 4096 / planned("vit_b16_jft300m").work.images_per_s
    both = planned("vit_b16_jft300m", "duration=10 steps", f"checkpoint.every=4 steps or {2.5 * step_s:f} seconds")
    assert (both.disk.num_saves, both.disk.lost_steps) == (5, 3)
    assert both.disk.lost_s == pytest.approx(3 * step_s)
    time = planned("vit_b16_jft300m", "duration=10 steps", f"checkpoint.every={2.5 * step_s:f} seconds")
    assert (time.disk.num_saves, time.disk.lost_steps) == (4, 3)


def test_fast_checkpoints() -> None:
    """AdamW keeps three fp32 numbers per parameter; each node holds two saves of its part and of its neighbour's."""
    none = planned("vit_b16_jft300m", num_devices=32)
    plan = planned("vit_b16_jft300m", "checkpoint.fast.every=20 steps", num_devices=32)
    alone = planned("vit_b16_jft300m", "checkpoint.fast.every=1 seconds", num_devices=8)
    part = 12 * plan.work.parameters / 4
    assert none.fast is None and plan.fast is not None and alone.fast is not None
    assert plan.fast.node_bytes == pytest.approx(4 * part, rel=1e-6)
    assert (plan.fast.host_bytes, plan.fast.sent_bytes) == pytest.approx((part, part), rel=1e-6)
    assert plan.fast.lost_steps == 20 and plan.fast.lost_s < plan.disk.lost_s
    assert (alone.fast.sent_bytes, alone.fast.node_bytes) == (0, pytest.approx(8 * part, rel=1e-6))
    step_s = alone.experiment.global_batch_size / alone.work.images_per_s
    assert 1 <= alone.fast.lost_s < 1 + step_s


def test_copies_in_an_object_store(capsys: pytest.CaptureFixture[str]) -> None:
    """AdamW: 12 bytes per parameter in slices, of which each of 4 nodes uploads its part, and 4 in a weights file."""
    words = ("checkpoint.mirror=s3://bucket/runs", "duration=100 steps", "checkpoint.every=10 steps")
    plan = planned("vit_b16_jft300m", *words, "checkpoint.keep_every=50 steps", num_devices=32)
    assert plan.mirror is not None and planned("vit_b16_jft300m").mirror is None
    size = 16 * plan.work.parameters
    assert plan.mirror.copy_bytes == size and plan.disk.num_kept == 2 + 2
    assert plan.mirror.held_bytes == plan.disk.held_bytes == 5 * size
    assert plan.mirror.copy_s == pytest.approx(2 * (12 / 4 + 4) * plan.work.parameters / 1e9, rel=1e-6)
    assert plan.mirror.uploaded_bytes == 8 * size, "a copy takes 1.3 times as long as from one checkpoint to the next"
    slow = printed(capsys, *SMALL, *words, "--store-gb-s", "1e-6")["mirror"]
    assert slow["copy_s"] > slow["interval_s"] and slow["uploaded_bytes"] < 10 * slow["copy_bytes"]
    quick = printed(capsys, *SMALL, *words, "--store-gb-s", "1e6")["mirror"]
    assert quick["uploaded_bytes"] == 10 * quick["copy_bytes"], "each of the ten checkpoints once"
    assert main(["plan", *SMALL, *words, "--store-gb-s", "1e-6"]) == 0
    told = capsys.readouterr().out
    assert "uploaded to s3://bucket/runs" in told and "so some are not copied" in told and "1e-06 GB/s" in told


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, *SMALL)
    assert {"parameters", "train_exaflops", "steps", "gpu_hours", "fits"} <= found.keys()
    assert found["steps"] == 400 and found["fits"] is True and found["num_devices"] == 8
    text = " ".join(found["assumed"])
    assert "no --cluster was given" in text and "never measured on a GPU" in text
    found = printed(capsys, *SMALL, "cluster.num_devices=4", "--device", "h100", "--mfu", "0.3")
    assert found["num_devices"] == 4 and "no --cluster" not in " ".join(found["assumed"])


def test_fast_checkpoints_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL, "cluster.num_devices=16", "checkpoint.fast.every=20 steps"]
    assert plan.main(words) == 0
    told = capsys.readouterr().out
    assert "every 20 steps in /dev/shm: at most" in told and "a lost node costs at most 20 steps" in told
    assert plan.main([*words, "checkpoint.fast.peers=0"]) == 0
    assert "without copies on other nodes; a crash costs at most 20 steps" in capsys.readouterr().out


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
        (["--store-gb-s", "2"], "--store-gb-s would be ignored"),
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


def test_images_that_grow_cost_what_each_step_costs() -> None:
    """FLOPs and hours are sums over the steps, memory is the largest images', and the loader serves the smallest."""
    grown = planned("baseline_s16_i1k_90ep", "data.resolution=[[0, 96], [25 %, 128], [75 %, 256]]")
    of = {side: planned("baseline_s16_i1k_90ep", f"model.img_size={side}") for side in (96, 128, 256)}
    shares = {96: 0.25, 128: 0.5, 256: 0.25}
    assert grown.work.train_flops == pytest.approx(
        sum(share * of[side].work.train_flops for side, share in shares.items()), rel=1e-4
    )
    assert grown.work.days == pytest.approx(sum(share * of[side].work.days for side, share in shares.items()), rel=1e-4)
    assert grown.data.images_per_s == pytest.approx(of[96].data.images_per_s, rel=1e-4)
    ours, theirs = grown.layouts[0].memory, of[256].layouts[0].memory
    assert (ours.activations, ours.working) == (theirs.activations, theirs.working)
    assert grown.work.parameters == planned("baseline_s16_i1k_90ep").work.parameters


def test_patches_that_are_drawn_cost_what_each_step_costs() -> None:
    common = ("duration=2000 steps", "model.pos_embed=learned_1d", "optim.schedule.warmup=10 steps")
    drawn = planned("baseline_s16_i1k_90ep", "model.patch_sizes=[16, 32]", *common)
    of = {patch: planned("baseline_s16_i1k_90ep", f"model.variant=S/{patch}", *common) for patch in (16, 32)}
    patches = [drawn.experiment.image_sizes.at(step).patch or 0 for step in range(2000)]
    expected = sum(of[patch].work.train_flops for patch in patches) / 2000
    assert drawn.work.train_flops == pytest.approx(expected, rel=1e-6)
    assert drawn.layouts[0].memory.activations == of[16].layouts[0].memory.activations
