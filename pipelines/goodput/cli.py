"""``python -m pipelines goodput RUN``: the time of a run by what it was spent on, and what each incident cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.runs import goodput_tables as tables
from pipelines.runs.goodput import Account
from pipelines.runs.run_record import RunRecord
from pipelines.terminal.arguments import add_json, stage_parser
from pretrain.command_line import Parser
from pretrain.errors import ConfigError
from pretrain.names import tell

EXAMPLES = """examples:
  python -m pipelines goodput runs/my_run
  python -m pipelines goodput runs/my_run --price-per-gpu-hour 2.5
  python -m pipelines goodput runs/my_run --json"""


def main(argv: Sequence[str]) -> int:
    """Prints the account; see ``--help``."""
    arguments = parser().parse_args(argv)
    price = arguments.price_per_gpu_hour
    if price is not None and not 0 < price < float("inf"):
        raise ConfigError(f"--price-per-gpu-hour {price:g}: must be more than 0")
    record = RunRecord.read(arguments.run)
    account = Account.of(record)
    if arguments.json:
        values = {"run": str(record.path), **tables.as_values(account, price), "damaged": record.damaged}
        tell(json.dumps(values), flush=True)
        return 0
    for problem in record.damaged:
        tell(f"warning: {problem}", file=sys.stderr)
    tell(render(str(record.path), account, price), flush=True)
    return 0


def render(name: str, account: Account, price: float | None) -> str:
    """The account as lines of text."""
    parts = _table(tables.with_money(tables.PART_HEADS, price), tables.part_rows(account, price))
    lines = [f"{name}: {tables.headline(account)}", "", *parts]
    starts = tables.with_money(tables.ATTEMPT_HEADS, price)
    lines += ["", *_table(starts, tables.attempt_rows(account, price))]
    if account.incidents:
        heads, rows = tables.with_money(tables.INCIDENT_HEADS, price), tables.incident_rows(account, price)
        lines += ["", *_table([*heads[:3], *heads[4:], heads[3]], [[*row[:3], *row[4:], row[3]] for row in rows])]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    to_the_right = [all(not cell or cell[0].isdigit() for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in (heads, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_the_right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def parser() -> Parser:
    """The command line of the stage."""
    parser = stage_parser(
        "goodput",
        "The time of a run by what it was spent on, for each start and each incident, in hours of GPUs and money.",
        EXAMPLES,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="MONEY", help="price of one GPU for an hour")
    add_json(parser, "the account as one line of JSON")
    return parser
