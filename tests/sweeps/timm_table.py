"""The table of timm's Vision Transformers and their relatives: which family reads each, and why others are refused.

Each architecture is built small by timm, saved by it with and without a head, read here, compared, written back and
compared again (``timm_models.outcome``).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from tests.sweeps.page import table
from tests.sweeps.timm_models import GROUPS, NUM_CLASSES, Outcome, group_of, names_of, outcome

NAME = "timm"
# Rows of the table: kind → pattern of the names, the first that fits. Other names are listed by timm's source file.
_TARGETS = {
    "DINO, DINOv2, DINOv3": r"_dinov?\d",
    "SigLIP": r"siglip",
    "EVA, EVA-02": r"^eva",
    "CLIP": r"_clip_",
    "PE": r"_pe_",
    "AIMv2": r"^aimv2",
    "BEiT": r"^beit",
    "DeiT, DeiT III": r"^deit",
    "Swin": r"^swin_",
    "Swin V2": r"^swinv2_(?!cr)",
    "Swin V2 (CR)": r"^swinv2_cr",
    "Hiera": r"^hiera_",
    "ViT with rotary positions": r"^vit_.*_(rope|sapiens2|lingbot)",
    "ViT with relative positions": r"^vit_(relpos|srelpos)",
    "hybrid ViT": r"^vit_.*(_r\d+|resnet)",
    "SAM": r"^samvit",
    "other ViT": r"^(vit_|flexivit|test_vit)",
}


@functools.cache
def outcomes() -> dict[str, tuple[Outcome, Outcome]]:
    """Architecture → what became of it with a head and without; takes minutes.

    Raises:
        AssertionError: outputs differ by more than 1e-5.
    """
    names = sorted(name for group in GROUPS for name in names_of(group))
    return {name: (outcome(name, NUM_CLASSES), outcome(name, 0)) for name in names}


def row_of(name: str) -> str:
    """The row of an architecture."""
    for row, pattern in _TARGETS.items():
        if re.search(pattern, name):
            return row
    return GROUPS[group_of(name)]


def section() -> str:
    """The text: one row per kind of architecture, and the refusals with their reasons."""
    found, rows = outcomes(), {}
    for name in found:
        rows.setdefault(row_of(name), []).append(name)
    order = [*_TARGETS, *sorted(rows.keys() - _TARGETS.keys())]
    lines = [(row, *_counts(rows[row])) for row in order if row in rows]
    targets = [name for row in _TARGETS for name in rows.get(row, ())]
    share = sum(found[name][0].family is not None for name in targets) / len(targets)
    everything = [one for pair in found.values() for one in pair]
    is_read = sum(one.family is not None for one in everything)
    return "\n".join(
        [
            f"{len(found)} architectures of timm, with one block per stage, few channels and random weights, were "
            f"saved by timm with and without a head. Of these {len(everything)} folders {is_read} are read, with the "
            "same outputs to 1e-5, and written back as a folder from which timm computes the same. Of the "
            f"{len(targets)} names of ViT, DeiT, DINO, CLIP, SigLIP, EVA, BEiT, Swin, Hiera, PE and AIM, "
            f"{100 * share:.1f} % are read.",
            "",
            *table(("Architectures", "Names", "Read as `vit`", "as `timm/NAME`", "Without a head", "Refused"), lines),
            *_refusals(found),
        ]
    )


def _counts(names: Iterable[str]) -> tuple[int, int, int, int, int]:
    """Names; read with a head as ours and as timm's; read without a head; refused with a head or without."""
    pairs = [outcomes()[name] for name in names]
    heads, headless = zip(*pairs, strict=True)
    as_vit, as_timm = (sum(one.family == family for one in heads) for family in ("vit", "timm"))
    refused = sum(any(one.family is None for one in pair) for pair in pairs)
    return len(pairs), as_vit, as_timm, sum(one.family is not None for one in headless), refused


def _refusals(found: dict[str, tuple[Outcome, Outcome]]) -> list[str]:
    """Lines with the reason of each refusal and the architectures that have it."""
    by_reason: dict[str, list[str]] = {}
    for name, pair in found.items():
        reasons = dict.fromkeys(_short(one.reason, name) for one in pair if one.family is None)
        for reason in reasons:
            which = "" if all(_short(one.reason, name) == reason for one in pair) else " (one of the two)"
            by_reason.setdefault(reason, []).append(f"`{name}`{which}")
    if not by_reason:
        return ["", "None is refused."]
    return ["", "Refused:", "", *(f"- {', '.join(names)}: {reason}" for reason, names in sorted(by_reason.items()))]


def _short(reason: str, name: str) -> str:
    return reason.replace("FOLDER/", "").replace(name, "NAME").partition("; ")[0]
