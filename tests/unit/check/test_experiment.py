"""--check: what is refused and why, what is reported, the micro-batch that is chosen, and that no torch is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipelines.pack import cli as pack
from pretrain.check.experiment import check
from pretrain.config.loader import Resolved, load_experiment
from pretrain.data.storage.card import Card
from pretrain.data.storage.classes import encode_classes
from pretrain.errors import ConfigError, DataError
from pretrain.files import digest
from pretrain.sharding.choice import RESERVED_BYTES, resolve_micro_batch, sharding_of
from pretrain.sharding.protocol import GIB
from pretrain.sharding.step import step_of
from tests.faulty_server import folder_server, running

SMALL = """\
name: small
duration: 100 steps
global_batch_size: 64
precision: fp32
model: {variant: mu/2, img_size: 8}
data: {shards: digits/train, num_samples: 714, num_classes: 5}
optim: {lr: 1e-4}
evaluation: {sets: {val: {shards: digits/val, num_samples: 187}}}
"""

Load = Callable[..., Resolved]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads SMALL with overrides, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(SMALL)
    return lambda *overrides: load_experiment("x.yaml", overrides=overrides)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0-4, packed; the folder that holds digits/train and digits/val."""
    folder = tmp_path_factory.mktemp("packed")
    options = ["--classes", "0-4", "--holdout", "0.2", "--workers", "1", "--out", str(folder / "digits")]
    assert pack.main(["digits", *options]) == 0
    return folder


def line(report: list[str], subject: str) -> str:
    return next(line for line in report if line.startswith(subject))


@pytest.mark.parametrize(
    ("overrides", "world", "expected"),
    [
        (["model.img_size=9"], None, ["command line: model.img_size: the height 9", "use 8 or 10"]),
        (["model.variant=XL/2"], None, ["command line: model.variant: unknown size 'XL'"]),
        (["model.num_heads=5"], None, ["command line: model.num_heads: 5 heads do not divide"]),
        (["data.lanes=5"], None, ["command line: data.lanes: 5 does not fit", "1, 2, 4, 8, 16, 32"]),
        (["global_batch_size=63"], None, ["command line: global_batch_size: 63 is odd"]),
        (["data.num_samples=3"], None, ["data.lanes: 8 lanes need at least as many samples"]),
        ([], 3, ["x.yaml: 3 ranks cannot share 8 lanes", "1, 2, 4, 8, 16, 32"]),
        (["cluster.num_devices=3"], None, ["3 ranks cannot share"]),
        (["cluster.num_devices=4"], 2, ["command line: cluster.num_devices: 4 expected, but 2 ranks were started"]),
        (["cluster.micro_batch_size=24"], 2, ["cluster.micro_batch_size: 24 does not divide the 32 images per rank"]),
        (
            ["cluster.micro_batch_size=64", "cluster.device_memory_gib=0.001"],
            1,
            ["needs about", "of 1.0 MiB per device"],
        ),
        (["cluster.device_memory_gib=0.01"], 1, ["cluster.micro_batch_size: even 2 images need"]),
        (
            ["precision=bf16", "cluster.zero_stage=0", "cluster.deepspeed.zero_optimization.overlap_comm=true"],
            1,
            ["cluster.deepspeed: zero_optimization would be ignored, as ZeRO-0 with precision: bf16"],
        ),
        (
            ["optim.schedule.warmup=100 steps"],
            1,
            ["optim.schedule.warmup: 100 steps are not shorter than the run of 100"],
        ),
        (["optim.schedule.warmup=90 epochs"], 1, ["optim.schedule.warmup: 1004 steps are not shorter"]),
        (["duration=3 samples"], 1, ["duration: 3 samples is less than one step"]),
        (["checkpoint.every=1 samples"], 1, ["checkpoint.every: 1 samples is less than one step"]),
        (["evaluation.every=1 samples"], 1, ["evaluation.every: 1 samples is less than one step"]),
        (["evaluation={sets: {val: null}, every: 1 epoch}"], 1, ["evaluation.every: would be ignored"]),
        (["init.from=nowhere"], 1, ["command line: init.from: nowhere does not exist"]),
        (["resume.from=nowhere"], 1, ["command line: resume.from: nowhere does not exist"]),
        (["init.head=replace"], 1, ["command line: init.head: would be ignored without init.from"]),
        (["resume.allow_changes=[optim.rl]"], 1, ["allow_changes: optim.rl is not a key; did you mean optim.lr?"]),
    ],
)
def test_what_cannot_work_is_refused_with_place_and_remedy(
    load: Load, overrides: list[str], world: int | None, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check(load(*overrides), world=world)
    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("every", "cost"),
    [
        ("25 steps", "a kill costs at most 25 steps (25% of the run)"),
        ("25 steps or 15 minutes", "at most 25 steps (25% of the run) or 15 minutes of training, whichever is less"),
        ("1000 steps or 15 minutes", "a kill costs at most 15 minutes"),
        ("15 minutes", "a kill costs at most 15 minutes"),
        ("1000 steps", "none before the end, so a kill costs the complete run; write '1000 steps or 15 minutes'"),
    ],
)
def test_the_cost_of_a_kill_is_told(load: Load, every: str, cost: str) -> None:
    told = line(check(load(f"checkpoint.every={every}")), "checkpoints")
    assert told.startswith(f"checkpoints every {every}; ") and cost in told


