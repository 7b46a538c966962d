"""The interface of a training backend, and the parts that all backends share.

A backend owns gradient reduction, precision and the sharding of the state. It does not own the loop, the data, the
schedule, the guard or the checkpoint, which are the same code for every backend.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.config.schema.experiment import Experiment
from pretrain.distributed.rank import Rank
from pretrain.engine.statistics import RunningStatistics
from pretrain.optim.elementwise import ShardedEMA, WeightAverage
from pretrain.optim.exchange import Batch
from pretrain.optim.optimizers import STEP, ensure_state
from pretrain.optim.owned import OwnedOptimizer
from pretrain.optim.schedule_free import Z
from pretrain.sharding.protocol import Sharding

MASTER = "master"
EMA = "ema"
STARTS_AS_WEIGHTS = {MASTER, EMA, Z}  # states that are the weights until the first update


@dataclass(frozen=True)
class HeldSlice:
    """A contiguous piece of one parameter's state that this rank holds, as live views that may be written.

    Attributes:
        name: the parameter's name in the model.
        shape: of the unsharded parameter.
        offset: index of the first held element in the flattened parameter.
        states: state name (``master`` is the fp32 weight, ``ema`` its average) → 1-D view; all of one length. The
            states of tensors that one rank updates for all are separate pieces with their own shapes and no ``master``.
        owned: (start, stop) in the flattened parameter: the part that this rank writes into a checkpoint. Over all
            ranks the owned parts of a parameter cover it exactly once.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    states: dict[str, Tensor]
    owned: tuple[int, int]

    def owned_states(self) -> dict[str, Tensor]:
        """The owned part of every state; empty views if this rank owns nothing."""
        start, stop = self.owned[0] - self.offset, self.owned[1] - self.offset
        return {key: view[start:stop] for key, view in self.states.items()}


@torch.no_grad()
def square_sum(slices: Iterable[HeldSlice]) -> Tensor:
    """Sum of the squares of the weights that this rank owns, float64 (); all ranks' sums add up to the model's."""
    owned = [piece.owned_states()[MASTER] for piece in slices if MASTER in piece.states]
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in owned if part.numel()]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class Update:
    """The outcome of an optimiser step.

    Attributes:
        applied: False if the gradient was not finite: no weight and no optimiser state changed, on any rank.
        grad_norm: global norm before clipping (nan or inf where not applied).
    """

    applied: bool
    grad_norm: float


Read = Callable[[Tensor], float]  # a scalar on the device → its value on the host, for which the host waits


class Backend(Protocol):
    """A model that is being trained."""

    model: nn.Module
    """The bare module (its parameters may be sharded)."""
    forward: Callable[..., Tensor]
    """Calls the model through the backend, in the backend's precision."""
    name: str
    statistics: RunningStatistics
    """Running statistics that the model keeps besides its weights; none for a Vision Transformer."""

    def micro_step(self, *, boundary: bool) -> AbstractContextManager[None]:
        """Context of one micro-batch's forward and backward; gradients are reduced at the ``boundary`` of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds this micro-batch's gradient. Collective: at the boundary. ``loss`` is the mean over the micro-batch."""
        ...

    def step(self, lr: float, read: Read = float) -> Update:
        """Clips and applies the accumulated gradient at this learning rate. Collective: yes.

        Args:
            lr: the learning rate.
            read: is called once, with the gradient's norm, and returns it as a number. The caller decides what else it
                reads in the same wait for the device. Before the update if that depends on the norm, otherwise after.
        """
        ...

    def train(self, mode: bool) -> None:
        """Switches training behaviour such as dropout on or off."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Temporarily swaps in the EMA, or the optimiser's own average. Collective: on entry and on exit."""
        ...

    def slices(self) -> list[HeldSlice]:
        """The parts of weights and optimiser state that this rank holds."""
        ...

    def finish_load(self, num_updates: int) -> None:
        """Completes a load after the slices were written: sets update counters and refreshes all copies of the weights.

        Collective: yes.
        """
        ...


