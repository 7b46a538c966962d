"""Table of the setting combinations that do not train correctly. Every check for them reads this table.

A combination has the axes below. A rule refuses every combination that has one of the rule's values on each of the
rule's axes; a combination that no rule refuses is supported. The schema checks the axes known within one section;
``--check`` and the engine check all of them. ``docs/models.md`` shows the table, and the tests iterate over it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

Value = str | bool

# Names of the shardings, as ``pretrain.sharding`` has them.
DDP, ZERO_0, ZERO_1, ZERO_2, ZERO_3, FSDP2 = "DDP", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP2"

AXES: dict[str, tuple[Value, ...]] = {
    "sharding": (DDP, ZERO_0, ZERO_1, ZERO_2, ZERO_3, FSDP2),
    "precision": ("fp32", "bf16", "autocast"),
    "compile": (False, True),
    "activation_checkpointing": ("none", "full", "every_k", "selective"),
}


@dataclass(frozen=True)
class Rule:
    """A rule that refuses combinations.

    Attributes:
        key: the setting at fault; the message starts with it.
        when: axis → the values at which the rule applies.
        reason: what is wrong and what to use instead.
        tried: the versions with which it does not work.
    """

    key: str
    when: Mapping[str, tuple[Value, ...]]
    reason: str
    tried: str

    def applies(self, combination: Mapping[str, Value]) -> bool:
        """Whether the rule refuses the combination. A combination that lacks one of the rule's axes is not refused."""
        return all(axis in combination and combination[axis] in values for axis, values in self.when.items())


RULES: tuple[Rule, ...] = ()  # with DeepSpeed 0.19.8, torch 2.14 and Accelerate 1.15 every combination trains


def refusals(**combination: Value) -> list[tuple[str, str]]:
    """(key, reason) of every rule that refuses a combination; empty if it is supported.

    Args:
        **combination: axis → value, for all axes or some.
    """
    policy = str(combination.get("activation_checkpointing", ""))
    if policy.startswith("every_"):
        combination["activation_checkpointing"] = "every_k"
    return [(rule.key, rule.reason) for rule in RULES if rule.applies(combination)]


def all_combinations() -> Iterator[dict[str, Value]]:
    """Every combination of the axes, supported or not."""
    for values in product(*AXES.values()):
        yield dict(zip(AXES, values, strict=True))


# Columns of the documented table: title → values that are combined with the sharding of the row.
COLUMNS: dict[str, dict[str, Value]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "autocast": {"precision": "autocast"},
    "none, full, every_k": {"activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "compile": {"compile": True},
    "compile + selective": {"compile": True, "activation_checkpointing": "selective"},
}


def as_markdown() -> str:
    """The table for the documentation: one row per sharding, followed by the reasons."""
    titles = ["sharding", *COLUMNS]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for sharding in AXES["sharding"]:
        cells = []
        for combined in COLUMNS.values():
            rules = [number for number, rule in enumerate(RULES, 1) if rule.applies({"sharding": sharding, **combined})]
            cells.append(", ".join(f"✗ {number}" for number in rules) or "✓")
        lines.append(f"| {' | '.join([str(sharding), *cells])} |")
    reasons = [
        f"{number}. `{rule.key}`: {rule.reason} (tried with {rule.tried})." for number, rule in enumerate(RULES, 1)
    ]
    return "\n".join([*lines, "", *reasons])
