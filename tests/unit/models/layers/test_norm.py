"""The results of both norms, and the tensors that their backward pass keeps on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.config.schema.model import ModelConfig
from pretrain.models.block_cost import norm_statistics
from pretrain.models.layers.norm import norm_layer


def config(kind: Any) -> ModelConfig:
    return ModelConfig(variant="nano/8", img_size=32, norm=kind)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_norm_keeps_its_input_and_its_statistics(kind: str) -> None:
    """On tensors of a GPU without values: there, unlike on the CPU, both norms are one kernel."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with FakeTensorMode(), torch.device("cuda"):
        norm = norm_layer(config(kind), 96)
        tokens = torch.empty(2, 5, 96, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            norm(tokens)
    others = [tensor for tensor in kept if tensor.numel() not in (96, tokens.numel())]
    assert sum(tensor.numel() == tokens.numel() for tensor in kept) == 1
    assert sum(tensor.numel() for tensor in others) == 2 * 5 * norm_statistics(config(kind))


def test_rms_norm_of_bfloat16_tokens_and_fp32_weights_is_computed_in_fp32() -> None:
    norm = norm_layer(config("rms_norm"), 96)
    tokens = torch.randn(4, 96).bfloat16()
    found = norm(tokens)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, norm(tokens.float()).bfloat16(), rtol=0, atol=0)
