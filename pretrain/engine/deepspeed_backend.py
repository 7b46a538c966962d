"""DeepSpeed ZeRO 0-3. Only this file uses DeepSpeed.

Every rank finds its slices of the state through DeepSpeed's own bookkeeping, which differs by stage:

- stage 0: everything is on every rank, in the parameters themselves;
- stages 1, 2: ``parameter._hp_mapping`` locates each part of the parameter in the rank's flat fp32 partition;
- stage 3: ``optimizer.grad_position`` does the same for the rank's flat fp32 sub-groups, and ``ds_tensor`` is the
  rank's part of the weight.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pretrain.engine.backend import (
    EMA,
    MASTER,
    BackendOptions,
    FlatStates,
    HeldSlice,
    Read,
    Update,
    clip_reduced_gradients,
    frozen_slices,
    guarded,
    replicated_slices,
)
from pretrain.engine.statistics import RunningStatistics
from pretrain.errors import ConfigError
from pretrain.optim.exchange import Batch, Fragment
from pretrain.optim.groups import set_lr
from pretrain.sharding.step import DeepSpeedSettings


def _import_deepspeed(device: torch.device) -> Any:
    """Imports DeepSpeed quietly; on a CPU skips its shared-memory collective, which takes a minute to compile."""
    # torch warns about deprecated collectives that DeepSpeed calls in every step; a user cannot act on that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def _forget_earlier_engine() -> None:
    """Takes back what an earlier engine of this process set for all later ones.

    DeepSpeed keeps two things in global variables and never resets them. After an engine with autocast, any engine
    reduces gradients in the dtype of its weights, so bf16 sums replace the fp32 ones that were asked for. After one of
    stage 3, every linear layer of the process is DeepSpeed's.
    """
    from deepspeed.runtime import torch_autocast
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    torch_autocast.TORCH_AUTOCAST_INITIALIZED, torch_autocast.TORCH_AUTOCAST_DTYPE = False, None
    linear = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if linear is not None:
        nn.functional.linear = linear


def deepspeed_config(options: BackendOptions) -> dict[str, Any]:
    """DeepSpeed's JSON config: the keys that the engine owns plus the user's own."""
    stage = options.sharding.stage
    config: dict[str, Any] = {
        "train_batch_size": options.micro_batch_size * options.accumulation_steps * options.world,
        "train_micro_batch_size_per_gpu": options.micro_batch_size,
        "gradient_accumulation_steps": options.accumulation_steps,
        # At stage 0 we clip: DeepSpeed's fp32 stage 0 neither reports the norm nor checks it.
        "gradient_clipping": 0.0 if stage == 0 or options.clip_grad is None else options.clip_grad,
        "zero_optimization": {"stage": stage, **(DeepSpeedSettings.defaults() if stage else {})},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": options.precision == "bf16"},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice in every micro-step
    }
    if options.precision == "autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    for key, value in options.passed_on.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if nested else value
    if config["zero_optimization"]["stage"] != stage:
        raise ConfigError("cluster.deepspeed.zero_optimization.stage: use cluster.zero_stage")
    return config


def _initialize(model: nn.Module, optimizer: torch.optim.Optimizer, options: BackendOptions) -> Any:
    """DeepSpeed's engine.

    Raises:
        ConfigError: DeepSpeed refuses a value in one of the sections of ``cluster.deepspeed`` that only it checks.
    """
    import deepspeed

    try:
        return deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(options))[0]
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']} (it is {one['input']!r})" for one in error.errors()]
        place = f"cluster.deepspeed, in {error.title}"
        raise ConfigError(f"{place}: DeepSpeed refuses {'; '.join(found)}: correct it, or remove it") from error


@contextlib.contextmanager
def _without_bf16_optimizer() -> Iterator[None]:
    """Makes DeepSpeed use its ZeRO optimiser at every stage from 1 on.

    At stage 1 it chooses another one, BF16_Optimizer, where bf16 gradients are summed in fp32. That one takes a step on
    zero gradients when it is built, which Adam counts, and keeps its partitions elsewhere. The ZeRO optimiser of stages
    1 and 2 sums in fp32 as well; DeepSpeed itself uses it for that at stage 2, and at stage 1 with offloading.
    """
    from deepspeed.runtime.engine import BFLOAT16, ZERO_OPTIMIZATION, DeepSpeedEngine

    choose = DeepSpeedEngine._do_optimizer_sanity_check

    def choose_zero(engine: Any, optimizer: torch.optim.Optimizer) -> str | None:
        chosen = choose(engine, optimizer)
        return ZERO_OPTIMIZATION if chosen == BFLOAT16 and engine.zero_optimization() else chosen

    DeepSpeedEngine._do_optimizer_sanity_check = choose_zero  # type: ignore[assignment]
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = choose


class DeepSpeedBackend:
    """Trains with DeepSpeed at one ZeRO stage."""

    name = "deepspeed"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BackendOptions) -> None:
        deepspeed = _import_deepspeed(options.device)
        deepspeed.init_distributed(dist_backend="nccl" if options.device.type == "cuda" else "gloo", verbose=False)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._options, self._stage = options, options.sharding.stage
        _forget_earlier_engine()
        if options.compiles:  # stage 3 gathers these as units, by hooks of their own and not of the layers inside
            deepspeed.utils.set_z3_leaf_modules_by_name(model, model.units())  # type: ignore[operator]
        with _without_bf16_optimizer():
            self._engine = _initialize(model, optimizer, options)
        self.model, self.forward = self._engine.module, self._engine
        self._optimizer = self._engine.optimizer  # ZeRO's wrapper at stages 1-3, ours at stage 0
        inner = self._optimizer if self._stage == 0 else self._optimizer.optimizer
        self._states = FlatStates(self._batches(), inner, options)
        self.statistics = RunningStatistics(self.model, options.world)

    def micro_step(self, *, boundary: bool) -> contextlib.AbstractContextManager[None]:
        """See ``Backend.micro_step``; DeepSpeed counts the micro-steps."""
        self._boundary = boundary
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See ``Backend.backward``; DeepSpeed divides by the accumulation steps."""
        assert self._engine.is_gradient_accumulation_boundary() == self._boundary
        self._engine.backward(guarded(loss))
        if not self._boundary:
            self._engine.step()

    def step(self, lr: float, read: Read = float) -> Update:
        """See ``Backend.step``; at stages 1-3 DeepSpeed checks on all ranks together whether gradients are finite."""
        set_lr(self._optimizer.param_groups, lr)
        if self._stage == 0:
            update = clip_reduced_gradients(self.model.parameters(), self._options.clip_grad, read)
            self._engine.step()  # a discarded gradient is None, and its parameter is not updated
        else:
            self._engine.step()
            norm = read(torch.as_tensor(self._engine.get_global_grad_norm()))
            update = Update(applied=not self._optimizer.overflow, grad_norm=norm)
        self.statistics.after(update.applied)
        return self._states.after(update)

    def train(self, mode: bool) -> None:
        """See ``Backend.train``."""
        self._engine.train(mode)

    def slices(self) -> list[HeldSlice]:
        """See ``Backend.slices``."""
        frozen = self._frozen_stage3 if self._stage == 3 else self._frozen_whole
        if self._stage:
            return [*self._states.sharded_slices(), *frozen()]
        parameters = self.model.named_parameters()
        return [*replicated_slices(parameters, self._states, self._options.rank, self._options.world), *frozen()]

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """See ``Backend.averaged``."""
        return self._states.averaged(self._refresh)

    def _batches(self) -> list[Batch]:
        """The fp32 tensors that the optimiser updates on this rank, by its calls: at stages 1-3 one for each tensor."""
        if self._stage == 0:
            named = self.model.named_parameters()
            return [Batch.of_unsharded({name: one for name, one in named if one.requires_grad})]
        name = "single_partition_of_fp32_groups" if self._stage < 3 else "fp32_partitioned_groups_flat"
        parts = list(self._fragments_stage12() if self._stage < 3 else self._fragments_stage3())
        return [
            Batch((one,), tuple(part for part in parts if part.storage is one))
            for one in getattr(self._optimizer, name)
        ]

    def _fragments_stage12(self) -> Iterator[Fragment]:
        for parameter in (parameter for group in self._optimizer.bit16_groups for parameter in group):
            mapping = parameter._hp_mapping
            if mapping is None:  # this parameter is entirely in other ranks' partitions
                continue
            inside, address = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = self._optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            name, shape = self._names[id(parameter)], tuple(parameter.shape)
            yield Fragment(name, shape, inside.start, flat, address.start, inside.numel)

    def _fragments_stage3(self) -> Iterator[Fragment]:
        optimizer, rank = self._optimizer, self._options.rank
        for parameter in (parameter for group in optimizer.fp16_groups for parameter in group):
            group_index, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            per_rank = parameter.partition_numel()
            offset = per_rank * rank
            numel = min(max(parameter.ds_numel - offset, 0), per_rank)  # the last ranks' parts are padded
            assert numel <= padded
            if numel:
                flat = optimizer.fp32_partitioned_groups_flat[group_index]
                yield Fragment(self._names[id(parameter)], tuple(parameter.ds_shape), offset, flat, start, numel)

    def _frozen_whole(self) -> Iterator[HeldSlice]:
        return frozen_slices(self.model.named_parameters(), self._options.rank, has_ema=self._states.has_ema)

    def _frozen_stage3(self) -> Iterator[HeldSlice]:
        for name, parameter in self.model.named_parameters():
            part: Any = parameter
            offset = part.partition_numel() * self._options.rank
            numel = min(max(part.ds_numel - offset, 0), part.partition_numel())
            if parameter.requires_grad or numel == 0:
                continue
            view = part.ds_tensor.data.view(-1).narrow(0, 0, numel)
            states = {MASTER: view, EMA: view} if self._states.has_ema else {MASTER: view}
            yield HeldSlice(name, tuple(part.ds_shape), offset, states, (offset, offset + numel))

    def finish_load(self, num_updates: int) -> None:
        """See ``Backend.finish_load``."""
        self._states.set_num_updates(num_updates)
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        """Updates all copies of the weights from the fp32 storages. Collective: at stages 1-3."""
        if self._stage in (1, 2):
            self._optimizer.update_lp_params()
            for index in range(len(self._optimizer.bit16_groups)):
                self._optimizer._update_model_bit16_weights(index)
        elif self._stage == 3:
            self._refresh_stage3()

    def _refresh_stage3(self) -> None:
        """Copies the fp32 weights into the ranks' parts, and gathers the weights that stay complete.

        DeepSpeed gathers weights on a CUDA stream of its own, which does not wait for the stream of these copies: a
        gather that was started ahead may still read a part while it is overwritten, and the first gather of the next
        forward pass may read it before it is written. In a training step the host rules out both: it waits for
        the device between the backward pass and the update, and reads the update's result before the next forward
        pass. Here it reads nothing, so it must wait on both sides: once per load, twice per evaluation of an EMA.
        """
        optimizer = self._optimizer
        optimizer._partition_all_parameters()  # waits for gathers in flight, and drops complete weights
        self._wait_for_every_stream()
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        self._wait_for_every_stream()
        if optimizer.persistent_parameters:  # small parameters stay complete on every rank: gather them again
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def _wait_for_every_stream(self) -> None:
        if self._options.device.type == "cuda":
            torch.cuda.synchronize(self._options.device)