def test_a_run_that_says_nothing_about_checkpoints_loses_minutes_at_most(load: Load) -> None:
    assert "a kill costs at most 15 minutes" in line(check(load()), "checkpoints")


def test_checkpoints_that_are_due_by_time_alone_cannot_be_kept_by_steps(load: Load) -> None:
    with pytest.raises(ConfigError, match="every: 15 minutes is a time alone; write '6 steps or 15 minutes'"):
        load("checkpoint.every=15 minutes", "checkpoint.keep_every=6 steps")
    load("checkpoint.every=3 steps or 15 minutes", "checkpoint.keep_every=6 steps")


@pytest.mark.parametrize(
    ("fast", "every", "problem"),
    [
        ("20 steps", "1000 steps or 15 minutes", None),
        ("20 steps", "20 steps", "checkpoint.fast.every: 20 steps is not shorter than checkpoint.every: 20 steps"),
        ("1 hours", "15 minutes", "checkpoint.fast.every: 1 hours is not shorter than checkpoint.every: 15 minutes"),
        ("20 steps or 30 seconds", "30 seconds", "is not shorter"),
    ],
)
def test_fast_checkpoints_that_would_save_nothing_are_refused(
    load: Load, fast: str, every: str, problem: str | None
) -> None:
    settings = [f"checkpoint.fast.every={fast}", f"checkpoint.every={every}"]
    if problem is None:
        told = line(check(load(*settings)), "fast")
        assert told == "fast        every 20 steps in /dev/shm of each node, with a copy on the next node"
    else:
        with pytest.raises(ConfigError, match=re.escape(problem)):
            load(*settings)


def test_a_relative_folder_for_fast_checkpoints_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.fast.folder.*'memory' is not an absolute path"):
        load("checkpoint.fast.folder=memory")
    assert "without copies" in line(check(load("checkpoint.fast.peers=0")), "fast")
    with pytest.raises(ConfigError, match=r"checkpoint.fast.every"):
        check(load("checkpoint.fast.every=0.001 epochs"))


