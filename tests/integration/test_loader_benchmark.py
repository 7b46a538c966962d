"""The benchmark of the loader runs as documented, with the loaders that need no environment of their own."""

from __future__ import annotations

import json

import pytest

from tests.command import Commands


@pytest.mark.slow
def test_the_loaders_are_compared(command: Commands) -> None:
    loaders = ["ours", "stock_webdataset"]
    few = ["--limit", "70", "--images", "64", "--rounds", "1", "--workers", "1", "--sizes", "256", "original"]
    done = command.run("python", "benchmarks/loader.py", *few, "--loaders", *loaders, check=True, timeout_s=290)
    found = json.loads(done.stdout.splitlines()[-1])
    rates = {name: row["images_per_cpu_s"] for name, row in found["original_1"].items()}
    assert list(rates) == loaders and list(found["256_1"]) == loaders and found["missing"] == {}
    ours = rates.pop("ours")
    assert found["ratio_fastest_peer"] == pytest.approx(ours / max(rates.values()))
    assert found["ratio_stock_webdataset"] == pytest.approx(ours / rates["stock_webdataset"])
