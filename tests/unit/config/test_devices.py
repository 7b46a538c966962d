"""The table of devices: it loads without torch, its names are found, and mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.config.devices import device_reported_as, find_device, load_devices
from pretrain.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "bf16_tflops", "memory_gb"),
    [
        ("a100_40", 312, 40),
        ("a100_80", 312, 80),
        ("h100", 989, 80),
        ("h200", 989, 141),
        ("b200", 2250, 180),
        ("mi300x", 1307.4, 192),
        ("tpu_v3_core", 61.5, 16),
    ],
)
def test_the_delivered_devices(name: str, bf16_tflops: float, memory_gb: float) -> None:
    device = find_device(name, load_devices())
    assert device.bf16_tflops == bf16_tflops
    assert 0.96 * memory_gb < device.memory_gib < 1.08 * memory_gb  # drivers show GiB of what vendors call GB


@pytest.mark.parametrize(
    ("reported", "title"),
    [
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 SXM 40 GB"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 SXM 80 GB"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 SXM 80 GB"),
        ("NVIDIA H200", "NVIDIA H200 SXM 141 GB"),
        ("AMD Instinct MI300X", "AMD Instinct MI300X 192 GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 SXM 80 GB"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 PCIe 80 GB"),
        ("NVIDIA H100 NVL", "NVIDIA H100 NVL 94 GB"),
        ("NVIDIA B200", "NVIDIA B200 SXM 180 GB"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GB200", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_names_of_drivers(reported: str, title: str | None) -> None:
    found = device_reported_as(reported, load_devices())
    assert (found and found.title) == title


def test_peak_by_precision() -> None:
    a100, tpu = (find_device(name, load_devices()) for name in ("a100_80", "tpu_v3_core"))
    assert a100.peak_flops("bf16") == a100.peak_flops("autocast") == 312e12
    assert a100.peak_flops("fp32") == 19.5e12 and a100.peak_flops("fp32", tf32=True) == 156e12
    with pytest.raises(ConfigError, match="no fp32_tflops"):
        tpu.peak_flops("fp32")
    for device in load_devices().values():
        if device.tf32_tflops and device.fp32_tflops:
            assert device.bf16_tflops > device.tf32_tflops > device.fp32_tflops


def test_an_unknown_device_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown device 'a100-80'; did you mean a100_80\? Known are a100_40, .*Add"):
        find_device("a100-80", load_devices())
    with pytest.raises(ConfigError, match=r"unknown device 'abacus'\. Known are"):
        find_device("abacus", load_devices())


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "devices.yaml"
    path.write_text(
        "devices:\n  mine: {title: Mine, memory_gib: 10, bf16_tflops: 1e2, memory_gb_s: 5, link_gb_s: 1, per_node: 2}\n"
    )
    assert load_devices(path)["mine"].per_node == 2
    path.write_text("devices:\n  mine:\n    title: Mine\n    memory_gib: -1\n    flops: 7\n")
    with pytest.raises(ConfigError) as error:
        load_devices(path)
    assert "devices.yaml:4: devices.mine.memory_gib: '-1' is not" in str(error.value)
    assert "flops" in str(error.value) and "bf16_tflops is missing" in str(error.value)
