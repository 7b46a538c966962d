"""Imports before the first step, which each restart of a job waits for."""

from __future__ import annotations

from tests.command import Commands

# Without the networks of other programs, a start takes half of the processor time.
HEAVY = ["timm", "torchvision", "torch._dynamo", "transformers", "accelerate", "matplotlib"]
SCRIPT = """
import sys
import pretrain.assembly.record, pretrain.assembly.trainer, pretrain.engine.deepspeed_backend, pretrain.engine.resume
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_a_start_from_the_seed_imports_no_other_networks(command: Commands) -> None:
    assert command.run("python", "-c", SCRIPT, "torch", *HEAVY, check=True).stdout.split() == ["torch"]
