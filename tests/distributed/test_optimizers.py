"""Optimisers, overrides and frozen tensors at every ZeRO stage: equal to one process, resumed at another layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.collectives import all_reduce_sum
from pretrain.distributed.rank import detect
from pretrain.engine.backend import square_sum
from pretrain.engine.checkpoint_folder import weights_file
from pretrain.models.families.registry import build_model
from pretrain.models.init import init_weights
from pretrain.models.interop import load_weights
from pretrain.objectives.registry import build_objective
from pretrain.optim.elementwise import WeightAverage
from pretrain.optim.exchange import Batch
from pretrain.optim.groups import set_lr
from pretrain.optim.optimizers import build_optimizer
from pretrain.optim.owned import OwnedOptimizer
from pretrain.optim.schedules import build_schedule
from tests.distributed.test_ema import read
from tests.distributed.test_equality_laws import settings
from tests.distributed.training import CLASSES, global_batch, make, train_with
from tests.pool import Pool, RankFailureError

STEPS, HALF = 10, 5
# The gradient of a key's bias is rounding noise, which Adam would blow up to the size of lr: hence eps. Adafactor's is
# 1e-30, so there the biases of q, k and v are not trained.
KINDS: dict[str, dict] = {
    "adamw bf16": {"name": "adamw", "eps": 1e-4, "momentum_dtype": "bf16", "ema_decay": 0.9},
    "sgd bf16": {"name": "sgd", "momentum_dtype": "bf16", "ema_decay": 0.9},
    "layers": {
        "name": "adamw",
        "eps": 1e-4,
        "layer_decay": 0.65,
        "ema_decay": 0.9,
        "overrides": (
            {"pattern": r"^head\.weight$", "weight_decay": 3.0},
            {"pattern": r"^(cls_token|patch_embed\.)", "freeze": True},
            {"pattern": r"^blocks\.1\..*bias", "lr_scale": 2.0, "weight_decay": 0.2},
        ),
    },
    "adafactor bf16": {
        "name": "adafactor",
        "momentum_dtype": "bf16",
        "ema_decay": 0.9,
        "overrides": ({"pattern": r"qkv\.bias", "freeze": True},),
    },
    "adafactor": {
        "name": "adafactor",
        "ema_decay": 0.9,
        "overrides": ({"pattern": r"qkv\.bias", "freeze": True},),
    },
    "lamb": {"name": "lamb", "eps": 1e-4, "ema_decay": 0.9},
    "muon": {"name": "muon", "eps": 1e-4, "orthogonalize_dtype": "fp32", "ema_decay": 0.9},
    "muon, layers": {
        "name": "muon",
        "eps": 1e-4,
        "orthogonalize_dtype": "fp32",
        "adamw_lr_scale": 0.5,
        "layer_decay": 0.65,
        "ema_decay": 0.9,
        "overrides": (
            {"pattern": r"^blocks\.0\.attn\.qkv\.weight$", "lr_scale": 2.0, "weight_decay": 0.2},
            {"pattern": r"^(cls_token|patch_embed\.)", "freeze": True},
        ),
    },
    # epsilon: the factors of few images have few eigenvalues above rounding noise, which the root would blow up.
    "shampoo": {
        "name": "shampoo",
        "eps": 1e-4,
        "epsilon": 1e-6,
        "max_preconditioner_dim": 24,
        "precondition_frequency": 2,
        "momentum": 0.5,
        "ema_decay": 0.9,
    },
    # Few images leave eigenvalues that are equal but for rounding, whose eigenvectors differ between layouts. With a
    # large eps they matter little; test_owners_compute_what_one_process_computes has the default.
    "soap": {
        "name": "soap",
        "lr": 0.01,
        "eps": 0.3,
        "max_preconditioner_dim": 24,
        "precondition_frequency": 2,
        "ema_decay": 0.9,
    },
    "schedule_free": {"name": "schedule_free", "eps": 1e-4, "schedule": {"name": "constant", "warmup": "4 steps"}},
    "schedule_free, layers": {
        "name": "schedule_free",
        "eps": 1e-4,
        "schedule": {"name": "constant", "warmup": "4 steps"},
        "layer_decay": 0.65,
        "overrides": ({"pattern": r"^(cls_token|patch_embed\.)", "freeze": True},),
    },
}
LAYOUTS = [
    (0, 4, "deepspeed"), (0, 2, "accelerate"), (1, 2, "deepspeed"), (2, 4, "deepspeed"), (3, 4, "deepspeed"),
    (0, 2, "fsdp2"),
]  # fmt: skip
FAST = {  # one case per law; the whole table is slow
    ("adamw bf16", 1), ("adamw bf16", 3), ("sgd bf16", 2), ("layers", 1), ("layers", 3), ("adafactor", 1), ("lamb", 2),
    ("muon", 3), ("muon, layers", 1), ("shampoo", 2),
}  # fmt: skip
FAST_UNSTAGED = {("muon", "accelerate"), ("muon", "fsdp2")}
ON_ANY_RANKS = ("muon", "lamb", "adafactor", "shampoo", "schedule_free")


def _case(kind: str, layout: tuple[int, int, str], ranks: int) -> object:
    fast = ranks == 2 and ((kind, layout[0]) in FAST or (kind, layout[2]) in FAST_UNSTAGED)
    return pytest.param(kind, layout, ranks, marks=() if fast else pytest.mark.slow)


CASES = [
    _case(kind, layout, ranks)
    for kind in KINDS
    for layout in LAYOUTS
    for ranks in ((1, 2, 4) if kind in ON_ANY_RANKS else (2,))
]


def config(kind: str, stage: int = 0, micro: int = 4) -> Experiment:
    lr = 0.05 if kind == "sgd bf16" else 3e-3
    optim = {"lr": lr, "weight_decay": 0.1, "clip_grad": 1.0, "schedule": {"name": "linear", "warmup": "4 steps"}}
    # A width of 64 in the MLP: Adafactor factors two dimensions of at least 32.
    return settings(stage, micro, optim=optim | KINDS[kind])


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, dict[str, Tensor]]]:
    """kind → after 4 and 8 steps: weights and averages of a plain loop on whole batches."""
    return {kind: single_process(config(kind)) for kind in KINDS}


def assert_near(kind: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """To 1e-6. A bf16 moment half-way between two numbers is rounded by the last bits of a gradient, so that there few
    weights may differ by such a rounding: 0.3 or 2.7 % of them, by the processor's way of summing a matrix product.
    """
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-4 if "bf16" in kind else 1e-6, msg=name)
    differ = torch.cat([((tensor - theirs[name]).abs() > 1e-6).view(-1) for name, tensor in ours.items()])
    assert differ.double().mean() < 0.05


def single_process(config: Experiment) -> dict[str, dict[str, Tensor]]:
    model = build_model(config.model, CLASSES)
    init_weights(model, config.seed)
    schedule = build_schedule(config)
    optimizer = build_optimizer(model, config.optim, schedule=schedule)
    objective = build_objective(config.objective, CLASSES)
    decay = config.optim.ema_decay or 0.0
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(STEPS):
        set_lr(optimizer.param_groups, schedule(step))
        optimizer.zero_grad()
        objective(model, global_batch(step, config)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for name, parameter in model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * parameter.detach()
    found = {"master": {name: parameter.detach().clone() for name, parameter in model.named_parameters()}}
    if not isinstance(optimizer, WeightAverage):
        return found | {"ema": average}
    optimizer.swap()
    return found | {"plain": {name: parameter.detach() for name, parameter in model.named_parameters()}}


def saved(folder: Path, state: str) -> dict[str, Tensor]:
    """A state of the newest checkpoint, or its weights file."""
    return load_weights(weights_file(folder, "raw"))[0] if state == "plain" else read(folder, state)


@pytest.mark.parametrize(("kind", "layout", "ranks"), CASES, ids=str)
def test_equals_a_single_process(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    references: dict,
    kind: str,
    layout: tuple[int, int, str],
    ranks: int,
) -> None:
    options = {"steps": STEPS, "save_at": STEPS, "folder": str(tmp_path)}
    stage, micro, backend = layout
    pool: Pool = request.getfixturevalue(f"pool{ranks}")
    pool.run(train_with, config(kind, stage, min(micro, 8 // ranks)), backend, options)
    for state, wanted in references[kind].items():
        assert_near(kind, saved(tmp_path, state), wanted)
    initial = build_model(config(kind).model, CLASSES)
    init_weights(initial, config(kind).seed)
    moved = {
        name for name, tensor in initial.named_parameters() if not torch.equal(tensor, read(tmp_path, "master")[name])
    }
    stem = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    frozen = {kind: stem for kind in KINDS if "layers" in kind}
    frozen["adafactor"] = frozen["adafactor bf16"] = {"blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"}
    assert {name for name, _ in initial.named_parameters()} - moved == frozen.get(kind, set())


def updated_by_owners(optim: dict, rank_owns: bool) -> dict[str, Tensor]:
    """The weights after five updates with gradients that do not depend on the layout, and how much this rank owns."""
    config = settings(0, 4, optim=optim)
    model = build_model(config.model, CLASSES)
    init_weights(model, config.seed)
    optimizer, named = build_optimizer(model, config.optim), dict(model.named_parameters())
    assert isinstance(optimizer, OwnedOptimizer)
    if rank_owns:
        optimizer.place([Batch.of_unsharded(named)], detect().rank, torch.device("cpu"))
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    weights = {name: parameter.detach() for name, parameter in named.items()}
    return weights | {"owned": torch.tensor(len(optimizer.owned_states()))}


KRONECKER = ("shampoo", "soap")


@pytest.mark.parametrize("kind", KRONECKER)
def test_owners_compute_what_one_process_computes(pool2: Pool, kind: str) -> None:
    """Exactly, where gradients are the same; elsewhere decompositions magnify their last bits."""
    optim = {"name": kind, "lr": 3e-3, "weight_decay": 0.1, "max_preconditioner_dim": 24, "precondition_frequency": 2}
    alone, ranks = pool2.run(updated_by_owners, optim, False)[0], pool2.run(updated_by_owners, optim, True)
    assert sum(int(of_rank["owned"]) for of_rank in ranks) == int(alone["owned"]) == 9
    assert all(int(of_rank["owned"]) >= 3 for of_rank in ranks)
    for name in (name for name in alone if name != "owned"):
        assert all(torch.equal(of_rank[name], alone[name]) for of_rank in ranks), name


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


WAYS_ON = [
    ("adamw bf16", (3, 2, 4, "deepspeed"), (1, 4, 4, "deepspeed")),
    slow("sgd bf16", (2, 4, 2, "deepspeed"), (3, 2, 2, "deepspeed")),
    ("layers", (3, 2, 4, "deepspeed"), (2, 4, 4, "deepspeed")),
    slow("layers", (1, 2, 2, "deepspeed"), (3, 4, 4, "deepspeed")),
    ("adafactor bf16", (0, 2, 4, "deepspeed"), (0, 2, 1, "accelerate")),
    slow("adafactor", (0, 1, 2, "accelerate"), (0, 2, 4, "deepspeed")),
    slow("lamb", (0, 2, 4, "deepspeed"), (3, 4, 2, "deepspeed")),
    slow("adafactor", (2, 4, 2, "deepspeed"), (0, 2, 4, "fsdp2")),
    ("muon", (3, 2, 4, "deepspeed"), (0, 2, 2, "fsdp2")),
    slow("muon", (0, 2, 4, "fsdp2"), (1, 8, 1, "deepspeed")),
    slow("muon", (0, 4, 2, "accelerate"), (2, 2, 4, "deepspeed")),
    slow("muon, layers", (1, 2, 4, "deepspeed"), (3, 4, 2, "deepspeed")),
    slow("soap", (2, 4, 2, "deepspeed"), (0, 2, 4, "fsdp2")),
    slow("soap", (0, 2, 4, "accelerate"), (1, 8, 1, "deepspeed")),
    slow("shampoo", (1, 2, 4, "deepspeed"), (0, 8, 1, "accelerate")),
    slow("shampoo", (3, 4, 2, "deepspeed"), (0, 2, 4, "fsdp2")),
    slow("shampoo", (0, 2, 4, "accelerate"), (2, 4, 2, "deepspeed")),
    slow("schedule_free", (3, 2, 4, "deepspeed"), (0, 2, 2, "fsdp2")),
    slow("schedule_free", (0, 2, 4, "fsdp2"), (1, 8, 1, "deepspeed")),
    slow("schedule_free", (0, 4, 2, "accelerate"), (2, 2, 4, "deepspeed")),
    slow("schedule_free, layers", (1, 2, 4, "deepspeed"), (3, 4, 2, "deepspeed")),
]  # (stage, micro-batch, ranks, backend)


@pytest.mark.parametrize(("kind", "first", "second"), WAYS_ON, ids=str)
def test_goes_on_at_another_layout(
    pool1: Pool, pool2: Pool, pool4: Pool, tmp_path: Path, references: dict, kind: str, first: tuple, second: tuple
) -> None:
    pools = {1: pool1, 2: pool2, 4: pool4}
    for (stage, micro, ranks, backend), options in (
        (first, {"steps": HALF, "save_at": HALF}),
        (second, {"steps": STEPS, "save_at": STEPS, "resume": True}),
    ):
        pools[ranks].run(
            train_with, config(kind, stage, min(micro, 8 // ranks)), backend, options | {"folder": str(tmp_path)}
        )
    for state, wanted in references[kind].items():
        assert_near(kind, saved(tmp_path, state), wanted)
    assert ("BF16" in stored_dtypes(tmp_path)) == ("bf16" in kind)


def stored_dtypes(folder: Path) -> set[str]:
    """Types in the files of the first checkpoint: a moment is stored in the type that it is kept in."""
    found = set()
    for path in (folder / "checkpoints" / f"step-{HALF:08d}" / "slices").iterdir():
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    return found


def weight_norm(config: Experiment, kind: str) -> float:
    return float(all_reduce_sum(square_sum(make(config, kind)[0].slices()))) ** 0.5


@pytest.mark.parametrize(("kind", "stage"), [("adafactor", 0), ("layers", 3)])
def test_the_norm_of_the_weights_counts_frozen_ones_once_and_no_moments(pool2: Pool, kind: str, stage: int) -> None:
    model = build_model(config(kind).model, CLASSES)
    init_weights(model, config(kind).seed)
    wanted = torch.cat([parameter.detach().view(-1) for parameter in model.parameters()]).norm().item()
    assert pool2.run(weight_norm, config(kind, stage), "deepspeed") == pytest.approx([wanted] * 2, rel=1e-6)


def test_an_fp32_moment_is_not_rounded_by_a_resume(pool2: Pool, tmp_path: Path) -> None:
    """The other way round loses nothing: a bf16 moment continues in fp32."""
    folder = {"folder": str(tmp_path)}
    plain = settings(1, 4, optim__eps=1e-4)
    pool2.run(train_with, plain, "deepspeed", {"steps": 2, "save_at": 2} | folder)
    rounded = settings(1, 4, optim__eps=1e-4, optim__momentum_dtype="bf16")
    with pytest.raises(RankFailureError, match="exp_avg in fp32, this run keeps it in bf16"):
        pool2.run(train_with, rounded, "deepspeed", {"steps": 3, "resume": True} | folder)
    pool2.run(train_with, rounded, "deepspeed", {"steps": 4, "save_at": 4} | folder)
    pool2.run(train_with, plain, "deepspeed", {"steps": 5, "resume": True} | folder)


OFFLOAD = {"device": "cpu"}


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_offload_to_the_cpu_equals_no_offload(pool2: Pool, stage: int) -> None:
    """DeepSpeed's own key, passed through; torch's AdamW runs on the host."""
    plain = settings(stage, 4)
    keys = dict(plain.cluster.passed_on.get("zero_optimization", {})) | {"offload_optimizer": OFFLOAD}
    if stage == 3:
        keys["offload_param"] = OFFLOAD
    cluster = plain.cluster.model_copy(update={"deepspeed": {"zero_optimization": keys}})
    moved = plain.model_copy(update={"cluster": cluster})
    runs = [pool2.run(train_with, each, "deepspeed", {"steps": 6})[0]["losses"] for each in (plain, moved)]
    assert list(runs[1].values()) == pytest.approx(list(runs[0].values()), rel=1e-6)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_fused_kernels_change_nothing_at_a_stage(pool2: Pool, tmp_path: Path, stage: int) -> None:
    """torch has them on the CPU too; their counter lives on the device, and survives a resume."""
    plain, fused = (settings(stage, 4, optim__eps=1e-4, cluster__fused_optimizer=value) for value in (False, True))
    straight = pool2.run(train_with, plain, "deepspeed", {"steps": 6})[0]["losses"]
    folder = {"folder": str(tmp_path)}
    pool2.run(train_with, fused, "deepspeed", {"steps": 3, "save_at": 3} | folder)
    rest = pool2.run(train_with, fused, "deepspeed", {"steps": 6, "resume": True} | folder)[0]["losses"]
    assert list(rest.values()) == pytest.approx([straight[step] for step in (3, 4, 5)], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "stage", "precision"),
    [
        pytest.param("lamb", 0, "autocast", marks=pytest.mark.slow),
        pytest.param("lamb", 3, "bf16", marks=pytest.mark.slow),
        ("muon", 2, "bf16"),
        pytest.param("schedule_free", 0, "bf16", marks=pytest.mark.slow),
        pytest.param("schedule_free", 3, "bf16", marks=pytest.mark.slow),
        pytest.param("schedule_free", 1, "autocast", marks=pytest.mark.slow),
        ("adafactor bf16", 0, "autocast"),
        pytest.param("layers", 1, "bf16", marks=pytest.mark.slow),
        ("layers", 3, "bf16"),
    ],
)
def test_low_precision_trains_and_goes_on(pool2: Pool, tmp_path: Path, kind: str, stage: int, precision: str) -> None:
    """The states of the recipes: the same losses after a resume, near those of fp32."""
    low = config(kind, stage).model_copy(update={"precision": precision})
    folder = {"folder": str(tmp_path)}
    straight = pool2.run(train_with, low, "deepspeed", {"steps": 6, "save_at": 3} | folder)[0]["losses"]
    rest = pool2.run(train_with, low, "deepspeed", {"steps": 6, "resume": True} | folder)[0]["losses"]
    assert rest == {step: straight[step] for step in (3, 4, 5)}
    exact = pool2.run(train_with, config(kind, stage), "deepspeed", {"steps": 6})[0]["losses"]
    assert list(straight.values()) == pytest.approx(list(exact.values()), rel=5e-2)
