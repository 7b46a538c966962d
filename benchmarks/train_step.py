"""One training step of our Vision Transformer against timm, torchvision and Hugging Face, in one run.

    python -m benchmarks.train_step                                   # S/16, eager, on this machine's device
    python -m benchmarks.train_step --variant B/16 --batch 128 --compile

Forward, backward and AdamW, in fp32 and under bf16 autocast, with the same images and sizes. The libraries run
interleaved and the median of the rounds is reported, so that a slow minute of the machine affects all of them. The
upper limit is the machine's rate for a matrix product of the MLP's shape. Ends with one line of JSON:
``ratio_fastest_peer_*`` is our images/s over the fastest other's, ``gemm_fraction_bf16`` our FLOP/s (3 × forward) over
the product's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.terminal.arguments import program_parser
from pretrain.config.devices import device_reported_as, load_devices
from pretrain.config.schema.model import ModelConfig
from pretrain.models.families.registry import training_flops
from pretrain.models.variants import ViTShape, resolve
from pretrain.models.vit import VisionTransformer, build_vit

NUM_CLASSES = 1000


def ours(config: ModelConfig, shape: ViTShape) -> nn.Module:
    """Ours."""
    return build_vit(config, NUM_CLASSES)


def timm_vit(config: ModelConfig, shape: ViTShape) -> nn.Module:
    """timm's."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=shape.img_size, patch_size=shape.patch, embed_dim=shape.embed_dim, depth=shape.depth,
        num_heads=shape.num_heads, mlp_ratio=shape.mlp_dim / shape.embed_dim, num_classes=NUM_CLASSES,
    )  # fmt: skip


def torchvision_vit(config: ModelConfig, shape: ViTShape) -> nn.Module:
    """torchvision's."""
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=shape.img_size[0], patch_size=shape.patch[0], num_layers=shape.depth, num_heads=shape.num_heads,
        hidden_dim=shape.embed_dim, mlp_dim=shape.mlp_dim, num_classes=NUM_CLASSES,
    )  # fmt: skip


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        outputs: Any = self.model(pixel_values=images)
        return outputs.logits


def hugging_face_vit(config: ModelConfig, shape: ViTShape) -> nn.Module:
    """Hugging Face's, with its fused attention."""
    from transformers import ViTConfig, ViTForImageClassification

    settings = ViTConfig(
        hidden_size=shape.embed_dim, num_hidden_layers=shape.depth, num_attention_heads=shape.num_heads,
        intermediate_size=shape.mlp_dim, image_size=shape.img_size[0], patch_size=shape.patch[0],
        id2label={index: str(index) for index in range(NUM_CLASSES)},
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    settings._attn_implementation = "sdpa"
    return _Logits(ViTForImageClassification(settings))


LIBRARIES: dict[str, Callable[[ModelConfig, ViTShape], nn.Module]] = {
    "ours": ours,
    "timm": timm_vit,
    "torchvision": torchvision_vit,
    "hugging_face": hugging_face_vit,
}


class Trained:
    """A model with its optimiser, ready to step."""

    def __init__(self, model: nn.Module, compiled: bool) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        self.forward: Callable[[Tensor], Tensor] = model
        if compiled and isinstance(model, VisionTransformer):
            model.compile_blocks()
        elif compiled:
            model.compile()

    def loss(self, images: Tensor, labels: Tensor, low: bool) -> Tensor:
        """The loss, with matrix products in bfloat16 where ``low``."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=low):
            return F.cross_entropy(self.forward(images).float(), labels)

    def seconds(self, images: Tensor, labels: Tensor, low: bool) -> float:
        """Time of one whole step."""
        start = time.perf_counter()
        loss = self.loss(images, labels, low)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if images.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def kept_bytes(self, images: Tensor, labels: Tensor, low: bool) -> int:
        """Distinct storages that autograd keeps for the backward pass, weights left out."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(images, labels, low)
        del loss
        return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in weights)


def gemm_flops(shape: ViTShape, batch: int, device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    """FLOP/s of the MLP's first matrix product alone: (B·T, D) × (D, M)."""
    rows = batch * shape.num_tokens
    a = torch.randn(rows, shape.embed_dim, device=device, dtype=dtype)
    b = torch.randn(shape.embed_dim, shape.mlp_dim, device=device, dtype=dtype)
    repeats, times = 10, []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(repeats):
            torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * rows * shape.embed_dim * shape.mlp_dim * repeats / statistics.median(times[1:])


def run(options: argparse.Namespace, device: torch.device, low: bool) -> dict[str, Any]:
    """All libraries in one precision."""
    config = ModelConfig(variant=options.variant, img_size=options.img_size, head_init="normal")
    shape = resolve(config)
    images = torch.randn(options.batch, 3, *shape.img_size, device=device)
    labels = torch.randint(NUM_CLASSES, (options.batch,), device=device)
    trained, kept = {}, {}
    for name in options.libraries:
        with device:
            model = LIBRARIES[name](config, shape)
        kept[name] = Trained(model, False).kept_bytes(images, labels, low)
        trained[name] = Trained(model, options.compile)
        trained[name].seconds(images, labels, low)  # warms up, and compiles
    times: dict[str, list[float]] = {name: [] for name in trained}
    for index in range(options.rounds):
        names = list(trained)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            times[name].append(trained[name].seconds(images, labels, low))
    gemm = gemm_flops(shape, options.batch, device, torch.bfloat16 if low else torch.float32, options.rounds)
    rows = {}
    for name, seconds in times.items():
        rate = options.batch / statistics.median(seconds)
        flops = training_flops(config, NUM_CLASSES, rate)
        rows[name] = {
            "images_per_s": rate,
            "tflops": flops / 1e12,
            "gemm_fraction": flops / gemm,
            "mfu": _mfu(flops, device),
            "kept_mib": kept[name] / 2**20,
        }
    return {"libraries": rows, "gemm_tflops": gemm / 1e12}


def _mfu(flops: float, device: torch.device) -> float | None:
    known = device_reported_as(torch.cuda.get_device_name(device), load_devices()) if device.type == "cuda" else None
    return flops / known.peak_flops("bf16") if known else None


def main() -> None:
    """Prints a table for each precision, then JSON."""
    parser = program_parser("python -m benchmarks.train_step", __doc__)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=None, help="images per step: 8 on a CPU, 128 on a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--libraries", nargs="+", choices=list(LIBRARIES), default=list(LIBRARIES))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers, who are not what is measured
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.batch = options.batch or (128 if device.type == "cuda" else 8)
    report: dict[str, Any] = {"benchmark": "train_step", **vars(options), "device": device.type}
    for label, low in (("fp32", False), ("bf16", True)):
        result = run(options, device, low)
        rows = result["libraries"]
        print(f"{options.variant}, {options.batch} images, {label}; matrix product {result['gemm_tflops']:.3f} TFLOP/s")
        for name, row in rows.items():
            print(
                f"  {name:<14} {row['images_per_s']:>9.2f} images/s {row['tflops']:>8.3f} TFLOP/s "
                f"{row['gemm_fraction']:>6.1%} of the product, keeps {row['kept_mib']:>8.1f} MiB"
            )
        report[label] = result
        peers = [row["images_per_s"] for name, row in rows.items() if name != "ours"]
        if "ours" in rows and peers:
            report[f"ratio_fastest_peer_{label}"] = rows["ours"]["images_per_s"] / max(peers)
        if "ours" in rows:
            report[f"gemm_fraction_{label}"] = rows["ours"]["gemm_fraction"]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
