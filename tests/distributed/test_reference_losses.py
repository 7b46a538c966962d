"""Loss curves of the references, recorded by tests/golden/make, against ours on two ranks of a real backend."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from numpy.typing import NDArray

from pretrain.assembly.objective import objective_of
from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import to_model_input
from pretrain.data.on_device import Mix, Mixing
from pretrain.distributed.rank import detect
from pretrain.engine.backends import build_backend
from pretrain.models.exchange.google import read_npz
from pretrain.models.families.registry import build_model
from pretrain.objectives.classification import dense_targets
from pretrain.objectives.protocol import MicroBatch
from pretrain.optim.schedules import build_schedule
from tests.golden.batches import BATCH, CLASSES, SIDE, STEPS, batch_of, pictures_of
from tests.pool import Pool

TRACES = Path(__file__).parents[1] / "golden" / "traces"
HEAD, STEM = "head.weight", "patch_embed.proj.weight"


class Curve(NamedTuple):
    """Loss and gradient norm of every step; at the end two weights, and their averages."""

    losses: list[float]
    norms: list[float]
    final: dict[str, NDArray[np.float32]]
    average: dict[str, NDArray[np.float32]]


def traces(name: str) -> dict[str, NDArray[Any]]:
    with np.load(TRACES / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def experiment(
    model: dict[str, Any], objective: dict[str, Any], optim: dict[str, Any], mixing: dict[str, Any], **more: Any
) -> Experiment:
    settings = {
        "name": "reference",
        "duration": f"{STEPS} steps",
        "global_batch_size": BATCH,
        "precision": "fp32",
        "model": model | {"img_size": SIDE},
        "objective": objective,
        "data": {"shards": "none", "num_samples": 48, "num_classes": CLASSES, "mixing": mixing},
        "optim": optim,
    }
    return Experiment.model_validate(settings | more)


def trained(
    config: Experiment, state: dict[str, torch.Tensor], kind: str, global_batch: Callable[[int], MicroBatch]
) -> Curve:
    """Trains this rank's half of every batch."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    rank, device = detect(), torch.device("cpu")
    model = build_model(config.model, config.num_outputs)
    model.load_state_dict(state)
    if kind == "accelerate":  # a process has one precision for good; a pool of ranks runs many cases
        AcceleratorState._reset_state(reset_partial_state=True)
    backend = build_backend(config, model, rank, device, kind, (BATCH // rank.world, 1))
    backend.train(True)
    objective, lr = objective_of(config, backend.model, device, lambda line: None), build_schedule(config)
    curve = Curve([], [], {}, {})
    mine = slice(rank.rank * BATCH // rank.world, (rank.rank + 1) * BATCH // rank.world)
    for step in range(STEPS):
        batch = global_batch(step)
        assert batch.targets is not None
        part = MicroBatch(batch.images[mine], batch.labels[mine], targets=batch.targets[mine])
        with backend.micro_step(boundary=True):
            loss = objective(backend.forward, part)
            backend.backward(loss)
        curve.norms.append(float(backend.step(lr(step)).grad_norm))
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        curve.losses.append(float(mean) / rank.world)
    for weights, averaged in ((curve.final, False), (curve.average, config.optim.ema_decay is not None)):
        with backend.averaged() if averaged else nullcontext():
            weights |= {name: model.get_parameter(name).detach().clone().numpy() for name in (HEAD, STEM)}
    return curve


ADAMW: dict[str, Any] = {
    "name": "adamw", "momentum_dtype": "bf16", "lr": 0.005, "weight_decay": 0.1, "clip_grad": 1.0,
    "schedule": {"name": "cosine", "warmup": "6 steps"},
}  # fmt: skip
ADAFACTOR: dict[str, Any] = {
    "name": "adafactor", "momentum": 0.9, "momentum_dtype": "bf16", "lr": 0.005, "weight_decay": 0.03, "clip_grad": 1.0,
    "overrides": [{"pattern": r"^head\.weight$", "weight_decay": 3.0}],
    "schedule": {"name": "rsqrt", "warmup": "6 steps", "timescale": "8 steps", "cooldown": "10 steps"},
}  # fmt: skip
SGD: dict[str, Any] = {
    "name": "sgd", "momentum": 0.9, "momentum_dtype": "bf16", "lr": 0.03, "clip_grad": 1.0,
    "schedule": {"name": "cosine", "warmup": "6 steps"},
}  # fmt: skip
SIGMOID = {"name": "sigmoid", "reduction": "sum_classes"}
# recipe → (weights, objective, optimiser)
BIG_VISION: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "augreg": ("token", SIGMOID, ADAMW),
    "baseline": ("sincos", {"name": "softmax"}, ADAMW),
    "scaling": ("sincos_map", SIGMOID, ADAFACTOR),
    "transfer": ("token", {"name": "softmax"}, SGD),
}


def like_big_vision(recipe: str, kind: str, zero_stage: int) -> Curve:
    """Our run of one of big_vision's recipes, from its weights."""
    weights, objective, optim = BIG_VISION[recipe]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fixed positions fit any grid; this one's is given
        state, metadata = read_npz(TRACES / f"google_big_vision_{weights}.npz")
    model = metadata.model.model_dump(exclude_unset=True)
    cluster = {"zero_stage": zero_stage, "micro_batch_size": BATCH // 2}
    config = experiment(model, objective, optim, {}, cluster=cluster)

    def global_batch(step: int) -> MicroBatch:
        images, labels = (torch.from_numpy(array) for array in batch_of(step, one_hot=objective["name"] == "softmax"))
        return MicroBatch(images.permute(0, 3, 1, 2), labels.argmax(1, keepdim=True), targets=labels)

    return trained(config, state, kind, global_batch)


@pytest.mark.parametrize(
    ("recipe", "kind", "zero_stage"),
    [
        ("augreg", "accelerate", 0),
        ("augreg", "deepspeed", 1),
        ("baseline", "deepspeed", 0),
        ("scaling", "accelerate", 0),
        ("transfer", "deepspeed", 2),
    ],
)
def test_thirty_steps_of_big_visions_recipes(pool2: Pool, recipe: str, kind: str, zero_stage: int) -> None:
    """Source: google-research/big_vision's own training (tests/golden/make/big_vision_losses.py)."""
    wanted, curve = traces("big_vision_losses"), pool2.run(like_big_vision, recipe, kind, zero_stage)[0]
    assert wanted[f"{recipe}/losses"][-1] < 0.6 * wanted[f"{recipe}/losses"].max()
    assert curve.losses == pytest.approx(wanted[f"{recipe}/losses"].tolist(), rel=1e-4)
    assert curve.norms == pytest.approx(wanted[f"{recipe}/norms"].tolist(), rel=3e-4)
    # Moments in bf16 round to another neighbour now and then: a step of a single weight differs by up to 1/256.
    np.testing.assert_allclose(curve.final[HEAD].T, wanted[f"{recipe}/final/head/kernel"], atol=1e-3)
    stem = curve.final[STEM].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(stem, wanted[f"{recipe}/final/embedding/kernel"], atol=1e-3)


BY_EPOCH = {"name": "cosine", "warmup": "1 epochs", "warmup_lr": 1e-6, "end_lr": 1e-5, "warmup_prefix": False}
BY_EPOCH |= {"per_epoch": True}
DEIT_MODEL: dict[str, Any] = {"variant": "nano/8", "embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_dim": 48}
# recipe → (model, objective, optimiser)
DEIT: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "deit": ({}, {"name": "softmax", "label_smoothing": 0.1}, {"name": "adamw", "lr": 3e-3}),
    "deit3": (
        {"pos_embed_prefix": False, "layer_scale": 0.1},
        {"name": "sigmoid", "reduction": "mean", "binarise": True},
        {"name": "lamb", "lr": 2e-2, "eps": 1e-8, "clip_grad": 1.0},
    ),
}
MIXING = {"mixup": 0.8, "cutmix": 1.0}
AS_PAIRS = np.array([0, 7, 1, 6, 2, 5, 3, 4])  # timm mixes the first image with the last, we mix neighbours


class RecordedMixing(Mixing):
    """The draws of timm instead of ours."""

    def plan(self, slots: NDArray[np.int64], height: int, width: int) -> Mix:
        *box, lam = traces("deit_losses")["deit/mixes"][slots[0] // BATCH]
        return Mix(np.full(BATCH, lam), np.tile(np.array(box, dtype=np.int64), (BATCH, 1)))


def like_deit(recipe: str, kind: str, zero_stage: int) -> Curve:
    """Our run of DeiT's or DeiT III's recipe, from timm's weights and with its mixing."""
    more, objective, optim = DEIT[recipe]
    given = {"weight_decay": 0.05, "ema_decay": 0.9, "schedule": BY_EPOCH}
    cluster = {"zero_stage": zero_stage, "micro_batch_size": BATCH // 2}
    config = experiment(DEIT_MODEL | more, objective, optim | given, MIXING, cluster=cluster, duration="5 epochs")
    begins = f"{recipe}/start/"
    state = {
        key.removeprefix(begins): torch.from_numpy(array).float()
        for key, array in traces("deit_losses").items()
        if key.startswith(begins)
    }
    mixing = RecordedMixing(config.data.mixing, config.seed, BATCH)

    def global_batch(step: int) -> MicroBatch:
        pixels, classes = pictures_of(step)
        labels = torch.from_numpy(classes[AS_PAIRS, None])
        images = torch.from_numpy(pixels[AS_PAIRS].transpose(0, 3, 1, 2))
        images = to_model_input(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        slots = np.arange(step * BATCH, (step + 1) * BATCH)
        images, targets = mixing(images, dense_targets(labels, CLASSES), slots)
        return MicroBatch(images, labels, targets=targets)

    return trained(config, state, kind, global_batch)


@pytest.mark.parametrize(
    ("recipe", "kind", "zero_stage"), [("deit", "accelerate", 0), ("deit", "deepspeed", 2), ("deit3", "deepspeed", 0)]
)
def test_thirty_steps_of_deits_recipes(pool2: Pool, recipe: str, kind: str, zero_stage: int) -> None:
    """Source: DeiT's main.py with timm's parts, without our code (tests/golden/make/deit_losses.py)."""
    wanted, curve = traces("deit_losses"), pool2.run(like_deit, recipe, kind, zero_stage)[0]
    mixes = wanted[f"{recipe}/mixes"]
    assert np.array_equal(mixes, wanted["deit/mixes"]) and 5 < (mixes[:, 1] > 0).sum() < 25
    assert curve.losses == pytest.approx(wanted[f"{recipe}/losses"].tolist(), rel=1e-5)
    np.testing.assert_allclose(curve.final[HEAD], wanted[f"{recipe}/final"], atol=1e-5)
    np.testing.assert_allclose(curve.average[HEAD], wanted[f"{recipe}/average"], atol=1e-5)
    assert np.abs(wanted[f"{recipe}/final"] - wanted[f"{recipe}/average"]).max() > 1e-3
