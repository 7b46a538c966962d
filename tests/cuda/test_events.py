"""The simulation itself: it notices every wait, and raises where a GPU would."""

from __future__ import annotations

from typing import Any

import pytest

WAITS = {
    "read_a_value": ["item"],
    "read_a_list": ["tolist"],
    "branch_on_a_value": ["item"],
    "copy_pageable": ["copy to the device"],
    "copy_pinned_without_waiting": [],
    "read_into_pinned_memory": [],
    "select_by_a_mask": ["selection by a mask"],
    "read_known_labels": ["tolist"],
    "compute_on_the_device": [],
}
ERRORS = {
    "mix_devices": "Expected all tensors to be on the same device",
    "reduce_a_host_tensor": "no backend type associated with device type cpu",
}


@pytest.mark.parametrize("event", WAITS)
def test_waits_are_noticed(simulate: Any, event: str) -> None:
    found = simulate("events")[event]
    assert found["error"] is None, found["trace"]
    assert [wait.partition(" in ")[0] for wait in found["waits"]] == WAITS[event]


@pytest.mark.parametrize("event", ERRORS)
def test_errors_of_a_gpu_are_raised(simulate: Any, event: str) -> None:
    assert ERRORS[event] in simulate("events")[event]["error"]
