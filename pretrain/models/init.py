"""Initial weights, drawn for each tensor from its own generator by name.

The order of initialisation, device, type and sharding do not matter: a rank that holds one tensor computes the same
values as a process that initialises all. A tensor without a rule is an error and never left uninitialised.

Source: google-research/vision_transformer, models/vit.py: xavier_uniform in attention and MLP, MLP bias normal(1e-6),
other biases 0, patch convolution and tanh layer lecun_normal (flax's default), position embedding normal(0.02), class
token 0, head 0. The normal(0.01) head is the other kind that ``model.head_init`` offers. Hybrid (models_resnet.py):
convolutions lecun_normal, the last norm of each bottleneck 0. Attention pooling (big_vision, models/vit.py): query
token xavier_uniform over (1, D), its dense layers as a block's. Registers, relative tables: normal(0.02), as timm.
Mixed rotary frequencies: RoPE-ViT (2403.13298) and its code, a random angle for each head of each block. A decoder: as
a model of its own; its first and last layer xavier_uniform, as MAE's code.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pretrain import seeds
from pretrain.config.schema.model import ModelConfig
from pretrain.models.tensor_shapes import DECODER, parameter_shapes
from pretrain.models.variants import decoder_model, rope_temperature

Shape = tuple[int, ...]
Rule = Callable[[Shape, torch.Generator, ModelConfig], Tensor]

# A standard normal cut at ±2 has this standard deviation. Source: jax.nn.initializers.variance_scaling.
_TRUNCATED_STD = 0.87962566103423978


def _constant(value: float) -> Rule:
    return lambda shape, generator, model: torch.full(shape, value)


def _normal(std: float) -> Rule:
    return lambda shape, generator, model: torch.empty(shape).normal_(0.0, std, generator=generator)


def _xavier_uniform(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(shape), generator=generator)


def _qkv_xavier_uniform(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    """q, k and v each as a separate (D, D) matrix: on the fused (3D, D) the bound would be √2 too small."""
    third = (shape[0] // 3, shape[1])
    return torch.cat([_xavier_uniform(third, generator, model) for _ in "qkv"])


def _fc1_xavier_uniform(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    """The gate and the value of SwiGLU each as a separate (M, D) matrix."""
    parts = 2 if model.mlp == "swiglu" else 1
    each = (shape[0] // parts, shape[1])
    return torch.cat([_xavier_uniform(each, generator, model) for _ in range(parts)])


def _mixed_frequencies(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    """(2, L, A, E/2): axial frequencies b^(−k / (E/4)) on two perpendicular axes, turned by an angle of each head."""
    quarter = shape[-1] // 2
    sizes = rope_temperature(model) ** -(torch.arange(quarter) / quarter)
    angles = torch.rand(*shape[1:3], 1, generator=generator) * 2 * math.pi
    angles = torch.cat([angles, angles + math.pi / 2], dim=-1).repeat_interleave(quarter, dim=-1)
    return torch.stack([angles.cos(), angles.sin()]) * sizes.repeat(2)


def _in_proj_xavier_uniform(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    """The MLP's first matrix (M, D), then q, k and v, each as a separate (D, D) matrix."""
    width = shape[1]
    parts = [(shape[0] - 3 * width, width), *[(width, width)] * 3]
    return torch.cat([_xavier_uniform(part, generator, model) for part in parts])


