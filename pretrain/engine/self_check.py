"""What a checkpoint remembers of the probe batch, and how a load is judged by it.

The probe protects a run and must not end it: what cannot be compared is reported, and only a loss that is known to
belong to the same samples and settings, and differs, is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

RTOL = {"fp32": 1e-4, "autocast": 2e-2, "bf16": 2e-2}
ATOL = 1e-5
FIRST_SAMPLES = list(range(8))  # of the probe that markers without ``probe_samples`` were written with


@dataclass(frozen=True)
class Reading:
    """The loss of the probe batch.

    Attributes:
        loss: mean over its samples, in evaluation mode.
        samples: their ids, in order.
        settings: names everything else that decides the loss of given weights.
    """

    loss: float
    samples: tuple[int, ...]
    settings: str


@dataclass(frozen=True)
class Judgement:
    """Why a loaded checkpoint is refused, or why it could not be compared; both None where the losses agree."""

    error: str | None = None
    warning: str | None = None


def marker_entries(reading: Reading | None) -> dict[str, Any]:
    """What COMPLETE.json says about the probe; without one it says that there was none."""
    if reading is None:
        return {"probe_loss": None}
    return {
        "probe_loss": reading.loss,
        "probe_samples": list(reading.samples),
        "probe_settings": reading.settings,
    }


def judge(marker: Mapping[str, Any], reading: Reading | None, *, precision: str, config_digest: str) -> Judgement:
    """Compares the probe batch after a load with what the marker says.

    Args:
        marker: of the loaded checkpoint.
        reading: after the load; None: no probe batch can be read.
        precision: of this run; the marker has its own.
        config_digest: of this run's settings.
    """
    saved = marker.get("probe_loss")
    if saved is None or reading is None:
        missing = "the checkpoint has none" if saved is None else "its samples cannot be read"
        return Judgement(warning=f"the probe batch was not compared: {missing}")
    if marker.get("probe_samples", FIRST_SAMPLES) != list(reading.samples):
        return Judgement(
            warning="the probe batch was not compared: it consists of other samples than when the checkpoint was "
            "written (some could not be read, or data.drop_list or data.subset acts on them)"
        )
    if "probe_settings" in marker and marker["probe_settings"] != reading.settings:
        return Judgement(warning="the probe batch was not compared: settings that decide its loss have changed")
    if _agree(reading.loss, saved, max(RTOL[precision], RTOL[marker["precision"]])):
        return Judgement()
    differs = f"the probe batch has loss {reading.loss:.6f} after loading, {saved:.6f} when saved"
    if "probe_settings" not in marker and marker["config_digest"] != config_digest:
        return Judgement(warning=f"{differs}; other settings were changed between the two")
    return Judgement(error=differs)


def _agree(loss: float, saved: float, rtol: float) -> bool:
    if not (math.isfinite(loss) and math.isfinite(saved)):
        return math.isfinite(loss) == math.isfinite(saved)
    return math.isclose(loss, saved, rel_tol=rtol, abs_tol=ATOL)
