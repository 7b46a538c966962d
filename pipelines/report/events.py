"""The events of a run: its launches with their outcomes, and the incidents that are marked on its curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.run_record import RunRecord
from pipelines.slurm import starts
from pipelines.terminal.output import counted
from pretrain.engine.run_folder import COPY, FIRST_STEP

# Lines of metrics.jsonl that are not incidents, or that the run's history has in more detail.
QUIET_KINDS = frozenset({"train", "eval", "save", "fast_save", "resume", "rollback"})
# Running count in the training lines → kind of the incident, its unit, and a verb for the message.
COUNTS = {
    "skipped_updates": ("skipped_update", "update", " skipped"),
    "bad_samples": ("bad_samples", "bad sample", ""),
}


@dataclass(frozen=True)
class Incident:
    """An event that is marked on the curves.

    ``kind`` is restart, resume, fork, change, rollback, skipped_update, bad_samples or end, or the kind of a line in
    metrics.jsonl that this version does not know.
    """

    time: float
    step: int
    kind: str
    text: str


def incidents(record: RunRecord) -> list[Incident]:
    """All incidents of a run in chronological order."""
    found = [*_of_jobs(record), *_of_history(record), *_of_metrics(record)]
    known = {incident.kind for incident in found} | QUIET_KINDS
    for kind, lines in record.lines.items():
        if kind not in known:
            found += [
                Incident(float(line.get("time", 0)), step, kind, _details(kind, line)) for step, line in lines.items()
            ]
    return sorted(found, key=lambda incident: incident.time)


def _of_jobs(record: RunRecord) -> Iterator[Incident]:
    before: starts.Start | None = None
    for entry in record.history:
        if isinstance(entry, starts.End):
            yield Incident(entry.time, entry.step, "end", f"{entry.outcome}: {entry.reason}")
            continue
        if before is not None:
            place = f"{counted(len(entry.nodes), 'node')} with {counted(entry.ranks, 'rank')}"
            yield Incident(entry.time, entry.step, "restart", f"job {entry.job_id} started again on {place}")
        before = entry


def _of_history(record: RunRecord) -> Iterator[Incident]:
    for event in record.events:
        if (text := _told(event)) is not None:
            yield Incident(float(event["time"]), int(event["step"]), event["kind"], text)


def _told(event: Mapping[str, Any]) -> str | None:
    """An event of the history in words; None if it is not an incident."""
    if event["kind"] == "resume":
        return f"resumed from {event.get('checkpoint')}, written by {event.get('written_by')} ranks"
    if event["kind"] == "fork":
        return f"forked from {event.get('checkpoint')}"
    if event["kind"] == "rollback":
        first, last = event.get("skipped_window", ("?", "?"))
        return f"rolled back to step {event.get('back_to')}; samples {first} to {last} of the stream were left out"
    if event["kind"] == "change":
        settings = [f"{each['key']}: {each['old']} → {each['new']}" for each in event.get("settings", [])]
        rate = ["learning rate {:.4g} → {:.4g}".format(*event["lr"])] if "lr" in event else []
        return "; ".join([*settings, *rate])
    return event.get("problem")


def _of_metrics(record: RunRecord) -> Iterator[Incident]:
    if not any(event["kind"] == "resume" for event in record.events):  # written before runs had a history
        for step, line in sorted(record.lines.get("resume", {}).items()):
            yield Incident(float(line.get("time", 0)), step, "resume", f"resumed at step {step}")
    for key, (kind, unit, what) in COUNTS.items():
        before = 0
        for line in record.train:
            now = int(line.get(key, 0))
            if now > before:
                text = f"{counted(now - before, unit)}{what}"
                yield Incident(float(line.get("time", 0)), int(line["step"]), kind, text)
            before = now


def _details(kind: str, line: Mapping[str, Any]) -> str:
    details = ", ".join(f"{key} {value}" for key, value in line.items() if key not in ("kind", "step", "time"))
    return f"{kind} at step {line['step']}" + (f": {details}" if details else "")


def launches_of(record: RunRecord, environment: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every launch of the run; for a run without that record only the last one, from environment.json."""
    if record.launches or not environment:
        return record.launches
    return [{"kind": "launch", "step": 0, "time": 0.0, **environment}]


def outcomes(events: Sequence[Mapping[str, Any]], num_launches: int) -> list[str]:
    """The outcome of each launch, from the events that follow it in the history.

    The order of the events decides, not their times: two may share a millisecond, and the clocks of nodes differ.
    """
    following: list[list[str]] = [[]]
    for event in events:
        if event["kind"] == "launch":
            following.append([])
        else:
            following[-1].append(_outcome(event))
    chosen = following[len(following) - num_launches :]
    return ["; ".join(filter(None, each)) or "did not come to training" for each in chosen]


def _outcome(event: Mapping[str, Any]) -> str:
    if event["kind"] == "start":
        return "from the beginning"
    if event["kind"] in ("resume", "fork"):
        return f"{event['kind']} of {Path(str(event.get('checkpoint'))).name}"
    if event["kind"] in (FIRST_STEP, COPY):
        return ""
    keys = [each["key"] for each in event.get("settings", [])]  # a change, a rollback
    return " ".join([event["kind"], ", ".join(keys)]).strip()
