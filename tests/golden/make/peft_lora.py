"""Writes ``traces/peft_lora.npz``: a Vision Transformer of timm with adapters of peft, gradients and merged weights.

Run by hand from the repository's root, in an environment with ``pip install peft==0.21.2 timm==1.0.31
transformers==5.24.0``: ``python -m tests.golden.make.peft_lora``.

All values are random, B too, so that the adapters count. The loss is the cross-entropy with labels 0, 1, 2, ….
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from timm.models.vision_transformer import VisionTransformer

TRACES = Path(__file__).parent.parent / "traces"
SIZES: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0}
PREFIX = "base_model.model."


def main() -> None:
    """Writes the file again."""
    torch.manual_seed(0)
    base = VisionTransformer(**SIZES, num_classes=5)
    for parameter in base.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    arrays = {f"base/{name}": tensor.clone() for name, tensor in base.state_dict().items()}
    targets = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, modules_to_save=["head"])
    net: Any = peft.get_peft_model(base, config)
    for name, parameter in net.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.3)
    adapters = {name: value for name, value in net.named_parameters() if "lora_" in name}
    arrays |= {f"adapter/{_plain(name)}": value.detach().clone() for name, value in adapters.items()}
    images = torch.randn(3, 3, 8, 8)
    logits = net(images)
    torch.nn.functional.cross_entropy(logits, torch.arange(3)).backward()
    arrays |= {"images": images, "logits": logits.detach()}
    trained = {name: value for name, value in net.named_parameters() if value.requires_grad}
    arrays |= {f"gradient/{_plain(name)}": value.grad for name, value in trained.items()}
    merged = net.merge_and_unload()
    arrays |= {f"merged/{name}": tensor for name, tensor in merged.state_dict().items()}
    np.savez_compressed(TRACES / "peft_lora.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX).replace(".default", "").replace("modules_to_save.", "")


if __name__ == "__main__":
    main()
