"""Steps of our optimisers against those of torch and timm; against optax's, see tests/golden/test_optax_updates.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm.optim
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pretrain.config.schema.optim import Optim
from pretrain.models.families.registry import build_model, init_weights
from pretrain.optim.adafactor import attention_views, factored_axes
from pretrain.optim.optimizers import build_optimizer
from tests.distributed.training import experiment

STEPS, LR, DECAY = 8, 0.02, 0.1


class Layers(nn.Module):
    """A kernel that Adafactor factors, one that it does not, and a bias. Names decide what decays."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Linear(48, 40), nn.Linear(40, 5)
        torch.manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_()


def gradient(step: int, name: str, shape: torch.Size) -> Tensor:
    """The same for whoever asks; of very different sizes, since that is what a second moment is for."""
    generator = torch.Generator().manual_seed(hash_of(name) + step)
    return torch.randn(shape, generator=generator) * 10.0 ** ((step + len(name)) % 5 - 3)


def hash_of(name: str) -> int:
    return sum(ord(letter) * 31**index for index, letter in enumerate(name[:6]))


def ours(**settings: object) -> dict[str, Tensor]:
    model = Layers()
    config = TypeAdapter(Optim).validate_python({"lr": LR, "weight_decay": DECAY} | settings)
    return run(model, build_optimizer(model, config))


def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    for step in range(STEPS):
        for name, parameter in model.named_parameters():
            parameter.grad = gradient(step, name, parameter.shape)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def theirs(make: Callable[[list[dict]], torch.optim.Optimizer]) -> dict[str, Tensor]:
    model = Layers()
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return run(model, make([{"params": kernels, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]))


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=tolerance, atol=tolerance, msg=name)


PEERS: dict[str, tuple[dict, Callable[[list[dict]], torch.optim.Optimizer]]] = {
    "adamw": ({"name": "adamw"}, lambda groups: torch.optim.AdamW(groups, lr=LR)),
    "sgd": ({"name": "sgd"}, lambda groups: torch.optim.SGD(groups, lr=LR, momentum=0.9)),
    "lamb": (
        {"name": "lamb", "eps": 1e-6},
        lambda groups: timm.optim.Lamb(groups, lr=LR, eps=1e-6, max_grad_norm=None),
    ),
    "adafactor": (
        {"name": "adafactor"},
        lambda groups: timm.optim.AdafactorBigVision(
            groups, lr=LR, min_dim_size_to_factor=32, momentum_dtype="float32", beta2_cap=0.999
        ),
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_steps_equal_those_of_the_peer(name: str) -> None:
    settings, make = PEERS[name]
    assert_near(ours(**settings), theirs(make))


def test_the_moment_is_kept_in_bf16() -> None:
    for name in ("adamw", "sgd", "adafactor"):
        model = Layers()
        config = TypeAdapter(Optim).validate_python({"name": name, "lr": LR, "momentum_dtype": "bf16"})
        optimizer = build_optimizer(model, config)
        run(model, optimizer)
        first = "momentum_buffer" if name == "sgd" else "exp_avg"
        assert all(state[first].dtype == torch.bfloat16 for state in optimizer.state.values())


def test_adafactor_factors_q_k_v_and_heads_apart_as_flax_does() -> None:
    """A fused attention weight has the statistics of flax's (D, A, E) kernels: factored over D and E, head by head."""
    config = experiment(model__variant="S/4", model__depth=1, optim={"name": "adafactor", "lr": LR})
    model = build_model(config.model, 5)
    init_weights(model, 0)
    weight = model.get_parameter("blocks.0.attn.qkv.weight")
    assert attention_views(model)[weight] == (3, 6, 64, 384)
    assert attention_views(model)[model.get_parameter("blocks.0.attn.proj.weight")] == (1, 384, 6, 64)
    optimizer, before = build_optimizer(model, config.optim), weight.detach().clone()
    weight.grad = gradient(1, "qkv", weight.shape)
    optimizer.step()
    for head in range(18):
        part = slice(64 * head, 64 * head + 64)
        square = weight.grad[part].double() ** 2
        second = square.mean(1, keepdim=True) * square.mean(0, keepdim=True) / square.mean()
        wanted = before[part] - LR * 0.1 * weight.grad[part] / second.sqrt()
        torch.testing.assert_close(weight.detach()[part], wanted.float(), rtol=1e-5, atol=1e-6)


def test_what_is_factored() -> None:
    assert factored_axes((1, 48, 40)) == (2, 1)
    assert factored_axes((1, 768, 3, 16, 16)) is None and factored_axes((1, 31, 500)) is None
    assert factored_axes((1, 1, 256, 384)) == (2, 3) and factored_axes((1, 64)) is None


def test_fused_equals_the_loop() -> None:
    """torch's fused kernels run on the CPU too."""
    for name in ("adamw", "sgd"):
        config = TypeAdapter(Optim).validate_python({"name": name, "lr": LR, "weight_decay": DECAY})
        model = Layers()
        optimizer = build_optimizer(model, config, fused=True)
        assert optimizer.defaults["fused"]
        assert_near(run(model, optimizer), ours(name=name))
