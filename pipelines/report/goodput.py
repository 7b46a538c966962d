"""The section of a page on what the time of each run was spent on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.report.series import RunView
from pipelines.runs import goodput_tables as tables
from pipelines.runs.goodput import Account
from pretrain.errors import ConfigError


def content(views: Sequence[RunView], price: float | None) -> dict[str, Any]:
    """The tables of every run that has a timesheet, as the template takes them."""
    return {
        "goodput": [section for view in views if (section := _of_run(view, price)) is not None],
        "goodput_heads": {
            "parts": tables.with_money(tables.PART_HEADS, price),
            "starts": tables.with_money(tables.ATTEMPT_HEADS, price),
            "incidents": tables.with_money(tables.INCIDENT_HEADS, price),
        },
    }


def _of_run(view: RunView, price: float | None) -> dict[str, Any] | None:
    try:
        account = Account.of(view.record)
    except ConfigError:  # an earlier version trained it
        return None
    return {
        "run": view.name,
        "headline": tables.headline(account),
        "parts": tables.part_rows(account, price),
        "starts": tables.attempt_rows(account, price),
        "incidents": tables.incident_rows(account, price),
    }
