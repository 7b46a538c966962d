"""Steps of our optimisers against those of torch and timm; against optax's, see tests/golden/test_optax_updates.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from pretrain.config.schema.optim.choice import Optim
from pretrain.models.families.registry import build_model, family_of, init_weights
from pretrain.optim.factored import factored_axes, views_of
from pretrain.optim.groups import set_lr
from pretrain.optim.matrices import matrices_of
from pretrain.optim.muon import orthogonalized
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

    def layer_ids(self) -> dict[str, int]:
        """``small`` is the head."""
        return {name: int(name.startswith("small")) for name, _ in self.named_parameters()}


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


def run(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    for step in range(STEPS):
        for name, parameter in model.named_parameters():
            parameter.grad = gradient(step, name, parameter.shape)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def theirs(make: Callable[[list[dict]], Any]) -> dict[str, Tensor]:
    model = Layers()
    kernels = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return run(model, make([{"params": kernels, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]))


def assert_near(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor.float(), rtol=tolerance, atol=tolerance, msg=name)


class Together:
    """Optimisers that share the parameters among them."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self._optimizers = optimizers

    def step(self) -> None:
        """One step of each."""
        for optimizer in self._optimizers:
            optimizer.step()


def muon(scale: str) -> Callable[[list[dict]], Any]:
    """torch's Muon for the kernel that is not the head's, and AdamW for the rest."""

    def make(groups: list[dict]) -> Together:
        kernels, rest = groups
        large, small = kernels["params"]
        return Together(
            torch.optim.Muon([large], lr=LR, weight_decay=DECAY, adjust_lr_fn=scale),
            torch.optim.AdamW([kernels | {"params": [small]}, rest], lr=LR),
        )

    return make


PEERS: dict[str, tuple[dict, Callable[[list[dict]], Any]]] = {
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
    "muon": ({"name": "muon"}, muon("match_rms_adamw")),
    "muon original": ({"name": "muon", "scale": "original"}, muon("original")),
    "muon spectral": ({"name": "muon", "scale": "spectral"}, muon("spectral_unclamped")),
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
    heads = family_of(config.model).attention_heads(config.model, 5)
    views = views_of({name: tuple(one.shape) for name, one in model.named_parameters()}, heads)
    assert views["blocks.0.attn.qkv.weight"] == (3, 6, 64, 384)
    assert views["blocks.0.attn.proj.weight"] == (1, 384, 6, 64)
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


def step_of(model: nn.Module, **settings: Any) -> dict[str, Tensor]:
    """How far each parameter moves in a step, from the same weights and gradients."""
    config = TypeAdapter(Optim).validate_python({"lr": LR} | settings)
    optimizer = build_optimizer(model, config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.grad = gradient(0, name, parameter.shape)
    set_lr(optimizer.param_groups, LR)
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


def small_vit() -> nn.Module:
    model = build_model(experiment(model__variant="S/4", model__depth=1, model__embed_dim=48).model, 5)
    init_weights(model, 0)
    return model


def test_muon_orthogonalises_q_k_and_v_apart_and_a_convolution_as_one_matrix() -> None:
    """Against timm's own Muon on the separate matrices, and on the kernel with its four dimensions."""
    found = step_of(small_vit(), name="muon")
    qkv, patches = "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"
    separate = [nn.Parameter(torch.zeros(48, 48)) for _ in range(3)]
    kernel = nn.Parameter(torch.zeros(48, 3, 4, 4))
    for part, grad in zip(separate, gradient(0, qkv, torch.Size((144, 48))).split(48), strict=True):
        part.grad = grad
    kernel.grad = gradient(0, patches, kernel.shape)
    timm.optim.Muon([*separate, kernel], lr=LR, nesterov=True, ns_coefficients="original").step()
    for name, wanted in ((qkv, torch.cat(separate)), (patches, kernel)):
        torch.testing.assert_close(found[name], wanted.detach(), rtol=0.02, atol=2e-5)  # of bf16


def test_muon_gives_adamw_what_is_no_hidden_kernel() -> None:
    """Norms, biases, tokens, tables, and the head; their learning rate may differ."""
    muon, adamw = (step_of(small_vit(), name=name) for name in ("muon", "adamw"))
    same = {name for name in muon if torch.allclose(muon[name], adamw[name], atol=1e-6)}
    assert {name for name in muon if name not in same} == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
    }
    slower = step_of(small_vit(), name="muon", adamw_lr_scale=0.5)
    for name in muon:
        torch.testing.assert_close(slower[name], muon[name] * (0.5 if name in same else 1.0))


def test_fp32_iterations_give_singular_values_near_one() -> None:
    """The published range of five iterations, for matrices that are not ill-conditioned."""
    matrices = torch.randn(3, 64, 24, generator=torch.Generator().manual_seed(0))
    for values in torch.linalg.svdvals(orthogonalized(matrices, 5)):
        assert values.min() > 0.65 and values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert ((orthogonalized(matrices, 5) - u @ v).abs().max() / (u @ v).abs().max()) < 0.4


def test_which_parameters_are_several_matrices() -> None:
    shapes = {
        "attn.qkv.weight": (96, 32),
        "attn.kv.weight": (64, 32),
        "mlp.qkv.weight": (96, 32),
        "c.weight": (8, 3, 2, 2),
    }
    found = matrices_of(shapes | {"b": (3,)}, {"attn"})
    assert found == {
        "attn.qkv.weight": (3, 32, 32),
        "attn.kv.weight": (2, 32, 32),
        "mlp.qkv.weight": (1, 96, 32),
        "c.weight": (1, 8, 12),
    }
