"""The memory model against the storages that live in real training steps of DeepSpeed, on the rank with the most."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.model import ModelConfig
from pretrain.models.init import initial_state
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.sharding.choice import sharding_of
from pretrain.sharding.protocol import Memory
from pretrain.sharding.step import step_of
from tests.distributed import live_memory, training
from tests.pool import Pool

MODEL = {"model__variant": "Ti/16", "model__img_size": 64, "model__depth": 6, "model__drop_path": 0.0}
BUCKET = 400_000  # elements: the model has 2.9 million


def config(stage: int, precision: str, micro: int, **changes: Any) -> Experiment:
    zero: dict[str, Any] = {"reduce_bucket_size": BUCKET}
    if stage == 3:
        zero |= {"stage3_param_persistence_threshold": 0}
    deepspeed = {"zero_optimization": zero} if stage else {}
    settings = {"precision": precision, "cluster__zero_stage": stage, "cluster__micro_batch_size": micro}
    return training.experiment(**MODEL, **settings, **{"cluster__deepspeed": deepspeed, **changes})


def planned(experiment: Experiment, ranks: int, kind: str) -> Memory:
    micro = experiment.cluster.micro_batch_size
    assert isinstance(micro, int)
    step = step_of(experiment, ranks, micro)
    on_a_cpu = dataclasses.replace(step.optimizer, num_temporaries=_temporaries_on_a_cpu(experiment))
    return sharding_of(experiment, kind).memory(dataclasses.replace(step, optimizer=on_a_cpu))


def _temporaries_on_a_cpu(experiment: Experiment) -> int:
    """AdamW makes two of one tensor's size, or one; at stage 0 a tensor is one small parameter."""
    if experiment.optim.complete_tensors != "none":
        return experiment.optim.num_temporaries
    of_partition = {"adamw": 2, "schedule_free": 1}.get(experiment.optim.name, 0)
    return of_partition if experiment.cluster.stage else 0


def assert_memory(
    pool: Pool, ranks: int, experiment: Experiment, kind: str = "deepspeed", tolerance: float = 0.05
) -> None:
    expected = planned(experiment, ranks, kind)
    found = pool.run(live_memory.measure, experiment, kind, timeout_s=240)
    for phase in ("forward", "backward", "step"):
        most = max(of_rank[phase] for of_rank in found)
        assert getattr(expected, phase) == pytest.approx(most, rel=tolerance), (phase, found, expected)


def test_stage_2_on_two_ranks(pool2: Pool) -> None:
    assert_memory(pool2, 2, config(2, "bf16", 2))


def most_gradients(config: Experiment, kind: str) -> int:
    """The most bytes of gradients that this rank's parameters have during the backward passes of a step."""
    backend, accumulation = training.make(config, kind)
    objective = training.objective_for(config, backend)
    backend.train(True)
    parameters, most = list(backend.model.parameters()), 0

    def look(_: torch.Tensor) -> None:
        nonlocal most
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        most = max(most, sum(gradient.numel() * gradient.element_size() for gradient in gradients))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(look)
    training.one_step(backend, config, accumulation, 0, objective=objective)
    return most


@pytest.mark.parametrize("micro", [2, 4])
@pytest.mark.parametrize(("kind", "stage"), [("accelerate", 0), ("deepspeed", 0), ("deepspeed", 1)])
def test_gradients_are_complete_without_accumulation_too(pool2: Pool, kind: str, stage: int, micro: int) -> None:
    """The numbers that ``--check``, plan and ``--simulate`` report as gradients, where they are not sharded."""
    experiment = config(stage, "fp32", micro)
    assert pool2.run(most_gradients, experiment, kind) == [planned(experiment, 2, kind).gradients] * 2


FSDP2: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept after forward": {"cluster": {"reshard_after_forward": False}},
    "sums in fp32": {"cluster": {"grad_accum_dtype": "fp32"}},
    "checkpointing, SGD": {
        "cluster__activation_checkpointing": "full",
        "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    },
}


@pytest.fixture(scope="module")
def fresh(pool2: Pool, pool4: Pool) -> dict[int, Pool]:
    """New ranks: DeepSpeed's stage 3 puts a dense layer that keeps other tensors into a process for good.

    So tests with stage 3 follow those of FSDP2, whose copies for autocast that layer does not keep.
    """
    pool2.close()
    pool4.close()
    return {2: pool2, 4: pool4}


