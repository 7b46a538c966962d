"""The task of one process of a loader, as a file of JSON; read in the environment of the loader."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

GLOBAL_BATCH = 48  # shared by 1, 2, 3 and 4 ranks


@dataclass(frozen=True)
class Job:
    """One rank's part of a run.

    Attributes:
        folders: the sets, in the loader's own form, or their addresses.
        weights: of the sets; one set has weight 1.
        num_samples: of all sets together.
        num_shards: of the first set, since a web server lists no files.
        rank: of ``world``.
        world: ranks.
        workers: data processes of the rank; 0: none.
        epochs: to draw, from the loaded state or from the start.
        stop_after: batches; None: all of the epochs.
        save_at: batches after which the state is saved.
        states: folder of the states.
        load: batch of the state to continue from; None: the start.
        kill_after: batches after which a data process is killed; None: never.
        memory_every: batches between two measurements of memory; None: never.
        seed: of the order.
    """

    folders: tuple[str, ...]
    num_samples: int
    num_shards: int
    weights: tuple[float, ...] = (1.0,)
    rank: int = 0
    world: int = 1
    workers: int = 0
    epochs: int = 1
    stop_after: int | None = None
    save_at: tuple[int, ...] = ()
    states: str = ""
    load: int | None = None
    kill_after: int | None = None
    memory_every: int | None = None
    seed: int = 7

    @property
    def batch_size(self) -> int:
        """Samples per batch of this rank."""
        return GLOBAL_BATCH // self.world

    @property
    def tars(self) -> list[str]:
        """The tars of the first set."""
        names = [f"shard-{number:06d}.tar" for number in range(self.num_shards)]
        return [f"{self.folders[0]}/{name}" for name in names]

    def state_file(self, batch: int) -> Path:
        """Where this rank's state after a batch is."""
        return Path(self.states) / str(batch) / f"rank-{self.rank}.pickle"

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def loads(cls, text: str) -> Job:
        """From JSON."""
        return cls(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
        )
