"""The interface of a sharding."""

from __future__ import annotations

from typing import Protocol

from pretrain.sharding.memory import Memory, Traffic
from pretrain.sharding.step import Step


class Sharding(Protocol):
    """How weights, gradients and optimiser state are divided among ranks.

    A new one is a class in its own file, a row in ``choice.SHARDINGS``, and its name in the table of
    combinations (``pretrain/config/combinations.py``).
    """

    @property
    def name(self) -> str:
        """Name for display and for the table of combinations."""
        ...

    @property
    def backend(self) -> str:
        """The backend in ``pretrain.engine.backends`` that implements it."""
        ...

    @property
    def setting(self) -> str:
        """The setting that chooses it, ``key: value``."""
        ...

    @property
    def stage(self) -> int:
        """ZeRO's stage; 0 if nothing is sharded. It increases with the amount of sharding."""
        ...

    @property
    def updates_complete_tensors(self) -> bool:
        """Whether the optimiser sees every parameter as one tensor instead of flat pieces."""
        ...

    @property
    def keeps_complete_weights(self) -> bool:
        """Whether every rank keeps all weights between their uses."""
        ...

    def memory(self, step: Step) -> Memory:
        """Bytes on the rank that holds the most."""
        ...

    def traffic(self, step: Step) -> tuple[Traffic, ...]:
        """The collectives of an optimiser step; empty for a single rank."""
        ...