def test_all_problems_are_told_at_once(load: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        check(
            load(
                "model.img_size=9",
                "data.lanes=5",
                "init.from=nowhere",
                "optim.schedule.warmup=1 epochs",
                "duration=2 steps",
            )
        )
    assert str(caught.value).startswith("4 problems:\n  command line: ")


def test_the_report_without_data(load: Load) -> None:
    report = check(load("cluster.micro_batch_size=8"), world=2)
    assert line(report, "batch").endswith("64 = 2 ranks × micro-batch 8 × accumulation 4")
    assert line(report, "steps").startswith("steps       100 (8.964 epochs), warmup 0")
    assert [entry for entry in report if entry.startswith("data")] == [
        "data        digits/train: data not found, not checked; 714 samples as configured",
        "data        digits/val: data not found, not checked; 187 samples as configured",
    ]


def test_absent_data_is_an_error_where_it_is_required(load: Load) -> None:
    with pytest.raises(DataError, match=r"data\.shards: no shards in digits/train; make them with python -m pipelines"):
        check(load(), require_data=True)


@pytest.fixture
def beside(load: Load, packed: Path) -> Load:
    """Like load, with a copy of the packed digits that a test may damage."""
    import shutil

    shutil.copytree(packed / "digits", "digits")
    return load


def test_data_that_is_there_is_checked(beside: Load) -> None:
    report = check(beside(), require_data=True)
    assert "digits/train: 714 samples in 1 shards, digest" in line(report, "data        digits/train")
    assert "digits/val: 187 samples" in line(report, "data        digits/val")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.num_samples=715", ["train/index.json", "has 714, but data.num_samples is 715", "num_samples: 714"]),
        ("data.num_classes=6", ["has 5, but data.num_classes is 6"]),
        ("evaluation.sets.val.num_samples=1", ["has 187, but evaluation.sets.val.num_samples is 1"]),
    ],
)
def test_another_set_than_configured_is_refused(beside: Load, override: str, expected: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        check(beside(override))
    for part in expected:
        assert part in str(caught.value)


def test_a_set_elsewhere_is_checked_like_one_in_a_folder(beside: Load, tmp_path: Path) -> None:
    with running(folder_server(Path("digits").resolve())) as server:
        here = [f"data.shards={server.url}/train", f"cluster.cache.dir={tmp_path / 'cache'}"]
        report = check(beside(*here), require_data=True)
        assert line(report, "data        http").endswith(line(check(beside()), "data        digits/train")[-70:])
        assert "of 32.0 GiB in use on a node of 1 ranks" in line(report, "cache")
        with pytest.raises(DataError, match=r"/train/index\.json: the set has 714, but data\.num_samples is 715"):
            check(beside(*here, "data.num_samples=715"))
        Path("digits/train/shard-000000.tar").write_bytes(b"")
        with pytest.raises(DataError, match=r"shard-000000\.tar is truncated"):
            check(beside(*here))
        away = [f"data.shards={server.url}/nowhere", *here[1:]]
        assert "data not found, not checked" in line(check(beside(*away)), "data        http")
        with pytest.raises(DataError, match=r"nowhere/index\.json: not there"):
            check(beside(*away), require_data=True)
        with pytest.raises(ConfigError, match=r"command line: data\.shards: pipe:.* set data\.allow_pipe: true"):
            check(beside("data.shards=pipe:cat {name}"))


def test_a_part_and_a_mixture_are_reported(beside: Load) -> None:
    assert "an epoch draws 71 samples" in line(check(beside("data.subset=10 %")), "data        an epoch")
    report = check(
        beside(
            "data={shards: null, num_samples: 1428, num_classes: 5, mixture: [{shards: digits/train, num_samples: 714, "
            "weight: 3}, {shards: digits/train, num_samples: 714, weight: 1, subset: 50 %}]}"
        )
    )
    expected = "an epoch draws 1,071 samples: 714 of digits/train, 357 of digits/train"
    assert expected in line(report, "data        an epoch")


def test_a_truncated_shard_is_refused(beside: Load) -> None:
    shard = next(Path("digits/train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=f"{shard.name} is truncated"):
        check(beside())


def test_an_evaluation_set_with_the_classes_in_another_order_is_refused(beside: Load) -> None:
    digits = [(str(number), str(number)) for number in (1, 0, 2, 3, 4)]
    encoded = encode_classes(digits)
    card = Card.load("digits/val").model_copy(update={"classes_digest": digest(encoded)})
    Path("digits/val/classes.csv").write_bytes(encoded)
    Path("digits/val/card.json").write_bytes(card.to_json())
    with pytest.raises(DataError, match=r"digits/val has other classes than .*: class 0 is '1' there and '0' here"):
        check(beside(), world=1)


def test_shards_without_an_index_are_not_taken_for_absent(beside: Load) -> None:
    Path("digits/train/index.json").unlink()
    with pytest.raises(DataError, match=r"have no index yet\. Make it with: python -m pipelines verify"):
        check(beside())


def test_one_label_per_image_needs_a_set_of_that_kind(beside: Load) -> None:
    table = json.loads(Path("digits/train/index.json").read_text())
    from pretrain.data.storage.index import ShardRow, ShardTable

    rows = [ShardRow(*row) for row in table["shards"]]
    forged = ShardTable(Path("digits/train"), rows, num_classes=5, max_labels=3)
    forged.save()
    card = json.loads(Path("digits/train/card.json").read_text())
    forged_card = card | {"index_digest": forged.digest, "max_labels": 3, "labels": "multi", "facts_digest": ""}
    Path("digits/train/card.json").write_text(json.dumps(forged_card))
    with pytest.raises(ConfigError, match=r"objective\.name: softmax takes one label.*none or several; use sigmoid"):
        check(beside())
    assert check(beside("objective.name=sigmoid"))


def test_the_start_weights_are_named(load: Load) -> None:
    Path("weights.safetensors").write_bytes(b"")
    assert line(check(load("init.from=weights.safetensors")), "init.from").endswith("weights.safetensors")


@pytest.mark.parametrize(
    ("batch", "world", "wanted", "expected"),
    [
        (4096, 8, "auto", (64, 8)),
        (4096, 64, "auto", (64, 1)),
        (64, 1, "auto", (64, 1)),
        (64, 4, "auto", (16, 1)),
        (96, 1, "auto", (48, 2)),
        (2 * 67, 1, "auto", (2, 67)),
        (64, 2, "4", (4, 8)),
        (64, 64, "1", (1, 1)),
    ],
)
def test_the_micro_batch_where_the_memory_is_not_known(
    load: Load, batch: int, world: int, wanted: str, expected: tuple[int, int]
) -> None:
    experiment = load(f"global_batch_size={batch}", f"cluster.micro_batch_size={wanted}").experiment
    assert resolve_micro_batch(experiment, world) == expected


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("memory_gib", [24, 40, 80])
@pytest.mark.parametrize("world", [8, 64])
def test_auto_takes_the_largest_even_divisor_that_fits(load: Load, world: int, memory_gib: int, stage: int) -> None:
    settings = ["model.variant=L/16", "model.img_size=224", "precision=bf16", f"cluster.zero_stage={stage}"]
    experiment = load("global_batch_size=4096", *settings).experiment
    micro, accumulation = resolve_micro_batch(experiment, world, memory_gib * GIB)
    per_rank = 4096 // world
    assert micro * accumulation == per_rank and micro % 2 == 0

    def fits(size: int) -> bool:
        held = sharding_of(experiment).memory(step_of(experiment, world, size))
        return held.peak <= memory_gib * GIB - RESERVED_BYTES

    larger = [size for size in range(micro + 2, per_rank + 1, 2) if per_rank % size == 0]
    assert fits(micro) and not any(map(fits, larger))


def test_the_configured_memory_goes_before_the_detected(load: Load) -> None:
    settings = ["model.variant=L/16", "model.img_size=224", "global_batch_size=4096", "precision=bf16"]
    small = resolve_micro_batch(load(*settings, "cluster.device_memory_gib=16").experiment, 8, 80 * GIB)
    assert small == resolve_micro_batch(load(*settings).experiment, 8, 16 * GIB)
    assert small[0] < resolve_micro_batch(load(*settings).experiment, 8, 80 * GIB)[0]


def test_ddp_holds_the_whole_optimiser_on_every_device(load: Load) -> None:
    settings = ["model.variant=H/14", "model.img_size=224", "global_batch_size=4096", "precision=autocast"]
    experiment = load(*settings).experiment
    sharded, _ = resolve_micro_batch(experiment, 64, 18 * GIB, backend="deepspeed")
    whole, _ = resolve_micro_batch(experiment, 64, 18 * GIB, backend="accelerate")
    assert whole < sharded


def test_sgd_keeps_fewer_states(load: Load) -> None:
    adamw, sgd, plain = (
        line(check(load("model.variant=nano/2", *settings), world=1), "memory")
        for settings in ([], ["optim.name=sgd"], ["optim.name=sgd", "optim.momentum=0"])
    )
    figures = [float(text.split("optimiser ")[1].split(" MiB")[0]) for text in (adamw, sgd, plain)]
    assert np.allclose(np.diff(figures), np.diff(figures)[0], atol=0.11) and figures[0] > figures[1] > figures[2]


def test_memory_counts_what_is_kept_in_bf16_and_the_average(load: Load) -> None:
    def optimiser_mib(*settings: str) -> float:
        report = line(check(load("model.variant=nano/2", *settings), world=1), "memory")
        parts = [report.split(f"{name} ")[1] for name in ("optimiser", "average") if f"{name} " in report]
        return sum(float(part.split(" MiB")[0]) for part in parts)

    ddp = "cluster.zero_stage=0"
    adamw = optimiser_mib(ddp)
    # Adafactor also has means: of a block's qkv 3·3·(32 + 96) values, proj 96 + 3·96, MLP 2·(96 + 384), vectors 1,248.
    means = 4 * (6 * (1152 + 384 + 960 + 1248) + 3653) / 2**20  # and what is not factored: tokens, patches, head
    for settings, share, more in (
        (["optim.momentum_dtype=bf16"], 0.75, 0.0),
        (["optim.ema_decay=0.999"], 1.5, 0.0),
        (["optim.name=lamb"], 1.0, 0.0),
        (["optim.name=adafactor"], 0.5, means),
        (["optim.name=adafactor", "optim.momentum_dtype=bf16"], 0.25, means),
    ):
        assert optimiser_mib(ddp, *settings) == pytest.approx(share * adamw + more, abs=0.11), settings


def test_overrides_are_checked_by_name(load: Load) -> None:
    report = check(load("optim.overrides=[{pattern: ^patch_embed, freeze: true}]"), world=1)
    assert line(report, "optimiser").endswith("0.00 M parameters are frozen")
    with pytest.raises(ConfigError, match="'heat' is found in no parameter's name"):
        check(load("optim.overrides=[{pattern: heat, freeze: true}]"), world=1)


def test_nothing_here_imports_torch(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SMALL)
    code = (
        "import sys; from pretrain.check.experiment import check; from pretrain.config.loader import load_experiment\n"
        f"assert check(load_experiment({str(tmp_path / 'x.yaml')!r}))\n"
        "heavy = {'torch', 'torchvision', 'webdataset', 'cv2', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["precision=bf16"], r"precision: bf16 rounds the running statistics of timm/resnet18 \(such as bn1"),
        (["cluster.activation_checkpointing=full"], "a second forward pass would gather twice"),
    ],
)
def test_running_statistics_are_neither_rounded_nor_gathered_twice(
    load: Load, overrides: list[str], message: str
) -> None:
    resnet = ["model.name=timm/resnet18", "model.variant=''", "model.img_size=32"]
    with pytest.raises(ConfigError, match=message):
        check(load(*resnet, *overrides), world=2)


def test_wrong_numbers_of_sets_are_told_with_all_others(beside: Load) -> None:
    wrong = ["data.num_samples=700", "data.num_classes=9", "evaluation.sets.val.num_samples=1"]
    with pytest.raises(DataError) as caught:
        check(beside(*wrong), require_data=True)
    told = str(caught.value)
    assert told.startswith("4 problems:") and told.count("set data.num_classes: 5") == 2
    assert "set data.num_samples: 714" in told and "set evaluation.sets.val.num_samples: 187" in told
    with pytest.raises(ConfigError) as both:
        check(beside(*wrong, "duration=3 samples"), require_data=True)
    assert "duration: 3 samples is less than one step" in str(both.value)
    assert str(both.value).count("\n") == told.count("\n") + 1


def test_images_that_change_their_size_are_reported_and_checked(load: Load) -> None:
    report = check(load("data.resolution=[[0, 4], [40 %, [4, 6]], [80 steps, 8]]"))
    assert line(report, "images").split(None, 1)[1] == (
        "4 × 4 from step 0, 4 × 4 or 6 × 6 from step 40, 8 × 8 from step 80; evaluated at 8 × 8"
    )
    with pytest.raises(ConfigError, match=r"data.resolution: the side 5: .*height 5 is not a multiple of the patch 2"):
        check(load("data.resolution=[[0, 5]]"))
    with pytest.raises(ConfigError, match=r"data.resolution: model.pos_embed: relative_bias belongs to one"):
        check(load("data.resolution=[[0, 4]]", "model.pos_embed=relative_bias"))


def test_patches_that_are_drawn_are_reported_and_checked(load: Load) -> None:
    report = check(load("model.patch_sizes=[2, 4]"))
    assert line(report, "images").split(None, 1)[1] == "8 × 8 from step 0; patches of 2 or 4; evaluated at 8 × 8"
    with pytest.raises(ConfigError, match=r"model.patch_sizes: the side 8 with patches of 3: .*not a multiple"):
        check(load("model.patch_sizes=[2, 3]"))
    with pytest.raises(ConfigError, match=r"model.patch_sizes: model.pos_embed: learned_2d belongs to one grid"):
        check(load("model.patch_sizes=[2, 4]", "model.pos_embed=learned_2d"))