@pytest.mark.parametrize("precision", ["fp32", "autocast", "bf16"])
@pytest.mark.parametrize("micro", [2, 4])  # with and without accumulation
def test_ddp_keeps_buckets_of_all_gradients(fresh: dict[int, Pool], precision: str, micro: int) -> None:
    assert_memory(fresh[2], 2, config(0, precision, micro), "accelerate")


def test_a_teacher_is_held_by_every_rank(fresh: dict[int, Pool], tmp_path: Path) -> None:
    model = ModelConfig(variant="Ti/16", img_size=64, depth=8)
    about = WeightsMetadata.of(model, 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    state = {name: tensor for name, tensor in initial_state(model, 1, 0).items() if not name.startswith("head.")}
    save_weights(tmp_path / "teacher.safetensors", state, about)
    objective = {"name": "feature_distillation", "teacher": str(tmp_path / "teacher.safetensors"), "width": 192}
    student = config(1, "fp32", 2, objective=objective, model__head_init="normal")
    assert planned(student, 2, "deepspeed").teacher == 4 * sum(tensor.numel() for tensor in state.values()) + 4 * 193
    assert_memory(fresh[2], 2, student)


@pytest.mark.parametrize("precision", ["bf16"])
@pytest.mark.parametrize("micro", [2, 4])  # with and without accumulation
def test_fsdp2_on_two_ranks(fresh: dict[int, Pool], precision: str, micro: int) -> None:
    assert_memory(fresh[2], 2, config(0, precision, micro), "fsdp2")


OPTIMIZERS: dict[str, Any] = {
    "muon": {"optim__name": "muon", "optim__orthogonalize_dtype": "fp32"},
    "lamb": {"optim__name": "lamb"},
    "adafactor": {"optim__name": "adafactor"},
    "shampoo": {"optim__name": "shampoo", "optim__precondition_frequency": 1},
    "soap": {"optim__name": "soap", "optim__precondition_frequency": 1},
    "schedule_free": {"optim": {"name": "schedule_free", "lr": 3e-3, "schedule": {"name": "constant"}}},
}
CLOSE = {"shampoo": 0.01, "soap": 0.01}  # what a decomposition allocates is 4 % to 6 % of the memory of a step


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 2])  # with and without accumulation at four ranks
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("more", FSDP2)
@pytest.mark.parametrize("ranks", [2, 4])
def test_fsdp2(fresh: dict[int, Pool], ranks: int, more: str, precision: str, micro: int) -> None:
    if precision == "autocast" and "checkpointing" in more:
        pytest.skip("autocast's copies of weights are counted, although recomputation drops them")
    changes = dict(FSDP2[more])
    if "cluster" in changes:
        changes["cluster"] = {"backend": "fsdp2", "micro_batch_size": micro, **changes["cluster"]}
    assert_memory(fresh[ranks], ranks, config(0, precision, micro, **changes), "fsdp2")


@pytest.mark.slow
@pytest.mark.parametrize("micro", [1, 2])  # with and without accumulation at four ranks
@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_stage(fresh: dict[int, Pool], ranks: int, stage: int, precision: str, micro: int) -> None:
    assert_memory(fresh[ranks], ranks, config(stage, precision, micro))


@pytest.mark.slow
@pytest.mark.parametrize("micro", [2, 4])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sums_of_bf16_gradients_in_fp32(fresh: dict[int, Pool], stage: int, micro: int) -> None:
    assert_memory(fresh[2], 2, config(stage, "bf16", micro, cluster__grad_accum_dtype="fp32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        (1, {"cluster__activation_checkpointing": "full"}),
        (2, {"optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}),
        (3, {"cluster__activation_checkpointing": "full"}),
        (2, {"cluster__deepspeed": {"zero_optimization": {"reduce_bucket_size": 5_000_000}}}),  # more than the model
        (1, {"cluster__deepspeed": {"zero_optimization": {"reduce_bucket_size": 5_000_000}}}),
    ],
)
def test_what_else_decides(fresh: dict[int, Pool], stage: int, changes: dict[str, Any]) -> None:
    assert_memory(fresh[2], 2, config(stage, "bf16", 2, **changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stage"), [("accelerate", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3), ("fsdp2", 0)]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_and_updates(fresh: dict[int, Pool], name: str, kind: str, stage: int) -> None:
    assert_memory(fresh[2], 2, config(stage, "fp32", 4, **OPTIMIZERS[name]), kind, CLOSE.get(name, 0.05))
