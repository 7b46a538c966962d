"""What accelerators can do at best, from their makers' data sheets: for MFU and for plans. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Device:
    """Peaks of one device, dense (without structured sparsity).

    Attributes:
        bf16_flops: FLOP/s of bfloat16 matrix products with fp32 sums.
        tf32_flops: of fp32 matrix products rounded to TF32.
        fp32_flops: of fp32 without tensor cores (MI300X: its fp32 matrix cores).
        memory_bytes: as sold, in powers of ten; a driver shows a little less.
        source: the document.
    """

    bf16_flops: float
    tf32_flops: float
    fp32_flops: float
    memory_bytes: int
    source: str


def _device(bf16: float, tf32: float, fp32: float, memory_gb: int, source: str) -> Device:
    return Device(bf16 * TERA, tf32 * TERA, fp32 * TERA, memory_gb * GB, source)


# Words that must all stand in the name that the driver gives → the device. The row with the most words goes first.
DEVICES: dict[str, Device] = {
    "A100": _device(312, 156, 19.5, 40, "NVIDIA A100 Tensor Core GPU data sheet, 2021"),
    "A100 80GB": _device(312, 156, 19.5, 80, "NVIDIA A100 Tensor Core GPU data sheet, 2021"),
    "H100": _device(989, 494, 67, 80, "NVIDIA H100 Tensor Core GPU data sheet, SXM"),
    "H100 PCIe": _device(756, 378, 51, 80, "NVIDIA H100 Tensor Core GPU data sheet, PCIe, 2022"),
    "H100 NVL": _device(835, 417, 60, 94, "NVIDIA H100 Tensor Core GPU data sheet, NVL"),
    "H200": _device(989, 494, 67, 141, "NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    "H200 NVL": _device(836, 418, 60, 141, "NVIDIA H200 Tensor Core GPU data sheet, NVL"),
    "B200": _device(2250, 1125, 75, 180, "NVIDIA HGX B200 data sheet: what eight have with sparsity, over 16"),
    "MI300X": _device(1307.4, 653.7, 163.4, 192, "AMD Instinct MI300X accelerator data sheet, 2023"),
}


def find_device(name: str) -> Device | None:
    """The device that a driver calls ``name`` (``torch.cuda.get_device_name``), or None where the table has none.

    A part of a device (MIG) is no device of the table: its peak is a part too.
    """
    words = set(re.findall(r"[A-Za-z0-9]+", name))
    if "MIG" in words:
        return None
    matching = [key for key in DEVICES if words >= set(key.split())]
    return DEVICES[max(matching, key=lambda key: len(key.split()))] if matching else None


def peak_flops(device: Device, precision: str, *, tf32: bool = False) -> float:
    """FLOP/s that training in this precision could reach at best.

    Args:
        device: a row of the table.
        precision: fp32, bf16 or autocast, as in the experiment.
        tf32: fp32 matrix products may be rounded to TF32.
    """
    if precision in ("bf16", "autocast"):
        return device.bf16_flops
    return device.tf32_flops if tf32 else device.fp32_flops
