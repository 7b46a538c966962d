"""A simulated rank holds, sends and reads the same as real ranks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.live_storages import LiveStorages
from pretrain.check.simulate import simulate
from pretrain.config.loader import Resolved
from pretrain.data.stream import TrainStream
from pretrain.distributed.rank import detect
from pretrain.engine.backend import Backend
from pretrain.engine.deepspeed_backend import DeepSpeedBackend
from pretrain.engine.fsdp2_backend import Fsdp2Backend
from pretrain.engine.masters_backend import MastersBackend
from pretrain.errors import ConfigError
from pretrain.sharding.protocol import Traffic
from tests.distributed.training import BATCH, experiment, global_batch, make, objective_for, one_step
from tests.pool import Pool
from tests.unit.data.sets import experiment as set_experiment
from tests.unit.data.sets import write_set

SCALARS = 8  # bytes: overflow flags and norms, which the simulation leaves out
NAMES = {
    "allreduce_": "all_reduce", "_allgather_base_": "all_gather", "allgather_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter", "alltoall_base_": "all_to_all",
}  # fmt: skip


class Collectives(TorchDispatchMode):
    """Adds up the payload of every collective by its kind: the largest tensor that it is given.

    Of an all-to-all it is what this rank sends, the second tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.payload: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Looks at one operation and runs it."""
        if func.namespace == "c10d":
            sizes = [sum(_bytes(leaf) for leaf in tree_leaves(arg) if isinstance(leaf, Tensor)) for arg in args]
            if max(sizes) > SCALARS:
                kind = NAMES[func.__name__.partition(".")[0]]
                self.payload[kind] += sizes[1] if kind == "all_to_all" else max(sizes)
        return func(*args, **(kwargs or {}))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def storages(tensors: Any) -> int:
    """Bytes of the distinct storages below a tree of tensors."""
    found = [leaf.untyped_storage() for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor) and leaf.ndim]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def gradients(backend: Backend) -> int:
    """Bytes of the gradients between two micro-steps."""
    if isinstance(backend, Fsdp2Backend):
        return storages([sharded_gradients(module) for module in backend.model.modules()])
    if isinstance(backend, MastersBackend):
        return storages([bucket.sums for bucket in backend._sums._buckets])
    optimizer: Any = getattr(backend, "_optimizer", None)
    kept = [parameter.grad for parameter in backend.model.parameters() if parameter.grad is not None]
    partitions = [getattr(optimizer, name, None) for name in ("averaged_gradients", "grad_partitions_flat_buffer")]
    return storages([kept, partitions])


def sharded_gradients(module: torch.nn.Module) -> list[Tensor | None]:
    """The gradients of a module that torch has sharded: complete ones of the micro-steps before, and those reduced."""
    if not isinstance(module, FSDPModule):
        return []
    found: list[Tensor | None] = []
    for each in module._get_fsdp_state()._fsdp_param_group.fsdp_params:  # type: ignore[union-attr]
        reduced: Any = each.sharded_param.grad
        complete = each._unsharded_param.grad if hasattr(each, "_unsharded_param") else None
        found += [complete, each.unsharded_accumulated_grad, None if reduced is None else reduced.to_local()]
    return found


def weights(backend: Backend) -> list[Any]:
    """The tensors in which a rank keeps weights between steps."""
    if isinstance(backend, Fsdp2Backend):
        return [shard.rows.data for shard in backend._shards]
    return [[each.data, getattr(each, "ds_tensor", None)] for each in backend.model.parameters()]


def masters(backend: Backend) -> list[Tensor]:
    """The fp32 weights that are not those with which the model computes."""
    if isinstance(backend, MastersBackend):
        return list(backend._master_of.values())
    if isinstance(backend, DeepSpeedBackend) and backend._stage:
        return [one for batch in backend._states._batches for one in batch.storages]
    return []


def measured(config: Any, kind: str) -> dict[str, Any]:
    """Bytes that this rank holds and sends in the third step of a real training, two micro-steps each."""
    backend, accumulation = make(config, kind)
    backend.train(True)
    objective = objective_for(config, backend)
    for step in range(2):
        one_step(backend, config, accumulation, step, objective=objective)
    most = 0
    backward = backend.backward

    def watched(loss: Tensor) -> None:
        nonlocal most
        backward(loss)
        most = max(most, gradients(backend))

    backend.backward = watched  # type: ignore[method-assign]
    with Collectives() as seen:
        one_step(backend, config, accumulation, 2, objective=objective)
    states: Any = backend._states  # type: ignore[attr-defined]
    inner = states._optimizer
    return {
        "weights": storages(weights(backend)),
        "gradients": most,
        "optimizer": storages([dict(state) for state in inner.state.values()]) + storages(masters(backend)),
        "average": storages(states._ema._averages),
        "traffic": dict(seen.payload),
    }


def config_of(stage: int, precision: str, world: int, **more: Any) -> Any:
    settings = {"cluster__zero_stage": stage, "precision": precision, "optim__ema_decay": 0.9, **more}
    return experiment(**settings, cluster__micro_batch_size=BATCH // world // 2)


def zero3(**options: int) -> dict[str, Any]:
    return {"cluster__deepspeed": {"zero_optimization": {f"stage3_{key}": value for key, value in options.items()}}}


FROZEN: dict[str, Any] = {"optim__overrides": [{"pattern": r"^blocks\.0\.", "freeze": True}]}
STATE = ("weights", "optimizer", "average")
LAST: dict[str, Any] = {"optim__overrides": [{"pattern": r"^(?!blocks\.1|norm|pre_logits|head)", "freeze": True}]}
KEPT: dict[str, Any] = {"cluster": {"backend": "fsdp2", "reshard_after_forward": False}}
CASES = {
    "DDP": ("accelerate", 0, "fp32", {}),
    "stage 0": ("deepspeed", 0, "fp32", {}),
    "DDP, bf16": ("accelerate", 0, "bf16", FROZEN),
    "stage 1": ("deepspeed", 1, "fp32", {}),
    "stage 2, bf16": ("deepspeed", 2, "bf16", {}),
    "stage 2, SGD": ("deepspeed", 2, "fp32", {"optim__name": "sgd"}),
    "stage 3": ("deepspeed", 3, "bf16", {}),
    "stage 3, large weights cut": ("deepspeed", 3, "fp32", zero3(param_persistence_threshold=200)),
    "DDP, frozen": ("accelerate", 0, "fp32", FROZEN),
    "stage 1, frozen": ("deepspeed", 1, "fp32", FROZEN),
    "stage 3, frozen": ("deepspeed", 3, "fp32", FROZEN | zero3(param_persistence_threshold=200)),
    "FSDP2": ("fsdp2", 0, "fp32", {}),
    "FSDP2, bf16": ("fsdp2", 0, "bf16", {}),
    "FSDP2, SGD, kept after forward": ("fsdp2", 0, "fp32", {"optim__name": "sgd", **KEPT}),
    "FSDP2, frozen": ("fsdp2", 0, "fp32", FROZEN),
    "FSDP2, only the last block": ("fsdp2", 0, "fp32", LAST),
    "DDP, Muon": ("accelerate", 0, "fp32", {"optim__name": "muon"}),
    "stage 0, LAMB": ("deepspeed", 0, "fp32", {"optim__name": "lamb"}),
    "stage 1, LAMB": ("deepspeed", 1, "fp32", {"optim__name": "lamb"}),
    "stage 2, bf16, Muon": ("deepspeed", 2, "bf16", {"optim__name": "muon"}),
    "stage 3, Adafactor": ("deepspeed", 3, "fp32", {"optim__name": "adafactor"}),
    "FSDP2, Muon": ("fsdp2", 0, "fp32", {"optim__name": "muon", "optim__layer_decay": 0.7}),
    "stage 2, Shampoo": ("deepspeed", 2, "fp32", {"optim__name": "shampoo", "optim__momentum": 0.9}),
    "stage 1, layer-wise decay": ("deepspeed", 1, "fp32", {"optim__layer_decay": 0.7}),
    "stage 3, gathered twice": (
        "deepspeed", 3, "fp32", zero3(param_persistence_threshold=0, max_reuse_distance=0, max_live_parameters=0)
    ),
}  # fmt: skip


SLOW = (
    "FSDP2", "FSDP2, SGD, kept after forward", "stage 0, LAMB", "stage 1, LAMB", "stage 3, Adafactor", "FSDP2, Muon",
    "stage 2, Shampoo",
)  # fmt: skip


def all_to_all(traffic: tuple[Traffic, ...]) -> list[Traffic]:
    return [one for one in traffic if one.kind == "all_to_all"]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_a_simulated_rank_is_a_real_one(request: pytest.FixtureRequest, case: str, world: int) -> None:
    kind, stage, precision, more = CASES[case]
    config = config_of(stage if kind == "deepspeed" else 0, precision, world, **more)
    pool: Pool = request.getfixturevalue(f"pool{world}")
    paper = simulate(Resolved(config, {}, "x.yaml"), world, 0, backend=kind)
    assert (paper.micro_batch_size, paper.accumulation_steps) == (BATCH // world // 2, 2)
    largest = 4 * 4096  # stages 1 and 2 keep, of the tensors that are cut, the whole gradient
    tokens = 4 * 17 * 32  # of one image, of whose gradient that of the class token may be a view
    results = pool.run(measured, config, kind)
    sent = sum(of_rank["traffic"].pop("all_to_all", 0) for of_rank in results)
    assert sent == pytest.approx(sum(world * one.sent(world) for one in all_to_all(paper.traffic)), rel=1e-6, abs=16)
    if kind == "fsdp2" or config.optim.complete_tensors != "none":  # the last ranks have fewer rows, owners differ
        results = [results[0] | {name: max(of_rank[name] for of_rank in results) for name in STATE}]
    for found in results:
        traffic: Counter[str] = Counter()
        for one in paper.traffic:
            if one.kind != "all_to_all":
                traffic[one.kind] += one.payload
        assert found["traffic"] == traffic
        for name in STATE:
            assert found[name] == getattr(paper.memory, name), name
        slack = largest * 3 if stage in (1, 2) else tokens
        assert (
            paper.memory.gradients <= found["gradients"] + slack
            and found["gradients"] <= paper.memory.gradients + slack
        )


def kept_activations(config: Any) -> int:
    """Bytes that a forward pass of one micro-batch leaves alive on this rank, images included."""
    backend, accumulation = make(config)
    batch, micro = global_batch(0, config), BATCH // detect().world // accumulation
    with LiveStorages(backend.model.parameters()) as live:
        images = batch.images[:micro].clone()
        loss = torch.nn.functional.cross_entropy(backend.model(images), batch.labels[:micro, 0].clone())
    total = live.total()
    del loss
    return total


def test_activations(pool2: Pool) -> None:
    config = config_of(1, "fp32", 2, model__drop_path=0.0)
    paper = simulate(Resolved(config, {}, "x.yaml"), 2, 0, backend="deepspeed").memory.activations
    for found in pool2.run(kept_activations, config):
        assert found == pytest.approx(paper, rel=0.05)


@pytest.mark.parametrize("world", [1, 2, 8])
def test_batches_are_those_of_the_stream(tmp_path: Path, world: int) -> None:
    folder = write_set(tmp_path / "train", [13, 30, 22])
    config = set_experiment(folder, 65, precision="fp32", cluster__micro_batch_size=2)
    for rank in range(world):
        paper = simulate(Resolved(config, {}, "x.yaml"), world, rank, backend="deepspeed")
        assert paper.batches is not None
        stream = TrainStream(config, rank, world, 2)
        for step, ids in enumerate(paper.batches):
            drawn = [batch.sample_ids for batch in stream.iterate(step * config.global_batch_size, 1)]
            assert list(ids) == torch.cat(drawn)[: len(ids)].tolist() and len(ids) == min(8, 16 // world)


def test_numbers_of_ranks_that_do_not_fit() -> None:
    resolved = Resolved(experiment(), {}, "x.yaml")
    with pytest.raises(ConfigError, match=r"3 ranks cannot share .* valid world sizes: 1, 2, 4"):
        simulate(resolved, 3, 0, backend="deepspeed")
    with pytest.raises(ConfigError, match="4 is not a rank of 4; ranks are 0 to 3"):
        simulate(resolved, 4, 4, backend="deepspeed")


def test_shares_shrink_with_the_ranks() -> None:
    resolved = Resolved(experiment(cluster__zero_stage=1, cluster__micro_batch_size="auto"), {}, "x.yaml")
    one, four = (simulate(resolved, world, 0, backend="deepspeed") for world in (1, 4))
    assert one.memory.optimizer / 4 == pytest.approx(four.memory.optimizer, rel=0.01)
    assert one.traffic == () and dataclasses.replace(one, world=4).num_parameters == four.num_parameters
