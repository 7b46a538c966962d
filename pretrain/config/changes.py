"""Which settings decide the result of a run, and which of them a resumed run may change."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from pretrain.config.schema.experiment import Experiment
from pretrain.config.typed import known_keys, nearest_key
from pretrain.errors import ConfigError

# These keys do not decide the result. Evaluation reads the weights but draws from no training generator; the bad-sample
# rate can only end a run; the guard acts after a fault, and its actions are part of the saved state; data sets and drop
# lists may move, because they are identified by digest, not by path.
UNDECISIVE_KEYS = (
    "version",
    "name",
    "output_dir",
    "data.shards",
    "data.drop_list",
    "data.mixture.*.shards",
    "data.mixture.*.drop_list",
    "data.allow_pipe",
    "data.max_bad_sample_rate",
    "evaluation",
    "checkpoint",
    "resume",
    "guard",
    "telemetry",
    "cluster",
    "sweep",
)
# These decide which sample is at a position of the stream, so a run cannot change them once started.
STREAM_KEYS = (
    "seed",
    "data.num_samples",
    "data.lanes",
    "data.shuffle_window",
    "data.subset",
    "data.sampling",
    "data.mixture",
)
COOLDOWN_KEYS = ("duration", "optim.schedule.cooldown")  # resume.cooldown sets these in a fork
NOT_SET = "(not set)"


class Change(NamedTuple):
    """One setting that differs: its dotted key, the saved value and the new one."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} → {self.new}"


def decides_result(key: str) -> bool:
    """Whether the dotted ``key`` decides the result (and so belongs to the digest)."""
    return not _covered(key, UNDECISIVE_KEYS)


def digest(settings: Mapping[str, Any]) -> str:
    """A short hash of all settings that decide the result; equal for the same experiment on any cluster.

    Args:
        settings: the complete resolved settings, as ``Resolved.to_dict`` gives them.
    """
    decisive = {key: value for key, value in flatten(settings) if decides_result(key)}
    return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=12).hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The settings that decide the result and differ between two complete resolved configs, in the order of ``new``."""
    before, after = dict(flatten(old)), dict(flatten(new))
    keys = [*after, *(key for key in before if key not in after)]
    found = (Change(key, before.get(key, NOT_SET), after.get(key, NOT_SET)) for key in keys if decides_result(key))
    return [change for change in found if change.old != change.new]


def refuse_changes(found: Iterable[Change], allowed: Iterable[str]) -> list[Change]:
    """Returns the changes if every one is allowed by name (or by the name of its section).

    Raises:
        ConfigError: a change is not listed in ``resume.allow_changes``, or that list names an unknown key.
    """
    found, allowed, known = list(found), tuple(allowed), set(known_keys(Experiment))
    for name in allowed:
        if name not in known:
            near = nearest_key(name, known)
            hint = f"; did you mean {near}?" if near else ""
            raise ConfigError(f"resume.allow_changes: {name} is not a key{hint}")
    refused = [change for change in found if not _covered(change.key, allowed)]
    if refused:
        names = ", ".join(change.key for change in refused)
        raise ConfigError(
            "this run was started with other settings that decide its result:\n"
            + "".join(f"  {change}\n" for change in refused)
            + f"go back to the saved settings, take another name: (a new run), or allow it: "
            f"resume.allow_changes=[{names}]"
        )
    return found


def refuse_another_order(found: Iterable[Change]) -> None:
    """Refuses changes of the order of samples; no name in ``resume.allow_changes`` allows them.

    Raises:
        ConfigError: one of ``STREAM_KEYS`` has changed.
    """
    found = list(found)
    stream = [change for change in found if _covered(change.key, STREAM_KEYS)]
    if not stream:
        return
    remedy = "go back to the saved settings, or start a new run from the weights with init.from"
    if any(change.key in ("global_batch_size", "batch_unit") for change in found) and stream[-1].key == "data.lanes":
        remedy = f"a changed batch keeps its place with the lanes of before: data.lanes={stream[-1].old}"
    raise ConfigError(
        f"{', '.join(map(str, stream))}: {', '.join(STREAM_KEYS)} cannot change in a resume or a fork, since the "
        f"order of the samples would change from here on; {remedy}"
    )


def _covered(key: str, names: Iterable[str]) -> bool:
    """Whether a key is one of ``names`` or is below it; ``*`` in a name stands for any index of a list."""
    keys = {key, re.sub(r"\.[0-9]+(?=\.|$)", ".*", key)}
    return any(form == name or form.startswith(f"{name}.") for name in names for form in keys)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) for every value that is not a section; a section in a list is named by its index."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            yield from flatten({str(place): item for place, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
