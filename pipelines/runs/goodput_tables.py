"""The account of a run's time as tables, for ``goodput`` and ``report``, and as plain values for programs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from pipelines.runs.goodput import IDLE, IDLE_MEANING, MEANINGS, Account, Cost
from pipelines.terminal.output import duration

HOUR_MS = 3_600_000
PART_HEADS = ("time spent on", "seconds", "share", "GPU-hours")
ATTEMPT_HEADS = ("start", "began", "job", "ranks", "seconds", "productive", "from step", "ended", "GPU-hours")
INCIDENT_HEADS = ("start", "step", "incident", "cause", "seconds", "GPU-hours")
MONEY = "money"
MOST_CAUSE = 160  # characters


def money(gpu_ms: int, price: float | None) -> float | None:
    """The cost of GPU time at a price per hour."""
    return None if price is None else gpu_ms / HOUR_MS * price


def part_rows(account: Account, price: float | None) -> list[list[str]]:
    """A row for each part, the sum, and the GPUs that were idle beside the ranks."""
    totals, wall_ms = account.totals, account.wall_ms
    rows = [[MEANINGS[part], *_cells(cost, wall_ms, price)] for part, cost in totals.items()]
    used = Cost(wall_ms, sum(cost.gpu_ms for cost in totals.values()))
    rows.append(["together", *_cells(used, wall_ms, price)])
    if idle := sum(account.idle_gpu_ms):
        cells = _cells(Cost(0, idle), wall_ms, price)
        rows.append([IDLE_MEANING, "", "", *cells[2:]])
    return rows


def _cells(cost: Cost, wall_ms: int, price: float | None) -> list[str]:
    share = f"{100 * cost.ms / wall_ms:.1f} %" if wall_ms else ""
    return [f"{cost.ms / 1000:,.3f}", share, *_gpu_cells(cost, price)]


def _gpu_cells(cost: Cost, price: float | None) -> list[str]:
    paid = money(cost.gpu_ms, price)
    return [f"{cost.gpu_ms / HOUR_MS:,.4f}", *([] if paid is None else [f"{paid:,.2f}"])]


def attempt_rows(account: Account, price: float | None) -> list[list[str]]:
    """A row for each start; the GPU time includes that before it, so the rows add up to that of ``part_rows``."""
    rows = []
    for number, (attempt, parts) in enumerate(zip(account.attempts, account.parts, strict=True), start=1):
        spent_ms = attempt.ended_ms - attempt.began_ms
        steps = [line["from_step"] for line in attempt.lines if "from_step" in line]
        productive = parts["step"].ms / spent_ms if "step" in parts and spent_ms else 0.0
        rows.append(
            [
                str(number),
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.began_ms / 1000)),
                attempt.job[0],
                str(attempt.ranks),
                f"{spent_ms / 1000:,.3f}",
                f"{100 * productive:.1f} %",
                str(steps[0]) if steps else "did not train",
                attempt.outcome,
                *_gpu_cells(Cost(0, sum(cost.gpu_ms for cost in parts.values())), price),
            ]
        )
    return rows


def incident_rows(account: Account, price: float | None) -> list[list[str]]:
    """A row for each incident, the costs as in ``part_rows``."""
    rows = []
    for one in account.incidents:
        cause = "; ".join(filter(None, (one.where, " ".join(one.cause.split()))))
        cause = cause if len(cause) <= MOST_CAUSE else f"{cause[: MOST_CAUSE - 1]}…"
        cells = [str(one.attempt + 1), str(one.step), one.kind, cause, f"{one.cost.ms / 1000:,.3f}"]
        rows.append([*cells, *_gpu_cells(one.cost, price)])
    return rows


def with_money(heads: Sequence[str], price: float | None) -> list[str]:
    """The heads of a table whose rows end with money if there is a price."""
    return [*heads, *([] if price is None else [MONEY])]


def headline(account: Account) -> str:
    """The most important figure, in one line."""
    spent = duration(account.wall_ms / 1000)
    starts = "1 start" if len(account.attempts) == 1 else f"{len(account.attempts)} starts"
    return f"{100 * account.goodput:.1f} % of {spent} in productive steps; {starts}"


def as_values(account: Account, price: float | None) -> dict[str, Any]:
    """The account as JSON values."""

    def values(cost: Cost) -> dict[str, Any]:
        paid = {} if price is None else {MONEY: money(cost.gpu_ms, price)}
        return {"seconds": cost.ms / 1000, "gpu_hours": cost.gpu_ms / HOUR_MS, **paid}

    return {
        "wall_s": account.wall_ms / 1000,
        "goodput": account.goodput,
        "parts": {part: values(cost) for part, cost in account.totals.items()},
        IDLE: values(Cost(0, sum(account.idle_gpu_ms))),
        "starts": [
            {
                "began": attempt.began_ms / 1000,
                "ended": attempt.ended_ms / 1000,
                "job_id": attempt.job[0],
                "restart_count": attempt.job[1],
                "ranks": attempt.ranks,
                "gpus": attempt.gpus,
                "nodes": list(attempt.nodes),
                "outcome": attempt.outcome,
                "cause": attempt.cause,
                "parts": {part: values(cost) for part, cost in parts.items()},
                IDLE: values(Cost(0, idle)),
            }
            for attempt, parts, idle in zip(account.attempts, account.parts, account.idle_gpu_ms, strict=True)
        ],
        "incidents": [
            {
                "kind": one.kind,
                "start": one.attempt + 1,
                "step": one.step,
                "cause": one.cause,
                "where": one.where,
                **values(one.cost),
            }
            for one in account.incidents
        ],
    }
