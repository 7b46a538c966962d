"""Memory and time of each activation checkpointing policy, beside the estimate of models/cost.py.

    python -m benchmarks.memory                          # L/16, two images, on this machine's device
    python -m benchmarks.memory --variant H/14 --batch 1
    python -m benchmarks.memory --variant H/14 --batch 64 --precision autocast    # on a GPU

"kept" is what lives between the forward and the backward pass and grows with the batch (on any device, by counting
live storages); "peak" is the allocator's highest mark over a step less weights and gradients (CUDA only). Ends with one
line of JSON.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.live_storages import LiveStorages
from pipelines.terminal.arguments import program_parser
from pretrain.config.schema.model import ModelConfig
from pretrain.models.cost import Precision, activation_bytes, recomputed_macs
from pretrain.models.families.registry import training_flops
from pretrain.models.vit import VisionTransformer, build_vit

MIB = 2**20
NUM_CLASSES = 1000


def step(model: VisionTransformer, images: torch.Tensor, labels: torch.Tensor, precision: str) -> None:
    """One forward and backward pass."""
    model.zero_grad(set_to_none=False)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "autocast"):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    if images.is_cuda:
        torch.cuda.synchronize()


def kept_bytes(model: VisionTransformer, device: torch.device, batch: int, precision: str) -> int:
    """Bytes alive after the forward pass of ``batch`` images that were allocated in it, images included."""
    live = LiveStorages(model.parameters())
    with live, torch.autocast(device.type, torch.bfloat16, enabled=precision == "autocast"):
        images = torch.randn(batch, 3, *model.shape.img_size, device=device)
        loss = F.cross_entropy(model(images), torch.zeros(batch, dtype=torch.int64, device=device))
        del images
    total = live.total()
    del loss
    return total


def measure(
    model: VisionTransformer, policies: list[str], device: torch.device, batch: int, precision: Precision, rounds: int
) -> dict[str, dict[str, Any]]:
    """Rows by policy; the policies take turns, so that a slow minute of the machine hits all."""
    images = torch.randn(batch, 3, *model.shape.img_size, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    rows: dict[str, dict[str, Any]] = {policy: {"seconds": []} for policy in policies}
    for policy in policies:
        model.set_grad_checkpointing(policy)
        kept = [kept_bytes(model, device, size, precision) for size in (batch, 2 * batch)]
        counted = activation_bytes(model.config, NUM_CLASSES, precision=precision, checkpointing=policy)
        rows[policy] |= {
            "kept_mib_per_image": (kept[1] - kept[0]) / batch / MIB,
            "analytic_mib_per_image": counted / MIB,
            "recomputed_share": 2
            * recomputed_macs(model.config, policy)
            / training_flops(model.config, NUM_CLASSES, 1),
        }
    for index in range(rounds + 1):
        for policy in policies:
            model.set_grad_checkpointing(policy)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                base = torch.cuda.memory_allocated()
            start = time.perf_counter()
            step(model, images, labels, precision)
            if index:  # the first round warms up
                rows[policy]["seconds"].append(time.perf_counter() - start)
            if device.type == "cuda":
                rows[policy]["peak_mib_per_image"] = (torch.cuda.max_memory_allocated() - base) / batch / MIB
    for row in rows.values():
        row["seconds"] = statistics.median(row["seconds"])
    return rows


def main() -> None:
    """Prints a table, then JSON."""
    parser = program_parser("python -m benchmarks.memory", __doc__)
    parser.add_argument("--variant", default="L/16")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16", "autocast"], default="fp32")
    parser.add_argument("--policies", nargs="+", default=["none", "selective", "every_2", "full"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model = build_vit(ModelConfig(variant=options.variant, img_size=options.img_size), NUM_CLASSES)
    model = model.bfloat16() if options.precision == "bf16" else model
    rows = measure(model, options.policies, device, options.batch, options.precision, options.rounds)
    print(f"{options.variant} at {options.img_size} px, {options.batch} images, {options.precision}, {device.type}")
    print(f"{'policy':<10} {'kept MiB/img':>13} {'cost.py':>9} {'s/step':>8} {'recomputed':>11}")
    for policy, row in rows.items():
        print(
            f"{policy:<10} {row['kept_mib_per_image']:>13.1f} {row['analytic_mib_per_image']:>9.1f} "
            f"{row['seconds']:>8.3f} {row['recomputed_share']:>10.0%}"
        )
    print(json.dumps({"benchmark": "memory", **vars(options), "device": device.type, "policies": rows}))


if __name__ == "__main__":
    main()
