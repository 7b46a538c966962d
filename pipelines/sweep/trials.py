"""The runs of a sweep: a trial for each combination of the grid, then the best one on the full training set."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.jobs import free_port
from pretrain.config.overrides import override
from pretrain.config.schema.sweep import SweepConfig

SCRIPT = "pipelines/finetune.py"


@dataclass(frozen=True)
class Trial:
    """One run: ``overrides`` are ``key=value`` as on the command line."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """Everything that determines the trials.

    Attributes:
        config: YAML of the fine-tuning.
        source: what it starts from; None: from scratch.
        folder: contains its run folders.
        settings: the config's section ``sweep``.
        overrides: of every run, as on the command line.
        seed: of the first run of the best settings.
        ranks: GPUs of each run.
        parallel: runs at a time.
    """

    config: str
    source: str | None
    folder: Path
    settings: SweepConfig
    overrides: tuple[str, ...]
    seed: int
    ranks: int
    parallel: int

    @property
    def chooses(self) -> bool:
        """Whether trials are run: not if the grid has one combination and there is no dev split."""
        return bool(self.settings.dev) or math.prod(len(values) for values in self.settings.grid.values()) > 1

    def dev_trials(self) -> list[Trial]:
        """A trial for each combination of the grid."""
        keys = list(self.settings.grid)
        dev = [text for key, value in self.settings.dev.items() for text in as_overrides(key, value)]
        trials = []
        for values in itertools.product(*self.settings.grid.values()):
            chosen = dict(zip(keys, values, strict=True))
            name = "_".join(["dev", *(f"{key.rpartition('.')[2]}{_in_name(value)}" for key, value in chosen.items())])
            trials.append(Trial(name, (*dev, *_all_overrides(chosen))))
        return trials

    def final_trials(self, best: int) -> list[Trial]:
        """Runs of the best combination on the full training set, one for each seed."""
        values = list(itertools.product(*self.settings.grid.values()))[best]
        chosen = _all_overrides(dict(zip(self.settings.grid, values, strict=True)))
        seeds = range(self.seed, self.seed + self.settings.num_seeds)
        return [Trial(f"seed{seed}", (*chosen, f"seed={seed}")) for seed in seeds]

    def arguments(self, trial: Trial) -> list[str]:
        """The words after the script's name."""
        start = [] if self.source is None else ["--from", self.source]
        place = [override("output_dir", str(self.folder)), override("name", trial.name)]
        return ["--config", self.config, *start, *self.overrides, *trial.overrides, *place]

    def command(self, trial: Trial) -> list[str]:
        """The full command line."""
        if self.ranks == 1:
            return [sys.executable, SCRIPT, *self.arguments(trial)]
        torchrun = str(Path(sys.executable).parent / "torchrun")
        port = ["--master-port", str(free_port())]
        return [torchrun, "--nproc-per-node", str(self.ranks), *port, SCRIPT, *self.arguments(trial)]

    def shown(self, trial: Trial) -> str:
        """The command as a user would type it."""
        start = "python" if self.ranks == 1 else f"torchrun --nproc-per-node {self.ranks}"
        return " ".join([start, SCRIPT, *map(quoted, self.arguments(trial))])


def as_overrides(key: str, value: Any) -> list[str]:
    """``key=value`` for the command line; a section replaces the config's and is not merged with it."""
    text = override(key, value)
    return [f"{key}=null", text] if isinstance(value, Mapping) else [text]


def quoted(word: str) -> str:
    """A word as it is typed in a shell."""
    return shlex.quote(word) if re.search(r"[^A-Za-z0-9_./:=,+-]", word) else word


def _all_overrides(chosen: Mapping[str, Any]) -> list[str]:
    return [text for key, value in chosen.items() for text in as_overrides(key, value)]


def _in_name(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", value if isinstance(value, str) else json.dumps(value)).strip("-")
