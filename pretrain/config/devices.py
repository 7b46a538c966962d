"""Table of known devices: peak rates, memory and links, used by plans, MFU and the doctor. Does not import torch.

The rates are the vendors' dense figures; this project did not measure them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from pretrain.config.loader import load_file
from pretrain.config.schema.base import PositiveFloat, PositiveInt, Strict
from pretrain.config.typed import nearest_key
from pretrain.errors import ConfigError
from pretrain.shipped_files import CONFIGS

DEVICES_FILE = CONFIGS / "devices.yaml"

Precision = Literal["fp32", "bf16", "autocast"]


class Device(Strict):
    """One kind of accelerator."""

    title: str = Field(description="Full name for display.")
    names: tuple[str, ...] = Field(
        default=(), description="Each entry: words that must all occur in the name reported by the driver."
    )
    memory_gib: PositiveFloat = Field(description="Memory available to a process, in GiB, as reported by the driver.")
    bf16_tflops: PositiveFloat = Field(description="Dense bfloat16 matrix products, in TFLOP/s.")
    tf32_tflops: PositiveFloat | None = Field(default=None, description="Dense TF32 products; null: not supported.")
    fp32_tflops: PositiveFloat | None = Field(default=None, description="fp32 in full precision; null: not specified.")
    memory_gb_s: PositiveFloat = Field(description="Bandwidth of its memory, in GB/s.")
    link_gb_s: PositiveFloat = Field(description="Bandwidth to other devices of the node, one direction, in GB/s.")
    network_gb_s: PositiveFloat = Field(default=25, description="Bandwidth to other nodes per device, in GB/s.")
    per_node: PositiveInt = Field(default=8, description="Devices in one node.")

    def peak_flops(self, precision: Precision, *, tf32: bool = False) -> float:
        """FLOP/s of matrix products when training with ``precision``: bf16's rate for bf16 and autocast.

        Args:
            precision: as in the experiment.
            tf32: fp32 products are computed in TF32.

        Raises:
            ConfigError: the table has no such rate for this device.
        """
        rate = self.bf16_tflops if precision != "fp32" else self.tf32_tflops if tf32 else self.fp32_tflops
        if rate is None:
            kind = "tf32_tflops" if tf32 else "fp32_tflops"
            raise ConfigError(f"{self.title} has no {kind} in {DEVICES_FILE}; add it, or train with precision: bf16")
        return rate * 1e12


class DeviceTable(Strict):
    """The devices file."""

    devices: dict[str, Device] = Field(description="Short name → device.")


def load_devices(path: str | Path = DEVICES_FILE) -> dict[str, Device]:
    """Loads the device table (or another file of the same form): short name → device.

    Raises:
        ConfigError: the file cannot be read, or an entry is wrong: the message gives file, line, key and remedy.
    """
    return load_file(path, DeviceTable).devices


def find_device(name: str, table: dict[str, Device], where: str | Path = DEVICES_FILE) -> Device:
    """The device with this short name.

    Raises:
        ConfigError: it is not in the table; the message lists the known names.
    """
    if name in table:
        return table[name]
    near = nearest_key(name.lower().replace("-", "_"), table)
    hint = f"; did you mean {near}?" if near else "."
    raise ConfigError(f"unknown device {name!r}{hint} Known are {', '.join(table)}. Add yours as a section of {where}")


def device_reported_as(reported: str, table: dict[str, Device]) -> Device | None:
    """The device that a driver calls ``reported`` (``torch.cuda.get_device_name``); None if it is not in the table.

    The name with the most matching words wins. A MIG slice matches no device: it has only part of the peak rate.
    """
    words = set(re.findall(r"[A-Za-z0-9]+", reported))
    if "MIG" in words:
        return None
    fitting = [
        (len(name.split()), key) for key, device in table.items() for name in device.names if words >= set(name.split())
    ]
    return table[max(fitting)[1]] if fitting else None