def _kv_xavier_uniform(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    half = (shape[0] // 2, shape[1])
    return torch.cat([_xavier_uniform(half, generator, model) for _ in "kv"])


def _probe_xavier_uniform(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    """The query token (1, 1, D) as flax sees it, a matrix from 1 to D channels: uniform within √(6 / (1 + D))."""
    return _xavier_uniform(shape[1:], generator, model).reshape(shape)


def _layer_scale(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    assert model.layer_scale is not None
    return torch.full(shape, model.layer_scale)


def _lecun_normal(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    """A normal of variance 1 / fan_in after being cut at two standard deviations."""
    std = 1.0 / math.sqrt(math.prod(shape[1:])) / _TRUNCATED_STD
    return nn.init.trunc_normal_(torch.empty(shape), 0.0, std, -2 * std, 2 * std, generator=generator)


def _head_weight(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    return (_constant(0.0) if model.head_init == "zero" else _normal(0.01))(shape, generator, model)


def _head_bias(shape: Shape, generator: torch.Generator, model: ModelConfig) -> Tensor:
    return torch.full(shape, model.head_bias)


RULES: dict[str, Rule] = {
    # full match of the tensor's name → initialiser
    r"cls_token":                                  _constant(0.0),
    r"dist_token|mask_token|reg_token":            _normal(0.02),
    r"(blocks\.\d+\.)?pos_embed(\.row|\.column)?": _normal(0.02),
    r"(blocks\.\d+\.attn\.rel_pos|shared_rel_pos)\.(relative_position_bias_table|relative_keys)": _normal(0.02),
    r"patch_embed\.backbone\..*conv\d?\.weight":   _lecun_normal,
    r"patch_embed\.backbone\..*norm[12]?\.weight": _constant(1.0),
    r"patch_embed\.backbone\..*norm3\.weight":     _constant(0.0),
    r"patch_embed\.backbone\..*norm\d?\.bias":     _constant(0.0),
    r"patch_embed\.proj\.weight":                  _lecun_normal,
    r"patch_embed\.proj\.bias":                    _constant(0.0),
    r"(blocks\.\d+\.(norm[12]|in_norm)|norm|fc_norm)\.weight": _constant(1.0),
    r"(blocks\.\d+\.(norm[12]|in_norm)|norm|fc_norm)\.bias": _constant(0.0),
    r"blocks\.\d+\.attn\.qkv\.weight":             _qkv_xavier_uniform,
    r"blocks\.\d+\.(attn\.)?[qk]_norm\.weight":       _constant(1.0),
    r"blocks\.\d+\.(attn\.)?[qk]_norm\.bias":         _constant(0.0),
    r"blocks\.\d+\.ls[12]?\.gamma":                 _layer_scale,
    r"blocks\.\d+\.attn\.(gate|proj)\.weight":     _xavier_uniform,
    r"blocks\.\d+\.attn\.(qkv|gate|proj)\.bias":   _constant(0.0),
    r"blocks\.\d+\.mlp\.fc1\.weight":              _fc1_xavier_uniform,
    r"blocks\.\d+\.mlp\.fc2\.weight":              _xavier_uniform,
    r"blocks\.\d+\.in_proj\.weight":               _in_proj_xavier_uniform,
    r"blocks\.\d+\.(attn|mlp)_out_proj\.weight":   _xavier_uniform,
    r"blocks\.\d+\.(in|attn_out|mlp_out)_proj\.bias": _constant(0.0),
    r"rope\.freqs":                               _mixed_frequencies,
    r"blocks\.\d+\.mlp\.fc[12]\.bias":             _normal(1e-6),
    r"attn_pool\.latent":                          _probe_xavier_uniform,
    r"attn_pool\.kv\.weight":                      _kv_xavier_uniform,
    r"attn_pool\.(q|proj|mlp\.fc[12])\.weight":    _xavier_uniform,
    r"attn_pool\.(q|kv|proj|norm)\.bias":          _constant(0.0),
    r"attn_pool\.norm\.weight":                    _constant(1.0),
    r"attn_pool\.mlp\.fc[12]\.bias":               _normal(1e-6),
    r"pre_logits\.fc\.weight":                     _lecun_normal,
    r"pre_logits\.fc\.bias":                       _constant(0.0),
    r"head(_dist|_patches)?\.weight":              _head_weight,
    r"head(_dist|_patches)?\.bias":                _head_bias,
    r"(embed|pred)\.weight":                       _xavier_uniform,
    r"(embed|pred)\.bias":                         _constant(0.0),
}  # fmt: skip


def initial_value(name: str, shape: Shape, model: ModelConfig, seed: int) -> Tensor:
    """The initial value of one tensor, fp32 on the CPU: a function of (seed, name, shape, config).

    Raises:
        LookupError: no rule or several rules match the name; a new tensor needs exactly one.
    """
    config, own = (decoder_model(model), name[len(DECODER) :]) if name.startswith(DECODER) else (model, name)
    rules = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, own)]
    if len(rules) != 1:
        raise LookupError(f"{len(rules)} rules of pretrain/models/init.py explain the tensor {name!r}; add exactly one")
    generator = torch.Generator().manual_seed(seeds.integer_seed(seed, "init", name))
    with torch.device("cpu"):
        return rules[0](tuple(shape), generator, config)


def initial_state(model: ModelConfig, num_classes: int, seed: int) -> dict[str, Tensor]:
    """Every initial tensor by name, fp32 on the CPU, without building the model."""
    return {
        name: initial_value(name, shape, model, seed) for name, shape in parameter_shapes(model, num_classes).items()
    }


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Sets every parameter and buffer of an unsharded model to its initial value, in its type and device.

    Args:
        model: has ``config``, the ModelConfig that it was built from.
        seed: the experiment's seed.

    Raises:
        LookupError: no rule matches one of the tensors.
    """
    config = model.config
    assert isinstance(config, ModelConfig)
    for name, tensor in model.state_dict().items():
        tensor.copy_(initial_value(name, tuple(tensor.shape), config, seed))


def tensor_digest(tensor: Tensor) -> str:
    """A short hash of a tensor's type, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    content = hashlib.blake2b(f"{data.dtype}{tuple(data.shape)}".encode(), digest_size=8)
    content.update(data.flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()


def digest(tensors: nn.Module | Mapping[str, Tensor]) -> dict[str, str]:
    """Name → short hash of every tensor of a model or of a state dict."""
    state = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    return {name: tensor_digest(tensor) for name, tensor in state.items()}
