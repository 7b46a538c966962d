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
DDP, ZERO_0, ZERO_1, ZERO_2, ZERO_3 = "DDP", "ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"

AXES: dict[str, tuple[Value, ...]] = {
    "sharding": (DDP, ZERO_0, ZERO_1, ZERO_2, ZERO_3),
    "precision": ("fp32", "bf16", "autocast"),
    "compile": (False, True),
    "activation_checkpointing": ("none", "full", "every_k", "selective"),
    "needs_unsharded": (False, True),  # the optimiser reads complete tensors
}


@dataclass(frozen=True)
class Rule:
    """A rule that refuses combinations.

    Attributes:
        key: the setting at fault; the message starts with it.
        when: axis → the values at which the rule applies.
        reason: what is wrong and what to use instead; ``{sharding}`` and ``{optimizer}`` are filled in.
    """

    key: str
    when: Mapping[str, tuple[Value, ...]]
    reason: str

    def applies(self, combination: Mapping[str, Value]) -> bool:
        """Whether the rule refuses the combination. A combination that lacks one of the rule's axes is not refused."""
        return all(axis in combination and combination[axis] in values for axis, values in self.when.items())


RULES = (
    Rule(
        "precision",
        {"sharding": (DDP,), "precision": ("bf16",)},
        "bf16 weights need backend: deepspeed; use precision: autocast",
    ),
    # DeepSpeed's BF16_Optimizer initialises its state with a step on zero gradients, which Adam counts.
    Rule(
        "cluster.zero_stage",
        {"sharding": (ZERO_0,), "precision": ("bf16",)},
        "0 with precision: bf16 trains wrongly (DeepSpeed's optimiser takes a dummy step at its start, so Adam counts "
        "one too many); use cluster.zero_stage: 1 or precision: autocast",
    ),
    Rule(
        "cluster.compile",
        {"sharding": (ZERO_3,), "compile": (True,)},
        "true does not work with zero_stage: 3, whose hooks gather each layer's weights in the middle of a block; use "
        "zero_stage: 1 or 2, or compile: false",
    ),
    Rule(
        "cluster.compile",
        {"compile": (True,), "activation_checkpointing": ("selective",)},
        "true does not work with activation_checkpointing: selective, because a compiled block hides the operations "
        "whose results are kept; use none, full or every_2 (the compiler chooses itself what a block keeps)",
    ),
    # ZeRO updates flat pieces of tensors, whose norms and means differ from those of the complete tensors.
    Rule(
        "optim.name",
        {"sharding": (ZERO_1, ZERO_2, ZERO_3), "needs_unsharded": (True,)},
        "{optimizer} needs unsharded tensors, which {sharding} cuts into pieces; use cluster.zero_stage: 0 or "
        "cluster.backend: accelerate, with precision: fp32 or autocast",
    ),
)


def refusals(**combination: Value) -> list[tuple[str, str]]:
    """(key, reason) of every rule that refuses a combination; empty if it is supported.

    Args:
        **combination: axis → value, for all axes or some; ``optimizer`` is its name for the message.
    """
    axes = {axis: value for axis, value in combination.items() if axis in AXES}
    policy = str(axes.get("activation_checkpointing", ""))
    if policy.startswith("every_"):
        axes["activation_checkpointing"] = "every_k"
    words = {"optimizer": "the optimiser", "sharding": "", **combination}
    return [(rule.key, rule.reason.format(**words)) for rule in RULES if rule.applies(axes)]


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
    "adamw, sgd": {"needs_unsharded": False},
    "adafactor, lamb": {"needs_unsharded": True},
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
    words = {"optimizer": "the optimiser", "sharding": "ZeRO 1 to 3"}
    reasons = [f"{number}. `{rule.key}`: {rule.reason.format(**words)}." for number, rule in enumerate(RULES, 1)]
    return "\n".join([*lines, "", *reasons])
