"""Activation checkpointing changes what is kept and nothing else; so does compiling the blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.config.schema.cluster import AutoClusterConfig
from pretrain.models.layers.checkpointing import KEPT_OPERATIONS, block_policy
from pretrain.models.vit import VisionTransformer
from tests.golden.twins import our_model, small_config, some_images

POLICIES = ["full", "selective", "every_2", "every_3"]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"dropout": 0.2},
    "everything": {"layer_scale": 0.1, "qk_norm": True, "num_registers": 2, "pool": "map", "dropout": 0.1},
    "rotary": {"pos_embed": "none", "rope": "axial"},
    "mixed rotary, gates": {"rope": "mixed", "norm": "rms_norm", "mlp": "swiglu", "gated_attention": True},
    "parallel": {"block": "parallel", "layer_scale": 0.1, "qk_norm": True, "dropout": 0.1},
    "relative bias": {"pos_embed": "relative_bias"},
    "shared relative bias": {"pos_embed": "relative_bias", "pos_embed_placement": "every_layer_shared"},
    "relative keys": {"pos_embed": "relative_1d"},
    "positions in every layer": {"pos_embed": "learned_2d", "pos_embed_placement": "every_layer"},
}


def gradients(model: VisionTransformer, policy: str, with_drop_path: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss, gradients, and the state of the generator."""
    model.zero_grad()
    model.set_grad_checkpointing(policy)
    images = some_images(model, num_images=4)
    scales = torch.tensor([0.0, 1.25]).repeat(12)[torch.randperm(24, generator=torch.Generator().manual_seed(1))]
    torch.manual_seed(7)
    autocast = dtype == torch.float16  # stands for autocast, so that one parameter says all
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(images, scales.reshape(4, 3, 2) if with_drop_path else None).square().mean()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in found.values())
    after = {"loss": loss.detach(), "generator": torch.rand(2)}
    return after | {name: grad.clone() for name, grad in found.items() if grad is not None}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_no_policy_changes_a_bit(options: dict[str, Any], dtype: torch.dtype, policy: str) -> None:
    model = our_model(small_config(**options))
    model = model.to(torch.bfloat16) if dtype == torch.bfloat16 else model
    straight = gradients(model, "none", True, dtype)
    recomputed = gradients(model, policy, True, dtype)
    assert straight.keys() == recomputed.keys()
    assert [name for name in straight if not torch.equal(straight[name], recomputed[name])] == []


class ZeroLinear(torch.autograd.Function):
    """A dense layer as DeepSpeed's ZeRO-3 computes it: the bias is added in place, unseen by autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        output = x.matmul(weight.t())
        output += bias
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        flat = grads[0].flatten(0, -2)
        return grads[0].matmul(weight), flat.t().matmul(x.flatten(0, -2)), flat.sum(0)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_bias_that_is_added_in_place_is_not_added_twice(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "linear", ZeroLinear.apply)
    model = our_model(small_config())
    straight, recomputed = (gradients(model, name, True, torch.float32) for name in ("none", policy))
    assert [name for name in straight if not torch.equal(straight[name], recomputed[name])] == []


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("none", ["none"] * 6),
        ("full", ["full"] * 6),
        ("selective", ["selective"] * 6),
        ("every_2", ["none", "full"] * 3),
        ("every_3", ["none", "none", "full"] * 2),
        ("every_10", ["none"] * 6),
    ],
)
def test_which_blocks(policy: str, expected: list[str]) -> None:
    assert [block_policy(policy, index) for index in range(6)] == expected


class Counted(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in KEPT_OPERATIONS
        return func(*args, **(kwargs or {}))


def products(policy: str) -> int:
    model = our_model(small_config())
    model.set_grad_checkpointing(policy)
    with Counted() as counted:
        model(some_images(model)).sum().backward()
    return counted.products


def test_selective_repeats_no_product_and_full_repeats_four_of_each_block() -> None:
    """Of the five products of a block's forward pass, qkv, attention, proj, fc1 and fc2, the last is not needed."""
    none = products("none")
    assert products("selective") == none
    assert products("full") == none + 3 * 4
    assert products("every_3") == none + 1 * 4


# torch.compile itself looks at .grad of tensors that are not leaves, and hides the warning unless it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("policy", ["none", "full", "every_2", "selective"])
def test_compiled_blocks_give_the_same(policy: str) -> None:
    """One graph serves all blocks, names stay, and dropout off or on is another graph, not a wrong one."""
    torch._dynamo.reset()
    model = our_model(small_config(depth=4, qk_norm=True, pos_embed="none", rope="axial"))
    images, scales = some_images(model, 2), torch.tensor([0.0, 1.25]).repeat(8).reshape(2, 4, 2)

    def step() -> tuple[Tensor, list[Tensor]]:
        model.zero_grad()
        loss = model(images, scales).square().mean()
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    model.set_grad_checkpointing(policy)
    expected_loss, expected = step()
    names = list(model.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    model.compile_blocks(backend=counter)  # type: ignore[arg-type]
    loss, grads = step()
    assert list(model.state_dict()) == names
    assert 1 <= counter.frame_count <= 2, "blocks differ in their weights only, which are arguments of one graph"
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    for mine, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


MOST_GRAPHS = 3  # training, the probe batch of a checkpoint, and evaluation


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
@pytest.mark.parametrize("precision", ["fp32", "autocast"])
@pytest.mark.parametrize("policy", ["none", "full", "selective"])
def test_a_run_compiles_three_graphs(policy: str, precision: str) -> None:
    """Dynamo gives up at eight graphs of one function, and would then train without compilation."""
    torch._dynamo.reset()
    model = our_model(small_config(depth=4, drop_path=0.1))
    model.set_grad_checkpointing(policy)
    counter = CompileCounterWithBackend("eager")
    model.compile_blocks(backend=counter)  # type: ignore[arg-type]

    def run(size: int, *, train: bool) -> None:
        model.train(train)
        scales = torch.ones(size, 4, 2) if train else None
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast")
        with autocast, torch.set_grad_enabled(train):
            logits = model(some_images(model, size), scales)
        if train:
            logits.sum().backward()

    for _ in range(2):
        run(4, train=True)
        run(2, train=False)
        run(8, train=False)
    assert counter.frame_count == MOST_GRAPHS
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_checkpointing": "every_1"}, ["activation_checkpointing"]),
        ({"activation_checkpointing": "sometimes"}, ["activation_checkpointing"]),
    ],
)
def test_policies_that_do_not_exist_are_refused(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        AutoClusterConfig(**settings)
    for word in words:
        assert word in str(error.value)
