"""Any image model of transformers as a backbone: a classifier, or an image tower with our head.

``body`` is transformers' own module, whose classifier is replaced by ``head``, so that every tensor of it has
transformers' name. The features are what its classifier sees: the pooled output of a tower, or its class token.
A tensor that does not reach the logits (a mask token) gets no gradient; it is kept as it is.

Legend: B images · C H W · K classes · R width of the features.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain import seeds
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.hf_classes import DROP_PATH, MARK, build_body
from pretrain.models.init import initial_value
from pretrain.models.layers.checkpointing import block_policy
from pretrain.models.layers.drop_path import drop_path_rates
from pretrain.models.layers.head import Fp32Linear
from pretrain.models.units import compile_units

NUM_CHANNELS = 3
BODY = "body."
# Blocks x + attention(norm(x)), then x + mlp(norm(x)), whose class has no drop path: it acts on the two branches.
_BRANCHES = ("attention", "self_attn", "mlp")
_PRE_NORM = frozenset({"ViTLayer", "ViTMSNLayer", "DeiTLayer", "IJepaLayer", "CLIPEncoderLayer", "SiglipEncoderLayer"})


class HfBackbone(nn.Module):
    """The interface of ``models.vit.VisionTransformer`` around a module of transformers.

    Attributes:
        config, num_classes: the arguments it was built from.
        body: transformers' module.
        head: fp32.
        classifier: the name of the layer of the class that ``head`` replaces; empty: the class is a tower.
    """

    has_two_heads = False

    def __init__(self, model: ModelConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = model, num_classes
        self.body = build_body(model)
        self.classifier, width = _take_classifier(self.body)
        self.head = Fp32Linear(width or _tower_width(model.model_dump_json()), num_classes)
        if model.drop_path and not hasattr(self.body.config, DROP_PATH):
            _add_drop_path(self.blocks(), model)

    def forward(self, images: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """fp32 logits (B, K) of normalised images (B, C, H, W); ``drop_path`` is None, masks are drawn inside."""
        assert drop_path is None, "the module draws its own drop-path masks"
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The features (B, R)."""
        return _features(self.body, images.to(next(self.parameters()).dtype))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """fp32 logits (B, K); with ``pre_logits`` the features themselves, in fp32."""
        return features.float() if pre_logits else self.head(features)

    def blocks(self) -> list[nn.Module]:
        """Its blocks in order: the innermost layers that transformers can checkpoint; none in some networks."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [layer for layer in self.body.modules() if isinstance(layer, GradientCheckpointingLayer)]
        return [
            layer
            for layer in layers
            if not any(isinstance(inner, GradientCheckpointingLayer) for inner in layer.modules() if inner is not layer)
        ]

    def set_grad_checkpointing(self, policy: bool | str = True) -> None:
        """Recomputes all blocks (True or ``full``), each k-th (``every_k``) or none.

        Raises:
            ConfigError: it has no blocks, or not that policy.
        """
        policy = {True: "full", False: "none"}[policy] if isinstance(policy, bool) else policy
        if not self.config.family.takes_policy(policy):
            raise ConfigError(
                f"cluster.activation_checkpointing: {policy} is for model.name: vit; transformers' models have none, "
                "every_2, every_3, … and full"
            )
        blocks = self.blocks()
        if policy != "none" and not blocks:
            raise ConfigError(
                f"cluster.activation_checkpointing: {self.config.name} has no blocks in transformers; set it to none "
                "and lower cluster.micro_batch_size"
            )
        for index, block in enumerate(blocks):
            layer: Any = block
            layer.gradient_checkpointing = block_policy(policy, index) == "full"
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)

    def layer_ids(self) -> dict[str, int]:
        """Parameter name → layer: 0 before the first block, i + 1 in block i and after it, the largest for the head.

        Raises:
            ConfigError: it has no blocks.
        """
        blocks = self.blocks()
        if not blocks:
            raise ConfigError(
                f"optim: {self.config.name} has no blocks in transformers; set layer_decay to null, and name to adamw, "
                "sgd, lamb or adafactor"
            )
        own = {id(p): index + 1 for index, block in enumerate(blocks) for p in block.parameters()}
        found, current = {}, 0
        for name, parameter in self.named_parameters():
            current = own.get(id(parameter), current)
            found[name] = current if name.startswith(BODY) else len(blocks) + 1
        return found

    def units(self) -> list[str]:
        """Names of the modules whose weights are gathered together where they are sharded: the blocks."""
        names = {id(module): name for name, module in self.named_modules()}
        return [names[id(block)] for block in self.blocks()]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """See ``units.compile_units``."""
        compile_units(self, backend)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Sets every tensor to its initial value for this seed: those of a model built unsharded on the CPU."""
        self.load_state_dict(initial_state(self.config, self.num_classes, seed), strict=True)


def build_hf(model: ModelConfig, num_classes: int) -> nn.Module:
    """The backbone that ``model.name`` names, on torch's default device; its weights do not depend on the seed yet.

    Raises:
        ConfigError: no such class, settings or an image size that it does not take.
    """
    unused = set(_checked(model.model_dump_json(), num_classes))  # a quick trial on the meta device
    net = create(model, num_classes)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in unused)
    return net


