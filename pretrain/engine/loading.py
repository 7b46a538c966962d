"""Loads a checkpoint of any layout, and compares the result with what was saved: norms of all states, a probe's loss.

The probe protects a run and must not end it needlessly: a failed comparison is only reported. It is an error only if
the loss differs for the same samples and settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pretrain.distributed.collectives import all_reduce_sum, gather_objects, raise_together
from pretrain.engine.backend import Backend, HeldSlice
from pretrain.engine.checkpoint_folder import LOADED, MARKER, PLAIN_WEIGHTS, read_state
from pretrain.engine.saving import Origin
from pretrain.engine.slices import SliceReader, load_into, ranks_of
from pretrain.engine.state import TrainState
from pretrain.errors import CheckpointError

RTOL = {"fp32": 1e-4, "autocast": 2e-2, "bf16": 2e-2}
ATOL = 1e-5
FIRST_SAMPLES = list(range(8))  # the probe batch of older versions, whose markers have no ``probe_samples``


@dataclass(frozen=True)
class Reading:
    """The loss of the probe batch.

    Attributes:
        loss: mean over its samples, in evaluation mode.
        samples: their ids, in order.
        settings: identifies all other settings that decide the loss of given weights.
    """

    loss: float
    samples: tuple[int, ...]
    settings: str


@dataclass(frozen=True)
class Judgement:
    """Why a loaded checkpoint is refused, or why it could not be compared; both None if the losses agree."""

    error: str | None = None
    warning: str | None = None


def load(
    path: Path,
    marker: dict[str, Any],
    backend: Backend,
    origin: Origin,
    probe: Callable[[], Reading | None],
    say: Callable[[str], None],
) -> TrainState:
    """Fills weights and optimiser from a checkpoint of any layout and verifies them. Collective: yes.

    Args:
        path, marker: the checkpoint.
        backend: the model to fill.
        origin: of this run; a checkpoint of other data is refused.
        probe: reads the probe batch.
        say: prints one line for the user.

    Raises:
        CheckpointError: a tensor is missing or differs in shape, or what was loaded is not what was saved.
    """
    _refuse_others(path, marker, origin)
    error: Exception | None = None
    state = TrainState()
    held = backend.slices()
    try:
        state = TrainState.of(read_state(path))
        load_into(held, SliceReader(path, ranks_of(marker["files"])))
        backend.statistics.load(path / PLAIN_WEIGHTS)
    except (CheckpointError, OSError, SafetensorError, TypeError, ValueError) as failure:
        error = failure if isinstance(failure, CheckpointError) else CheckpointError(f"{path}: {failure}")
    raise_together(error, doing=f"loading {path}")
    backend.finish_load(state.num_updates)
    found = compare(marker, backend, origin, probe)
    if found.error is not None:
        raise CheckpointError(f"{path}: {found.error}")
    if found.warning is not None:
        say(f"warning: {path}: {found.warning}; norms and hashes agree")
    return state


def _refuse_others(path: Path, marker: Mapping[str, Any], origin: Origin) -> None:
    """Raises CheckpointError for a marker that lacks entries, or of a run on other data."""
    if lacking := [key for key in LOADED if key not in marker]:
        raise CheckpointError(f"{path}: {MARKER} is damaged: {', '.join(lacking)} is missing")
    if marker["data_digest"] != origin.data_digest:
        raise CheckpointError(
            f"{path} was written while training on other data: the index of data.shards has digest "
            f"{origin.data_digest}, it had {marker['data_digest']}; the order of the samples would differ"
        )


def compare(
    marker: Mapping[str, Any], backend: Backend, origin: Origin, probe: Callable[[], Reading | None]
) -> Judgement:
    """Compares the loaded states and the loss of the probe batch with the marker. Collective: yes."""
    norms, reading = state_norms(backend.slices()), probe()
    if (difference := differing_norm(marker["norms"], norms)) is not None:
        return Judgement(error=difference)
    return judge(marker, reading, precision=origin.precision, config_digest=origin.config_digest)


def marker_entries(reading: Reading | None) -> dict[str, Any]:
    """The entries of COMPLETE.json for the probe; None: no probe."""
    if reading is None:
        return {"probe_loss": None}
    return {
        "probe_loss": reading.loss,
        "probe_samples": list(reading.samples),
        "probe_settings": reading.settings,
    }


def judge(marker: Mapping[str, Any], reading: Reading | None, *, precision: str, config_digest: str) -> Judgement:
    """Compares the probe batch after a load with the marker.

    Args:
        marker: marker of the loaded checkpoint.
        reading: the loss after the load; None: no probe batch can be read.
        precision: precision of this run; the marker has the saved one.
        config_digest: digest of this run's settings.
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


def squares_by_state(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """State → sum of the squares of this rank's slices, in fp64; keys of ``tensors`` are STATE:PARAMETER."""
    sums: dict[str, float] = {}
    for key, tensor in tensors.items():
        state = key.split(":", 1)[0]
        sums[state] = sums.get(state, 0.0) + float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
    return sums


def norms_of(squares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """State → its 2-norm over all ranks, from the results of ``squares_by_state`` on each rank."""
    states = sorted({state for own in squares for state in own})
    return {state: math.sqrt(sum(own.get(state, 0.0) for own in squares)) for state in states}


def state_norms(held: Sequence[HeldSlice]) -> dict[str, float]:
    """Global 2-norm of every live state (weights, moments), in fp64 over all ranks. Collective: yes."""
    squares: dict[str, Tensor] = {}
    for piece in held:
        for key, view in piece.owned_states().items():
            square = view.detach().double().square().sum().cpu()
            squares[key] = squares.get(key, torch.zeros((), dtype=torch.float64)) + square
    keys = sorted({key for keys in gather_objects(sorted(squares)) for key in keys})
    views = [view for piece in held for view in piece.states.values()]
    device = views[0].device if views else torch.device("cpu")
    local = torch.stack([squares.get(key, torch.zeros((), dtype=torch.float64)) for key in keys]).to(device)
    return dict(zip(keys, all_reduce_sum(local).sqrt().tolist(), strict=True))


def differing_norm(saved: Mapping[str, float], found: Mapping[str, float]) -> str | None:
    """Describes the first state whose norm differs from its saved value, or None."""
    for state, norm in saved.items():
        if state in found and not math.isclose(found[state], norm, rel_tol=1e-6, abs_tol=1e-12):
            return f"the norm of {state} is {found[state]:.8g} after loading, {norm:.8g} when saved"
    return None
