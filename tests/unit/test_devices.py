"""Which device a driver's name means, and its peak in each precision."""

from __future__ import annotations

import pytest

from pretrain.devices import DEVICES, find_device, peak_flops


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GB200", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_names(name: str, row: str | None) -> None:
    assert find_device(name) is (None if row is None else DEVICES[row])


def test_peaks_by_precision() -> None:
    a100 = DEVICES["A100"]
    assert [peak_flops(a100, precision) / 1e12 for precision in ("bf16", "autocast", "fp32")] == [312, 312, 19.5]
    assert peak_flops(a100, "fp32", tf32=True) == 156e12
    for device in DEVICES.values():
        assert device.bf16_flops > device.tf32_flops > device.fp32_flops and device.source