def create(model: ModelConfig, num_classes: int, seed: int = 0) -> HfBackbone:
    """As ``build_hf``, without the trial: all tensors ask for gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return HfBackbone(model, num_classes).train()


def initial_state(model: ModelConfig, num_classes: int, seed: int) -> dict[str, Tensor]:
    """Every initial tensor by name, fp32 on the CPU: a function of (seed, config). The body's are transformers'."""
    with torch.device("cpu"):
        state = create(model, num_classes, seeds.integer_seed(seed, "init", "hf")).state_dict()
        heads = [name for name in state if not name.startswith(BODY)]
        return state | {name: initial_value(name, tuple(state[name].shape), model, seed) for name in heads}


def uses_generator(net: nn.Module) -> bool:
    """Whether a training pass draws random numbers: dropout, drop path, or rotary positions that are augmented."""
    config = net.body.config  # type: ignore[union-attr]
    augmented = any(getattr(config, f"pos_embed_{kind}", None) for kind in ("shift", "jitter", "rescale"))
    return augmented or bool(net.config.dropout or net.config.drop_path) or any(map(_draws, net.modules()))  # type: ignore[union-attr]


def _draws(module: nn.Module) -> bool:
    rates = (getattr(module, name, 0.0) for name in ("p", "attention_dropout", "drop_prob"))
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _features(body: nn.Module, images: Tensor) -> Tensor:
    """The input of the class's own classifier, or the pooled output of the tower: (B, R)."""
    return pooled(body(pixel_values=images))


def pooled(out: Any) -> Tensor:
    """One vector per image of a network's output: logits, an embedding, pooled tokens, or else the class token."""
    for name in ("logits", "image_embeds", "pooler_output"):
        found = getattr(out, name, None)
        if found is not None:
            return found.flatten(1)
    return out.last_hidden_state[:, 0]


def _take_classifier(body: nn.Module) -> tuple[str, int]:
    """Removes the classifier; returns its name and the width of its input, or nothing and 0 for a tower."""
    found = [
        (name, layer.in_features)
        for name, layer in body.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == MARK
    ]
    if len(found) > 1 or (not found and type(body).__name__.endswith("Classification")):
        raise ConfigError(
            f"model.name: hf/{type(body).__name__} has {len(found)} dense classifiers, one is supported; choose "
            "another class"
        )
    if not found:
        return "", 0
    parent, _, leaf = found[0][0].rpartition(".")
    setattr(body.get_submodule(parent), leaf, nn.Identity())
    return found[0]


@functools.lru_cache(maxsize=64)
def _tower_width(key: str) -> int:
    """R of a tower, by a pass without values."""
    model = ModelConfig.model_validate_json(key)
    with torch.device("meta"), torch.random.fork_rng(devices=[]), torch.no_grad():
        body = build_body(model).eval()
        return _trial(functools.partial(_features, body), model, 1).shape[1]


def _trial(function: Any, model: ModelConfig, num_images: int) -> Tensor:
    height, width = model.size
    try:
        with torch.device("cpu"):  # BEiT keeps an index for all its networks of a size, which must not be on meta
            return function(torch.empty(num_images, NUM_CHANNELS, height, width, device="meta"))
    except (AssertionError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"model.img_size: {model.name} cannot take images of {height}×{width} pixels: {error}; choose another size"
        ) from error


@functools.lru_cache(maxsize=64)
def _checked(key: str, num_classes: int) -> tuple[str, ...]:
    """Names of the parameters that the logits do not depend on, after a trial pass without values.

    Raises:
        ConfigError: see ``build_hf``.
    """
    model = ModelConfig.model_validate_json(key)
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller computes
        with torch.device("meta"):
            net = create(model, num_classes)
        return _without_gradient(net, model, num_classes)


def _without_gradient(net: nn.Module, model: ModelConfig, num_classes: int) -> tuple[str, ...]:
    logits = _trial(net, model, 2)
    if tuple(logits.shape) != (2, num_classes):
        raise ConfigError(f"model.name: {model.name} gives {tuple(logits.shape)[1:]}, not {num_classes} logits")
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    return tuple(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)


def _add_drop_path(blocks: list[nn.Module], model: ModelConfig) -> None:
    """Stochastic depth for a class without it: each image's branch is dropped or scaled, at rates as in timm.

    Raises:
        ConfigError: its blocks are not pre-norm blocks with an attention and an MLP branch.
    """
    for block, rate in zip(blocks, drop_path_rates(model.drop_path, len(blocks)), strict=True):
        branches = [branch for name, branch in block.named_children() if name in _BRANCHES]
        if type(block).__name__ not in _PRE_NORM or len(branches) != 2:
            raise ConfigError(f"model.drop_path: {model.name} has none in transformers; remove it")
        for branch in branches:
            branch.register_forward_hook(functools.partial(_dropped, rate=float(rate)))


def _dropped(branch: nn.Module, inputs: Any, output: Any, *, rate: float) -> Any:
    if not branch.training or not rate:
        return output
    tensor, *rest = output if isinstance(output, tuple) else (output,)
    kept = torch.rand(tensor.shape[0], *[1] * (tensor.ndim - 1), device=tensor.device) >= rate
    scaled = tensor * (kept.to(tensor.dtype) / (1.0 - rate))
    return (scaled, *rest) if isinstance(output, tuple) else scaled
