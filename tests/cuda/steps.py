"""Two training steps of each kind of model, objective, position embedding, pooling, policy and optimiser.

Everything between a host batch and the updated weights is the project's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import AcceleratorState

from pretrain.assembly.feeder import Feeder
from pretrain.assembly.objective import objective_of
from pretrain.config.schema.experiment import Experiment
from pretrain.data.batch import Batch
from pretrain.distributed.rank import detect
from pretrain.engine.backends import build_backend
from pretrain.models.families.registry import build_model
from pretrain.models.metadata import TargetScale
from tests.cuda.record import Record, recording
from tests.distributed.training import CLASSES, experiment

MICRO = 4
BF16 = {"precision": "bf16", "cluster__zero_stage": 1}  # DDP has no fp32 master weights
DENSE = {
    "model__representation_size": None,
    "model__head": "dense",
    "model__pool": "norm_avg",
    "model__class_token": False,
}
MIXED = {
    "data__mixing": {"mixup": 0.8, "cutmix": 1.0, "per": "pair"},
    "data__train_transform": {"crop": "inception", "random_erasing": {"prob": 1.0}},
}
POSITIONS = (
    "none", "learned_1d", "learned_2d", "sincos2d_big_vision", "sincos2d_timm", "relative_bias",
    "relative_1d",
)  # fmt: skip
POOLS = ("token", "norm_avg", "avg_norm", "map")


def _optim(name: str, **more: Any) -> dict[str, Any]:
    return {"optim": {"name": name, "lr": 1e-3, "clip_grad": 1.0, **more}, "precision": "autocast"}


# Name → changes of ``tests.distributed.training.experiment``.
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{precision} {policy}": {**how, "cluster__activation_checkpointing": policy, **MIXED}
        for precision, how in {"fp32": {}, "autocast": {"precision": "autocast"}, "bf16": BF16}.items()
        for policy in ("none", "full", "every_2", "selective")
    },
    **{f"position {kind}": {**BF16, "model__pos_embed": kind} for kind in POSITIONS},
    **{f"pool {pool}": {**BF16, "model__pool": pool, "model__class_token": pool == "token"} for pool in POOLS},
    "dropout selective": {**BF16, "model__dropout": 0.1, "cluster__activation_checkpointing": "selective"},
    "dropout full": {**BF16, "model__dropout": 0.1, "cluster__activation_checkpointing": "full"},
    "rotary, gates": {
        **BF16,
        "model__rope": "mixed",
        "model__norm": "rms_norm",
        "model__mlp": "swiglu",
        "model__gated_attention": True,
    },
    "parallel, dropped patches": {
        **BF16,
        "model__block": "parallel",
        "model__patch_drop": 0.5,
        "model__rope": "axial",
    },
    "registers": {**BF16, "model__num_registers": 4, "model__qk_norm": True, "model__layer_scale": 1e-4},
    "sigmoid": {**BF16, "objective": {"name": "sigmoid"}},
    "segmentation": {
        **BF16,
        **DENSE,
        "objective": {"name": "segmentation"},
        "data__eval_transform": {"resize": "squash"},
    },
    "masked patches": {**BF16, "objective": {"name": "masked_patches"}, "model__mask_token": True},
    "regression": {**BF16, "objective": {"name": "regression"}, "model__representation_size": None},
    "sgd": _optim("sgd"),
    "adamw bf16 momentum": _optim("adamw", momentum_dtype="bf16"),
    "sgd bf16 momentum": _optim("sgd", momentum_dtype="bf16"),
    "adafactor": _optim("adafactor", momentum_dtype="bf16"),
    "lamb": _optim("lamb"),
    "schedule_free": _optim("schedule_free", schedule={"name": "constant"}),
    "average": {**BF16, "optim__ema_decay": 0.99},
    "hybrid": {"model": {"variant": "R50+S/16", "img_size": 64}, "precision": "autocast"},
}


def host_batch(config: Experiment) -> Batch:
    """A micro-batch as a data process makes it, in page-locked memory."""
    size = config.model.img_size
    assert isinstance(size, int)
    targets = {
        "vector": torch.randn(MICRO, CLASSES),
        "mask": torch.randint(CLASSES, (MICRO, size, size), dtype=torch.uint8),
    }
    return Batch(
        images=torch.randint(256, (MICRO, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2),
        labels=torch.arange(MICRO)[:, None] % CLASSES,
        sample_ids=torch.arange(MICRO),
        slots=torch.arange(MICRO),
        valid=torch.ones(MICRO, dtype=torch.bool),
        targets=targets.get(config.objective.needs.target or ""),
    ).pin_memory()


def second_step(changes: dict[str, Any], device: torch.device) -> Record:
    """Trains two steps and returns the record of the second, which has no first uses in it."""
    config = experiment(**changes)
    model = build_model(config.model, config.num_outputs)
    scale = TargetScale((0.0,) * CLASSES, (1.0,) * CLASSES)
    objective = objective_of(config, model, device, lambda line: None, scale=scale)
    feeder = Feeder(config, model, None, device)  # type: ignore[arg-type]  # the batches come from here
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision for good
    kind = "deepspeed" if config.cluster.stage else "accelerate"
    backend = build_backend(config, model, detect(), device, kind, (MICRO, 1))
    backend.train(True)

    def step() -> None:
        batch = feeder.prepare(host_batch(config))
        with backend.micro_step(boundary=True):
            backend.backward(objective(backend.forward, batch))
        backend.step(1e-3)

    step()
    with recording() as record:
        step()
    return record
