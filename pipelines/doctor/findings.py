"""The answer to a probe."""

from __future__ import annotations

import socket
from dataclasses import asdict, dataclass, field
from typing import Any

GREEN, AMBER, RED = "green", "amber", "red"
LEVELS = (GREEN, AMBER, RED)


@dataclass(frozen=True)
class Finding:
    """One answer.

    Attributes:
        probe: its name, such as ``gpus``.
        level: green; amber: it can run, but not as it should; red: it cannot.
        text: what was found, with figures and units.
        remedy: what to do, where it is not green.
        values: the figures, for comparing nodes.
        host: the node that it was found on.
    """

    probe: str
    level: str
    text: str
    remedy: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    host: str = field(default_factory=socket.gethostname)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.host}: {self.probe}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")
