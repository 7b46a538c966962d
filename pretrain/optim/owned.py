"""Optimisers whose update of a tensor reads the complete tensor, at every sharding.

Each such tensor has one owner among the ranks. In a step, gradients move from the ranks that hold parts of them to the
owners, the owners compute the changes, each of them once, and the changes move back to the ranks that hold the weights.
The state of a tensor is only at its owner. Clipping, the norm of the gradient and the master weights are the engine's,
as for every other optimiser.

All other tensors are updated in place, piece by piece, with AdamW.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.config.schema.optim.base import OptimConfig
from pretrain.config.schema.optim.matrices import MatrixConfig
from pretrain.optim.elementwise import StatefulOptimizer, adamw_state, adamw_update
from pretrain.optim.exchange import Batch, Exchange, Fragment, exchanges_of

State = dict[str, Tensor]


class CompleteRule(ABC):
    """How the complete tensors of an optimiser change."""

    @abstractmethod
    def new_state(self, name: str, tensor: Tensor) -> State:
        """The initial state of a parameter, whose shape and device ``tensor`` has."""

    def cost(self, name: str, shape: tuple[int, ...]) -> int:
        """Work of an update of a parameter, in any unit (``OptimConfig.complete_cost``)."""
        return math.prod(shape)

    @abstractmethod
    def change(self, name: str, grad: Tensor, weights: Tensor | None, state: State, group: Mapping[str, Any]) -> Tensor:
        """The tensor to add to a parameter, contiguous. Updates ``state``, but neither ``grad`` nor ``weights``.

        Args:
            name: the parameter's.
            grad: its gradient.
            weights: the parameter, where the optimiser ``reads_weights``; the change then includes its decay.
            state: its state.
            group: its parameter group.
        """


class OwnedOptimizer(StatefulOptimizer):
    """Updates complete tensors at their owners (groups with ``complete``), and all others with AdamW.

    Until ``place`` is called, this process owns all tensors.

    Args:
        groups: parameter groups.
        config: the settings; ``betas`` and ``eps`` are AdamW's.
        rule: how complete tensors change.
        named: name → parameter, of the unsharded model.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        config: OptimConfig,
        rule: CompleteRule,
        named: Mapping[str, nn.Parameter],
    ) -> None:
        of_adamw = {key: getattr(config, key) for key in ("betas", "eps") if isinstance(config, MatrixConfig)}
        super().__init__(groups, {"lr": config.lr, **of_adamw})
        self._rule, self._reads_weights = rule, config.reads_weights
        self._names = {id(parameter): name for name, parameter in named.items()}
        self._group_index = {
            self._names[id(parameter)]: index
            for index, group in enumerate(groups)
            if group["complete"]
            for parameter in group["params"]
        }
        self._group: dict[str, dict[str, Any]] = {}
        self._batches: list[Batch] = []
        self._exchanges: list[Exchange] = []
        self._complete: set[int] = set()  # identities of storages with complete tensors

    def place(self, batches: Sequence[Batch], rank: int, device: torch.device) -> None:
        """Tells where the parameters are, after the engine has sharded them; chooses the owners. Collective: yes.

        Args:
            batches: what each call of ``step`` updates, in the order of the calls. They may have other tensors, too.
            rank: this rank.
            device: where complete tensors and their states are.
        """
        self._batches = self._only_complete(batches)
        self._exchanges = exchanges_of(self._batches, rank, device, self._rule.cost)

    def new_state(self, tensor: Tensor) -> State:
        """See ``StatefulOptimizer.new_state``; the states of complete tensors are separate (``owned_states``)."""
        return {} if id(tensor) in self._complete else adamw_state(tensor, torch.float32)

    def update(self, tensor: Tensor, grad: Tensor, state: State, group: dict[str, Any]) -> None:
        """See ``StatefulOptimizer.update``: AdamW."""
        adamw_update(tensor, grad, state, group)

    def owned_states(self) -> dict[str, State]:
        """Name → state of every complete tensor that this rank owns, created if it does not exist yet."""
        return {
            name: self._state(name, exchange.empty(name)) for exchange in self._exchanges for name in exchange.owned
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every tensor that has a gradient. Collective: yes."""
        if not self._exchanges:
            self._place_alone()
        present = {id(tensor) for group in self.param_groups for tensor in group["params"]}
        for batch, exchange in zip(self._batches, self._exchanges, strict=True):
            # A rank that holds no part of any tensor has one batch, and may own some of them.
            if len(self._batches) == 1 or any(id(storage) in present for storage in batch.storages):
                self._update_complete(batch, exchange)
        for group in self.param_groups:
            if not group["complete"]:
                self.update_group(group)

    def _update_complete(self, batch: Batch, exchange: Exchange) -> None:
        if not exchange.is_used or batch.has_no_gradient:  # the engine has discarded gradients that are not finite
            return
        for part, change in exchange.distribute(self._changes(exchange)):
            group, target = self._group[part.name], part.weights()
            if not self._reads_weights:
                target.mul_(1 - group["lr"] * group["weight_decay"])
            target.add_(change.to(target.device))

    def _changes(self, exchange: Exchange) -> dict[str, Tensor]:
        """Name → change of every tensor that this rank owns; releases what has been read. Collective: yes."""
        grads = exchange.collect(Fragment.gradient)
        weights = exchange.collect(Fragment.weights) if self._reads_weights else {}
        changes: dict[str, Tensor] = {}
        for name in list(grads):
            grad, state = grads.pop(name), self._state(name, exchange.empty(name))
            changes[name] = self._rule.change(name, grad, weights.pop(name, None), state, self._group[name])
        return changes

    def _state(self, name: str, tensor: Tensor) -> State:
        state: State = self.state[name]  # type: ignore[index]  # torch keeps keys that are not tensors as they are
        if not state:
            state.update(self._rule.new_state(name, tensor))
        return state

    def _only_complete(self, batches: Sequence[Batch]) -> list[Batch]:
        """The batches with the parts of complete tensors only. Also looks up the groups, which engines may replace."""
        self._group = {name: self.param_groups[index] for name, index in self._group_index.items()}
        found = [batch.only(self._group_index) for batch in batches]
        self._complete = {id(part.storage) for batch in found for part in batch.fragments}
        return found

    def _place_alone(self) -> None:
        named = {self._names[id(one)]: one for group in self.param_groups for one in group["params"]}
        self._batches = self._only_complete([Batch.of_unsharded(named)])
        self._exchanges = [Exchange.alone(batch) for batch in self._batches]
