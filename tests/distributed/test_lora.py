"""Adapters on frozen weights: equal losses on any layout, resumes, merged weights files, and memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.schema.experiment import Experiment
from tests.distributed.test_backbones import FAMILIES
from tests.distributed.test_equality_laws import losses, settings
from tests.distributed.test_memory import assert_memory
from tests.distributed.test_memory import config as memory_config
from tests.distributed.training import train_with
from tests.pool import Pool

LORA = {"rank": 4, "alpha": 8.0, "train": ["norm"]}
MODELS: dict[str, dict[str, Any]] = {
    "vit": {},
    "timm": {"model": {**FAMILIES["swin"][0], "head_init": "normal"}},
}
LAYOUTS = [(1, 2, "deepspeed"), (2, 4, "deepspeed"), (3, 2, "deepspeed"), (0, 2, "accelerate")]


def adapted(name: str, stage: int, micro: int, **more: Any) -> Experiment:
    return settings(stage, micro, **{"optim__lora": LORA, "optim__layer_decay": 0.8, **MODELS[name], **more})


@pytest.mark.parametrize("name", MODELS)
def test_every_layout_gives_the_losses_of_one_rank(pool1: Pool, pool2: Pool, name: str) -> None:
    expected = losses(pool1, adapted(name, 0, 8))
    assert expected[9] < 0.98 * expected[1], "the adapters must learn, or equality says nothing"
    for stage, micro, kind in LAYOUTS:
        assert losses(pool2, adapted(name, stage, micro), kind) == pytest.approx(expected, rel=1e-5), (stage, kind)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_run_resumes(pool1: Pool, pool2: Pool, tmp_path: Path, dropout: float) -> None:
    """The same layout continues to the bit, its dropout too; without it, another one to 1e-5."""
    lora, folder = {**LORA, "dropout": dropout}, {"folder": str(tmp_path)}
    config = adapted("vit", 2, 4, optim__lora=lora, cluster__activation_checkpointing="full")
    straight = pool2.run(train_with, config, "deepspeed", {"steps": 6, "save_at": 3, **folder})[0]
    same = pool2.run(train_with, config, "deepspeed", {"steps": 6, "resume": True, **folder})[0]
    assert same["losses"] == {step: straight["losses"][step] for step in (3, 4, 5)}
    assert same["weights"] == straight["weights"]
    if not dropout:
        other = pool1.run(train_with, adapted("vit", 3, 8), "deepspeed", {"steps": 6, "resume": True, **folder})[0]
        assert list(other["losses"].values()) == pytest.approx(list(same["losses"].values()), rel=1e-5)


def states_and_loss(config: Experiment, folder: str) -> dict[str, Any]:
    """Trains three steps and saves; what is optimised, what has moved, and the losses of live and of saved weights."""
    import torch

    from pretrain.models.families.registry import build_model
    from pretrain.models.interop import load_weights
    from tests.distributed import training

    os.environ["DS_ACCELERATOR"] = "cpu"
    backend, accumulation = training.make(config)
    before = {piece.name: piece.states["master"].clone() for piece in backend.slices()}
    backend.train(True)
    for step in range(3):
        training.one_step(backend, config, accumulation, step)
    saved = training.checkpointer(backend, config, Path(folder)).save(training.TrainState(3, 24, 3))
    held = {piece.name: piece for piece in backend.slices()}
    optimised = {name for name, piece in held.items() if "exp_avg" in piece.states}
    moved = {name for name, piece in held.items() if not torch.equal(piece.states["master"], before[name])}
    plain = build_model(config.model, config.num_outputs).eval()
    plain.load_state_dict(load_weights(saved / "weights.safetensors")[0])
    images = training.global_batch(50, config).images
    backend.train(False)
    with torch.no_grad():
        live, merged = backend.forward(images), plain(images)
    return {
        "optimised": optimised,
        "moved": moved,
        "all": set(before),
        "difference": (live - merged).abs().max().item(),
        "spread": live.std().item(),
        "bytes": {path.name: path.stat().st_size for path in saved.rglob("*.safetensors")},
    }


def test_only_adapters_head_and_named_parameters_are_trained(pool1: Pool, tmp_path: Path) -> None:
    """The weights file holds the sum: a plain model with it gives the logits of the one that was trained."""
    found = pool1.run(states_and_loss, adapted("vit", 0, 8), str(tmp_path))[0]
    expected = {name for name in found["all"] if ".lora_" in name or name.startswith("head.") or "norm" in name}
    assert found["optimised"] == found["moved"] == expected
    assert len(found["all"] - expected) > 10
    assert found["difference"] < 1e-5 < 0.01 < found["spread"]


@pytest.mark.parametrize(
    ("stage", "precision", "kind"),
    [
        (2, "bf16", "deepspeed"),
        *(
            pytest.param(stage, precision, kind, marks=pytest.mark.slow)
            for stage, precision, kind in [
                (0, "fp32", "accelerate"), (0, "autocast", "deepspeed"), (1, "autocast", "deepspeed"),
                (3, "bf16", "deepspeed"), (3, "fp32", "deepspeed"),
            ]
        ),
    ],
)  # fmt: skip
def test_memory(pool2: Pool, stage: int, precision: str, kind: str) -> None:
    assert_memory(pool2, 2, memory_config(stage, precision, 2, optim__lora={"rank": 8}), kind)
