"""ZeRO-3 copies refreshed weights while no CUDA stream can read them: the order of DeepSpeed's calls and the waits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pretrain.engine.deepspeed_backend import DeepSpeedBackend


class RecordedOptimizer:
    """The calls of DeepSpeed's optimiser, by name."""

    def __init__(self, calls: list[str]) -> None:
        self._calls, self.fp16_groups = calls, [[], []]
        self.persistent_parameters = [SimpleNamespace(all_gather=lambda parameters: calls.append("gather"))]

    def _partition_all_parameters(self) -> None:
        self._calls.append("finish gathers")

    def _reassign_or_swap_out_partitioned_parameters(self, index: int) -> None:
        self._calls.append(f"copy {index}")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_gather_overlaps_the_copies(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: calls.append("wait"))
    backend = DeepSpeedBackend.__new__(DeepSpeedBackend)
    backend._stage, backend._optimizer = 3, RecordedOptimizer(calls)
    backend._options = SimpleNamespace(device=torch.device(device))  # type: ignore[assignment]
    backend._refresh()
    expected = ["finish gathers", "wait", "copy 0", "copy 1", "wait", "gather"]
    assert calls == [call for call in expected if device == "cuda" or call != "wait"]
