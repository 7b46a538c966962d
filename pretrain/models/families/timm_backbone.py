"""Any timm classifier as a backbone: Swin, PVT v2, ResNetV2 (BiT), DeiT and the rest of its models.

The module is timm's own, whose class is replaced by a dynamic subclass, so that every tensor keeps timm's name. This
file adds the interface of our models: weights that are a function of the seed, an fp32 head initialised by
``model.head_init`` and ``model.head_bias``, fp32 logits, and clear error messages.

A backbone is built unsharded on the CPU under its own generator, so every rank and world size has the same weights.

Legend: B images · C H W · K classes.
"""

from __future__ import annotations

import difflib
import functools
import re
from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from pretrain import seeds
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.models.families.timm_shapes import shapes_only
from pretrain.models.layers.head import Fp32Conv2d, Fp32Linear
from pretrain.models.units import compile_units, listed_blocks

_NUM_CHANNELS = 3


class TimmBackbone(nn.Module):
    """Mixed into a timm class (see ``_adopt``): the interface of ``models.vit.VisionTransformer``.

    Attributes:
        config, num_classes: the arguments it was built from.
        has_two_heads: DeiT's distilled models: class head and distillation head.
        uses_generator: dropout or stochastic depth draw from torch's generator, which the engine reseeds.
    """

    config: ModelConfig
    num_classes: int
    has_two_heads: bool
    uses_generator: bool

    def forward(self, images: Tensor, drop_path: Tensor | None = None, *, separate_heads: bool = False) -> Tensor:
        """fp32 logits (B, K); with ``separate_heads`` those of each head, (B, 2, K).

        Args:
            images: normalised floats (B, C, H, W) of the config's size.
            drop_path: None; timm's stochastic depth draws its own masks.
            separate_heads: only with ``has_two_heads``.
        """
        assert drop_path is None, "timm draws its own drop-path masks"
        images = images.to(next(self.parameters()).dtype)
        if not self.has_two_heads:
            assert not separate_heads, "this backbone has one head"
            return super().forward(images).float()
        tokens = self.forward_features(images)  # type: ignore[operator]
        logits = torch.stack([self.head(tokens[:, 0]), self.head_dist(tokens[:, 1])], dim=1)  # type: ignore[operator]
        return logits if separate_heads else logits.mean(1)

    def set_grad_checkpointing(self, policy: bool | str = True) -> None:
        """Turns timm's own activation checkpointing on (True or ``full``) or off.

        Raises:
            ConfigError: this backbone does not support it, or not that policy.
        """
        if isinstance(policy, str) and policy not in ("none", "full"):
            raise ConfigError(
                f"cluster.activation_checkpointing: {policy} is for model.name: vit; timm's models have none and full"
            )
        enable = policy is True or policy == "full"
        parent = getattr(super(), "set_grad_checkpointing", None)
        try:
            if parent is not None:
                parent(enable)
                return
        except AssertionError:
            if not enable:
                return
        if enable:
            raise ConfigError(
                f"cluster.activation_checkpointing: {self.config.name} has none in timm; set it to none and lower "
                "cluster.micro_batch_size"
            )

    def layer_ids(self) -> dict[str, int]:
        """Parameter name → layer, 0 for the stem and the largest for the head: timm's own grouping.

        Raises:
            ConfigError: timm does not group the layers of this architecture.
        """
        if not hasattr(self, "group_matcher"):
            raise ConfigError(
                f"optim: timm knows no layers of {self.config.name}; set layer_decay to null, and name to adamw, sgd, "
                "lamb or adafactor"
            )
        matcher = self.group_matcher(coarse=False)  # type: ignore[operator]
        return group_parameters(self, matcher, reverse=True)  # type: ignore[return-value]

    def units(self) -> list[str]:
        """Names of the modules whose weights are gathered together where they are sharded."""
        return listed_blocks(self)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """See ``units.compile_units``."""
        compile_units(self, backend)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Sets every tensor to its initial value for this seed: those of a model built unsharded on the CPU."""
        self.load_state_dict(initial_state(self.config, self.num_classes, seed), strict=True)


def build_timm(model: ModelConfig, num_classes: int) -> nn.Module:
    """The backbone that ``model.name`` names, on torch's default device; its weights do not depend on the seed yet.

    Raises:
        ConfigError: no such model in timm, settings that it does not take, or another resolution than it can have.
    """
    tensor_shapes(model, num_classes)  # a quick trial on the meta device, with clear errors
    return _create(model, num_classes, seed=0)


def build_frozen(model: ModelConfig, num_classes: int) -> nn.Module:
    """As ``build_timm``, for inference only and without a trial forward pass."""
    return _create(model, num_classes)


def initial_state(model: ModelConfig, num_classes: int, seed: int) -> dict[str, Tensor]:
    """Every initial tensor by name, fp32 on the CPU: a function of (seed, config)."""
    with torch.device("cpu"):
        return _create(model, num_classes, seeds.integer_seed(seed, "init", "timm")).state_dict()


def tensor_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a backbone, running statistics included, without its memory.

    Raises:
        ConfigError: as ``build_timm``.
    """
    return dict(_checked_shapes(model.model_dump_json(), num_classes))


