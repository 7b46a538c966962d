"""Norms and dense layers that compute in fp32 whatever they are given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrain.models.layers.head import Fp32Linear, without_autocast
from pretrain.models.layers.norm import LayerNorm

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("input_dtype", DTYPES)
def test_layer_norm_computes_in_fp32_and_rounds_once(input_dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(96, eps=1e-6)
    nn.init.normal_(norm.weight, 1.0, 0.3)
    nn.init.normal_(norm.bias, 0.0, 0.3)
    norm = norm.to(weight_dtype)
    x = (torch.randn(64, 96) * 3 + 20).to(input_dtype)  # a mean far from 0 is what low precision gets wrong
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    exact = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    exact = exact * norm.weight.double() + norm.bias.double()
    got = norm(x)
    assert got.dtype == input_dtype
    rounding = torch.finfo(input_dtype).eps * (1 if input_dtype == torch.bfloat16 else 64)
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=rounding)


def test_attention_softmax_does_not_sum_in_bfloat16() -> None:
    """1,024 equal keys: in bfloat16 a sum of ones stops at 256, and the mean of ones would come out as 4."""
    q = torch.zeros(1, 1, 1024, 16, dtype=torch.bfloat16)
    v = torch.ones(1, 1, 1024, 16, dtype=torch.bfloat16)
    assert torch.equal(nn.functional.scaled_dot_product_attention(q, q, v), v)


@pytest.mark.parametrize("input_dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("autocast", [False, True])
def test_fp32_linear_rounds_nothing(input_dtype: torch.dtype, weight_dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    layer = Fp32Linear(64, 32).to(weight_dtype)
    x = torch.randn(8, 64).to(input_dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = layer(x)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_weights_of_their_own_type() -> None:
    layer = Fp32Linear(4, 3).to(torch.bfloat16)
    layer(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.bfloat16
    assert torch.equal(layer.weight.grad, torch.full((3, 4), 2.0, dtype=torch.bfloat16))


def test_autocast_is_off_inside_and_on_again_after() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(a.device):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16