def guarded(loss: Tensor) -> Tensor:
    """The loss, with NaN gradients if it is not finite, so that the gradient check catches it on every rank.

    No host synchronisation: the decision stays on the device until the step's own check reads it.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)


def clip_reduced_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float | None,
    read: Read = float,
    over_ranks: Callable[[Tensor], Tensor] = lambda norm: norm,
) -> Update:
    """Measures and clips gradients that are reduced: complete and equal on every rank, or sharded.

    Non-finite gradients are discarded (set to None), so that an optimiser step does nothing; all ranks see the same
    norm, so they all decide the same.

    Args:
        parameters: those of this rank.
        max_norm: None: no clipping.
        read: is called once, with the norm.
        over_ranks: the norm of this rank's gradients → that of all; they are the same if nothing is sharded.

    Source: the factor is ``max_norm / (norm + 1e-6)``, at most 1, as torch's and DeepSpeed's clipping.
    """
    with_grad = [parameter for parameter in parameters if parameter.grad is not None]
    norm_tensor = torch.nn.utils.get_total_norm([parameter.grad for parameter in with_grad])  # type: ignore[misc]
    norm_tensor = over_ranks(norm_tensor)
    norm = read(norm_tensor)
    if not math.isfinite(norm):
        for parameter in with_grad:
            parameter.grad = None
        return Update(applied=False, grad_norm=norm)
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, norm_tensor)
    return Update(applied=True, grad_norm=norm)


class FlatStates:
    """The fp32 storages whose weights this rank updates, with their optimiser state and optional EMA.

    Args:
        batches: complete parameters, or the flat partitions of ZeRO, by the calls that update them.
        optimizer: the torch optimiser that has them as its parameters.
        options: rank, device and decay of the EMA.
    """

    def __init__(self, batches: Sequence[Batch], optimizer: torch.optim.Optimizer, options: BackendOptions) -> None:
        self._batches, self._optimizer = batches, optimizer
        self.has_ema = options.ema_decay is not None
        storages = [storage for batch in batches for storage in batch.storages]
        self._ema = None if options.ema_decay is None else ShardedEMA(storages, options.ema_decay)
        if isinstance(optimizer, OwnedOptimizer):
            optimizer.place(batches, options.rank, options.device)

    def views(self, storage: Tensor) -> dict[str, Tensor]:
        """State name → live 1-D view of a state with one number per weight, the weight itself first.

        Optimiser state is created if it does not exist yet.
        """
        state = ensure_state(self._optimizer, storage)
        views = {MASTER: storage.data.view(-1)} | {key: value.view(-1) for key, value in state.items() if key != STEP}
        return views if self._ema is None else views | {EMA: self._ema.of(storage).view(-1)}

    def sharded_slices(self) -> Iterator[HeldSlice]:
        """Slices of a sharded state: each rank owns what it holds."""
        for part in (part for batch in self._batches for part in batch.fragments):
            states = {key: part.of(view) for key, view in self.views(part.storage).items()}
            yield HeldSlice(part.name, part.shape, part.offset, states, (part.offset, part.offset + part.numel))
        yield from self.owned_slices()

    def owned_slices(self) -> Iterator[HeldSlice]:
        """Slices of the states of complete tensors that this rank updates for all; they have no ``master``."""
        states = self._optimizer.owned_states() if isinstance(self._optimizer, OwnedOptimizer) else {}
        for name, of_tensor in states.items():
            for key, state in of_tensor.items():
                if key != STEP:
                    yield HeldSlice(name, tuple(state.shape), 0, {key: state.view(-1)}, (0, state.numel()))

    def after(self, update: Update) -> Update:
        """Updates the EMA after an applied update; returns the update."""
        if self._ema is not None and update.applied:
            self._ema.update()
        return update

    def set_num_updates(self, num_updates: int) -> None:
        """Sets the optimiser's own step counters after a load."""
        for state in self._optimizer.state.values():
            if STEP in state:
                state[STEP].fill_(num_updates)

    @contextlib.contextmanager
    def averaged(self, refresh: Callable[[], None]) -> Iterator[None]:
        """Swaps in the EMA or the optimiser's average; ``refresh`` updates all copies of the weights."""
        average = self._optimizer if self._ema is None else self._ema
        assert isinstance(average, WeightAverage), "no average is kept: set optim.ema_decay"
        average.swap()
        refresh()
        try:
            yield
        finally:
            average.swap()
            refresh()


def cast_buffers(model: nn.Module) -> None:
    """bfloat16 buffers for bfloat16 weights, as ``Module.to`` would make them."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(torch.bfloat16)


def replicated_slices(
    named_parameters: Iterable[tuple[str, nn.Parameter]], flat_states: FlatStates, rank: int, world: int
) -> Iterator[HeldSlice]:
    """Slices of a replicated state: each rank owns an equal range of the concatenated parameters."""
    parameters = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    total = sum(parameter.numel() for _, parameter in parameters)
    first, last = total * rank // world, total * (rank + 1) // world
    begin = 0
    for name, parameter in parameters:
        numel = parameter.numel()
        start, stop = (min(max(edge - begin, 0), numel) for edge in (first, last))
        yield HeldSlice(name, tuple(parameter.shape), 0, flat_states.views(parameter), (start, stop))
        begin += numel
    yield from flat_states.owned_slices()


def frozen_slices(
    named_parameters: Iterable[tuple[str, nn.Parameter]], rank: int, *, has_ema: bool
) -> Iterator[HeldSlice]:
    """Slices of frozen parameters, which every rank holds completely, so that a checkpoint has all weights.

    Their EMA equals the weights.
    """
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            view = parameter.data.view(-1)
            states = {MASTER: view, EMA: view} if has_ema else {MASTER: view}
            yield HeldSlice(name, tuple(parameter.shape), 0, states, (0, 0 if rank else view.numel()))


@dataclass(frozen=True)
class BackendOptions:
    """The options of a backend besides the model and the optimiser.

    Attributes:
        rank, world: this process and the number of processes.
        device: the device to train on.
        sharding: how the state is sharded.
        precision: as in the experiment.
        micro_batch_size, accumulation_steps: images per pass, passes per step.
        clip_grad: maximum gradient norm; None: no clipping.
        ema_decay: decay of the EMA; None: no EMA.
        passed_on: the user's settings for the backend's library.
        compiles: the blocks are going to be compiled, so weights can be gathered only before and after a block.
    """

    rank: int
    world: int
    device: torch.device
    sharding: Sharding
    precision: str
    micro_batch_size: int
    accumulation_steps: int
    clip_grad: float | None
    ema_decay: float | None
    passed_on: Mapping[str, Any]
    compiles: bool

    @classmethod
    def of(
        cls, experiment: Experiment, sharding: Sharding, rank: Rank, device: torch.device, micro_batch: tuple[int, int]
    ) -> BackendOptions:
        """The options of an experiment; ``micro_batch`` is (images per pass, passes per step)."""
        return cls(
            rank=rank.rank,
            world=rank.world,
            device=device,
            sharding=sharding,
            precision=experiment.precision,
            micro_batch_size=micro_batch[0],
            accumulation_steps=micro_batch[1],
            clip_grad=experiment.optim.clip_grad,
            ema_decay=experiment.optim.ema_decay,
            passed_on=experiment.cluster.passed_on,
            compiles=experiment.cluster.compile,
        )