def frozen_shapes(model: ModelConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """As ``tensor_shapes``, without a trial forward pass, for inference."""
    with shapes_only():
        return {name: tuple(tensor.shape) for name, tensor in _create(model, num_classes).state_dict().items()}


def has_img_size(model: ModelConfig) -> bool:
    """Whether the architecture is built for one resolution."""
    with shapes_only():
        return "img_size" in _call_timm(model, 2)[1]


def classifiers(net: nn.Module) -> list[nn.Module]:
    """The last layers of a backbone: one, or two of a distilled model."""
    found = net.get_classifier()  # type: ignore[operator]
    layers = [layer for layer in (found if isinstance(found, tuple) else (found,)) if isinstance(layer, nn.Module)]
    return [getattr(layer, "fc", layer) for layer in layers]  # some return the block around the dense layer


def patch_features(net: nn.Module, images: Tensor) -> Tensor:
    """The last feature map (B, D, h, w), after the norm before the pooling, or the one after it where that is all.

    Raises:
        ConfigError: timm does not give intermediate features of this architecture in that form.
    """
    config: ModelConfig = net.config  # type: ignore[assignment]
    try:
        options = {"indices": 1, "norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        found = net.forward_intermediates(images, **options)[-1]  # type: ignore[operator]
    except (AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"model.name: timm gives no normed feature map of {config.name} ({error}); choose another network"
        ) from error
    norm = getattr(net, "fc_norm", None)  # timm's Vision Transformers have one of the two
    if isinstance(norm, nn.Module) and isinstance(getattr(net, "norm", None), nn.Identity):
        found = norm(found.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return found


def head_tensors(net: nn.Module) -> set[str]:
    """Names of the tensors of the classifiers, which a new task replaces."""
    own = {id(parameter) for layer in classifiers(net) for parameter in layer.parameters()}
    return {name for name, parameter in net.named_parameters() if id(parameter) in own}


# ── building ──


def _create(model: ModelConfig, num_classes: int, seed: int | None = None) -> nn.Module:
    """A backbone whose weights are a function of the seed; None: they are going to be replaced."""
    _refuse_unknown(model.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)
        net, _ = _call_timm(model, num_classes)
        for layer in classifiers(net) if seed is not None else ():
            _start_head(layer, model)
    return _adopt(net, model, num_classes)


def _call_timm(model: ModelConfig, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """timm's constructor, without those of our settings that the architecture has no argument for.

    A network that takes any resolution has no argument for it (it is tried in ``_checked_shapes``).

    Returns:
        The model, and our settings that it took.
    """
    ours: dict[str, Any] = {"img_size": model.img_size, "drop_rate": model.dropout, "drop_path_rate": model.drop_path}
    given = {key: _as_tuples(value) for key, value in model.kwargs.items()}
    while True:
        try:
            name, settings = timm_name(model.name), {"num_classes": num_classes, **ours, **given}
            return timm.create_model(name, pretrained=False, **settings), ours
        except TypeError as error:
            said = str(error).partition("unexpected keyword argument")[2]
            unknown = re.findall(r"'(\w+)'", said)
            foreign = [key for key in unknown if key not in ours]
            if foreign or not unknown:
                key = f"model.kwargs.{foreign[0]}" if foreign else "model.kwargs"
                raise ConfigError(
                    f"{key}: {model.name} refuses it in timm: {error}; see timm's documentation"
                ) from error
            for key, setting in (("drop_rate", "dropout"), ("drop_path_rate", "drop_path")):
                if key in unknown and ours[key]:
                    raise ConfigError(f"model.{setting}: {model.name} has none in timm; remove it") from error
            ours = {key: value for key, value in ours.items() if key not in unknown}
        except (AssertionError, ValueError, RuntimeError, KeyError, IndexError) as error:
            what = str(error) or type(error).__name__
            raise ConfigError(
                f"model: timm cannot build {model.name} at {model.img_size} pixels with {model.kwargs or 'no kwargs'}: "
                f"{what}; change model.img_size or model.kwargs"
            ) from error


def _refuse_unknown(name: str) -> None:
    wanted = timm_name(name)
    if "." in wanted or ":" in wanted:
        raise ConfigError(
            f"model.name: {name} names pretrained weights, which would be ignored; write timm/"
            f"{wanted.split(':')[-1].split('/')[-1].partition('.')[0]} and name weights in init.from"
        )
    if not timm.is_model(wanted):
        near = difflib.get_close_matches(wanted, timm.list_models(), n=3, cutoff=0.5)
        hint = f"; did you mean timm/{' or timm/'.join(near)}?" if near else "; timm.list_models() prints all"
        raise ConfigError(f"model.name: timm has no {wanted!r}{hint}")


def timm_name(name: str) -> str:
    """timm's name of a ``model.name``."""
    return name.removeprefix("timm/")


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _start_head(layer: nn.Module, model: ModelConfig) -> None:
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(weight, Tensor):
        raise ConfigError(
            f"model.name: the classifier of {model.name} is a {type(layer).__name__} without a weight, which cannot be "
            "initialised; choose another backbone"
        )
    if bias is None and model.head_bias:
        raise ConfigError(f"model.head_bias: the classifier of {model.name} has no bias; set it to 0")
    with torch.no_grad():
        weight.zero_() if model.head_init == "zero" else weight.normal_(0.0, 0.01)
        if bias is not None:
            bias.fill_(model.head_bias)


def _adopt(net: nn.Module, model: ModelConfig, num_classes: int) -> nn.Module:
    """Gives a timm model our interface: its class becomes a subclass of ``TimmBackbone`` and of its own class.

    A wrapper with the model inside would put a prefix before every tensor's name.
    """
    for layer in classifiers(net):
        if type(layer) is nn.Linear:
            layer.__class__ = Fp32Linear
        elif type(layer) is nn.Conv2d:
            layer.__class__ = Fp32Conv2d
    net.__class__ = _subclass(type(net))
    assert isinstance(net, TimmBackbone)
    net.config, net.num_classes = model, num_classes
    net.has_two_heads = isinstance(net, VisionTransformerDistilled)
    net.uses_generator = any(_draws(module) for module in net.modules())
    return net


@functools.cache
def _subclass(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Timm{kind.__name__}", (TimmBackbone, kind), {})


def _draws(module: nn.Module) -> bool:
    rate = module.drop_prob if isinstance(module, DropPath) else getattr(module, "p", 0.0)
    is_dropout = isinstance(module, nn.modules.dropout._DropoutNd | DropPath)
    return is_dropout and isinstance(rate, float | int) and rate > 0


@functools.lru_cache(maxsize=64)
def _checked_shapes(key: str, num_classes: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    model = ModelConfig.model_validate_json(key)
    with shapes_only():
        net = _create(model, num_classes, seed=0)
        _try_forward(net.eval(), model, num_classes)
    return tuple((name, tuple(tensor.shape)) for name, tensor in net.state_dict().items())


def _try_forward(net: nn.Module, model: ModelConfig, num_classes: int) -> None:
    height, width = model.size
    try:
        shape = tuple(net(torch.empty(2, _NUM_CHANNELS, height, width, device="meta")).shape)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"model.img_size: {model.name} cannot take images of {height}×{width} pixels: {error}; choose another size"
        ) from error
    if shape != (2, num_classes):
        raise ConfigError(
            f"model.kwargs: with these settings {model.name} gives {shape[1:]} per image, not {num_classes} logits; "
            "set model.kwargs.global_pool to a pooling that the architecture has, such as avg"
        )
