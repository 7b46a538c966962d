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
from torch import Tensor, nn

from pretrain.engine.backend import (
    EMA,
    MASTER,
    BackendOptions,
    FlatStates,
    HeldSlice,
    Update,
    clip_reduced_gradients,
    frozen_slices,
    guarded,
    replicated_slices,
)
from pretrain.engine.statistics import RunningStatistics
from pretrain.errors import ConfigError
from pretrain.optim.groups import set_lr


def _import_deepspeed() -> Any:
    """Imports DeepSpeed quietly; on a CPU skips its shared-memory collective, which takes a minute to compile."""
    # torch warns about deprecated collectives that DeepSpeed calls in every step; a user cannot act on that.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    import deepspeed

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


def deepspeed_config(options: BackendOptions) -> dict[str, Any]:
    """DeepSpeed's JSON config: the keys that the engine owns plus the user's own."""
    stage = options.sharding.stage
    config: dict[str, Any] = {
        "train_batch_size": options.micro_batch_size * options.accumulation_steps * options.world,
        "train_micro_batch_size_per_gpu": options.micro_batch_size,
        "gradient_accumulation_steps": options.accumulation_steps,
        # At stage 0 we clip: DeepSpeed's fp32 stage 0 neither reports the norm nor checks it.
        "gradient_clipping": 0.0 if stage == 0 or options.clip_grad is None else options.clip_grad,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": options.precision == "bf16"},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if options.precision == "autocast":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    for key, value in options.deepspeed.items():
        nested = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = {**config[key], **value} if nested else value
    if config["zero_optimization"]["stage"] != stage:
        raise ConfigError("cluster.deepspeed.zero_optimization.stage: use cluster.zero_stage")
    return config


class DeepSpeedBackend:
    """Trains with DeepSpeed at one ZeRO stage."""

    name = "deepspeed"

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, options: BackendOptions) -> None:
        deepspeed = _import_deepspeed()
        deepspeed.init_distributed(dist_backend="nccl" if options.device.type == "cuda" else "gloo", verbose=False)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._options, self._stage = options, options.sharding.stage
        self._engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(options))
        self.model, self.forward = self._engine.module, self._engine
        self._optimizer = self._engine.optimizer  # ZeRO's wrapper at stages 1-3, ours at stage 0
        inner = self._optimizer if self._stage == 0 else self._optimizer.optimizer
        self._states = FlatStates(self._storages(), inner, options.ema_decay)
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

    def step(self, lr: float) -> Update:
        """See ``Backend.step``; at stages 1-3 DeepSpeed checks on all ranks together whether gradients are finite."""
        set_lr(self._optimizer.param_groups, lr)
        if self._stage == 0:
            update = clip_reduced_gradients(self.model.parameters(), self._options.clip_grad)
            self._engine.step()  # a discarded gradient is None, and its parameter is not updated
        else:
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm())
            update = Update(applied=not self._optimizer.overflow, grad_norm=norm)
        self.statistics.after(update.applied)
        return self._states.after(update)

    def train(self, mode: bool) -> None:
        """See ``Backend.train``."""
        self._engine.train(mode)

    def slices(self) -> list[HeldSlice]:
        """See ``Backend.slices``."""
        walk = {0: self._slices_stage0, 1: self._slices_stage12, 2: self._slices_stage12, 3: self._slices_stage3}
        frozen = self._frozen_stage3 if self._stage == 3 else self._frozen_whole
        return [*walk[self._stage](), *frozen()]

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """See ``Backend.averaged``."""
        return self._states.averaged(self._refresh)

    def _storages(self) -> list[Tensor]:
        """The fp32 tensors that the optimiser updates on this rank."""
        if self._stage == 0:
            return [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self._stage == 3:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _slices_stage0(self) -> Iterator[HeldSlice]:
        parameters = self.model.named_parameters()
        return replicated_slices(parameters, self._states, self._options.rank, self._options.world)

    def _slices_stage12(self) -> Iterator[HeldSlice]:
        for parameter in (parameter for group in self._optimizer.bit16_groups for parameter in group):
            mapping = parameter._hp_mapping
            if mapping is None:  # this parameter is entirely in other ranks' partitions
                continue
            inside, address = mapping.lp_fragment_address, mapping.hp_fragment_address
            flat = self._optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
            views = self._states.views(flat)
            yield HeldSlice(
                name=self._names[id(parameter)],
                shape=tuple(parameter.shape),
                offset=inside.start,
                states={key: view.narrow(0, address.start, address.numel) for key, view in views.items()},
                owned=(inside.start, inside.start + inside.numel),
            )

    def _slices_stage3(self) -> Iterator[HeldSlice]:
        optimizer, rank = self._optimizer, self._options.rank
        for parameter in (parameter for group in optimizer.fp16_groups for parameter in group):
            group_index, start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            per_rank = parameter.partition_numel()
            offset = per_rank * rank
            numel = min(max(parameter.ds_numel - offset, 0), per_rank)  # the last ranks' parts are padded
            assert numel <= padded
            if numel == 0:
                continue
            flat = optimizer.fp32_partitioned_groups_flat[group_index]
            views = self._states.views(flat)
            yield HeldSlice(
                name=self._names[id(parameter)],
                shape=tuple(parameter.ds_shape),
                offset=offset,
                states={key: view.narrow(0, start, numel) for key, view in views.items()},
                owned=(offset, offset + numel),
            )

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
            optimizer = self._optimizer
            for index in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(index)
            optimizer._partition_all_parameters()
            if optimizer.persistent_parameters:  # small parameters stay complete on every rank: gather them again
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
