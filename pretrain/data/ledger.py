"""Accounts for every item that a stage looks at, per kind: N found = M used + the losses by reason.

The code that visits items reports each of them twice: as *found* (before any decision about it), and later either as
*used*, and for which purpose, or as *lost*, and why. The counts only add up if no item was forgotten, which ``check``
verifies. Kinds are given in the plural, such as "tar members".

    61 directory entries = 42 images + 9 folders + 10 left out:
           7  hidden: a/.DS_Store, a/.hidden.jpg, b/.DS_Store, …
           3  dangling link: b/annexed.jpg, b/annexed2.jpg, c/annexed.jpg
    42 images = 40 in train + 2 left out:
           2  decode: a/broken.jpg, c/cut.jpg
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pretrain.errors import DataError
from pretrain.names import shown

MOST_EXAMPLES = 3


@dataclass
class Lost:
    """Items left out for one reason: their number, and the names of the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, count: int, *examples: str) -> None:
        """Adds to the count."""
        self.count += count
        self.examples += [one for one in examples if one][: MOST_EXAMPLES - len(self.examples)]


@dataclass
class Account:
    """The counts of one kind of item.

    Attributes:
        found: number of items.
        used: purpose → number.
        lost: reason → items left out.
    """

    found: int = 0
    used: dict[str, int] = field(default_factory=dict)
    lost: dict[str, Lost] = field(default_factory=dict)

    @property
    def num_used(self) -> int:
        """Number of items used for any purpose."""
        return sum(self.used.values())

    @property
    def num_lost(self) -> int:
        """Number of items left out for any reason."""
        return sum(lost.count for lost in self.lost.values())

    @property
    def adds_up(self) -> bool:
        """Whether every item found is accounted for exactly once."""
        return self.found == self.num_used + self.num_lost


class Ledger:
    """The accounts of a stage, in the order in which their kinds were first seen.

    Args:
        accounts: kind → account, as stored in a card.
    """

    def __init__(self, accounts: Mapping[str, Account] | None = None) -> None:
        self.accounts: dict[str, Account] = dict(accounts or {})

    def __bool__(self) -> bool:
        return bool(self.accounts)

    def found(self, kind: str, count: int = 1) -> None:
        """Counts found items, before any decision about them."""
        self._account(kind).found += count

    def used(self, kind: str, what: str, count: int = 1) -> None:
        """Counts used items, by purpose."""
        if count:
            used = self._account(kind).used
            used[what] = used.get(what, 0) + count

    def lost(self, kind: str, reason: str, *examples: str, count: int = 1) -> None:
        """Counts items left out, by reason; ``examples`` are their unescaped names."""
        if count:
            self._account(kind).lost.setdefault(reason, Lost()).add(count, *map(shown, examples))

    def merge(self, other: Ledger) -> None:
        """Adds the counts of another task or shard."""
        for kind, theirs in other.accounts.items():
            mine = self._account(kind)
            mine.found += theirs.found
            for what, count in theirs.used.items():
                mine.used[what] = mine.used.get(what, 0) + count
            for reason, lost in theirs.lost.items():
                mine.lost.setdefault(reason, Lost()).add(lost.count, *lost.examples)

    def check(self, where: object) -> None:
        """Verifies that every account adds up.

        Raises:
            DataError: one does not; gives its kind and counts.
        """
        for kind, account in self.accounts.items():
            if not account.adds_up:
                raise DataError(
                    f"{where}: the ledger does not add up: {account.found:,} {kind} were found, but "
                    f"{account.num_used:,} used and {account.num_lost:,} left out. Did they change meanwhile? Run it "
                    "again; if this error occurs again, this program has lost some of them: please report it"
                )

    def lines(self) -> list[str]:
        """The ledger as lines of text."""
        return [line for kind, account in self.accounts.items() for line in _lines(kind, account)]

    def to_dict(self) -> dict[str, Any]:
        """The ledger as JSON values."""
        return {kind: asdict(account) for kind, account in self.accounts.items()}

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> Ledger:
        """The inverse of ``to_dict``."""
        ledger = cls()
        for kind, account in content.items():
            lost = {reason: Lost(**entry) for reason, entry in account["lost"].items()}
            ledger.accounts[kind] = Account(account["found"], dict(account["used"]), lost)
        return ledger

    def _account(self, kind: str) -> Account:
        return self.accounts.setdefault(kind, Account())


def _lines(kind: str, account: Account) -> list[str]:
    parts = [_counted(count, what) for what, count in account.used.items()] or ["0 used"]
    parts += [f"{account.num_lost:,} left out"] if account.num_lost else []
    head = f"{_counted(account.found, kind)} = {' + '.join(parts)}"
    if not account.lost:
        return [head]
    reasons = sorted(account.lost.items(), key=lambda entry: (-entry[1].count, entry[0]))
    return [f"{head}:", *(f"  {lost.count:>8,}  {_reason(reason, lost)}" for reason, lost in reasons)]


def _counted(count: int, what: str) -> str:
    if count == 1:
        what = f"{what.removesuffix('ies')}y" if what.endswith("ies") else what.removesuffix("s")
    return f"{count:,} {what}"


def _reason(reason: str, lost: Lost) -> str:
    more = ", …" if lost.examples and lost.count > len(lost.examples) else ""
    return reason + (f": {', '.join(lost.examples)}{more}" if lost.examples else "")
