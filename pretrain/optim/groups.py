"""Each tensor's learning rate and decay, decided by its name rather than its dimensions. Does not import torch.

Only kernels decay (big_vision: ``.*/kernel$``): the weights of dense and convolution layers. Class and register
tokens, position embeddings, norms and biases have other names and do not decay, although some have two dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pretrain.config.schema.optim.base import OptimConfig
from pretrain.config.schema.optim.overrides import OverrideConfig
from pretrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

# A kernel is the `weight` of a layer that is neither a norm nor an embedding table; tokens, tables and scales are plain
# parameters whose last name is not `weight`. `cpb_mlp` (Swin v2) and `pos_block` (Twins) compute positions; their
# authors exclude them.
_NOT_A_KERNEL = re.compile(
    r"(^|\.)(norm\w*|[a-z]+_norm|ln_\w+|[a-z]*pos(ition)?_embed\w*|rel(ative)?_pos\w*|pos_block|[a-z_]*token|cpb_mlp|continuous_position_bias_mlp)(\.|$)"
)


@dataclass(frozen=True)
class Rule:
    """How one tensor is trained.

    Attributes:
        kernel: whether it decays by default.
        lr_scale: factor on the schedule's learning rate.
        weight_decay: in the AdamW convention.
        frozen: whether it is excluded from training.
        complete: whether its update reads the complete tensor (see ``pretrain.optim.owned``).
    """

    kernel: bool
    lr_scale: float
    weight_decay: float
    frozen: bool = False
    complete: bool = False

    @property
    def group_name(self) -> str:
        """A name for the parameter group of all tensors with this rule."""
        kind = ("decay" if self.kernel else "no_decay") + (", complete" if self.complete else "")
        return kind if self.lr_scale == 1.0 else f"{kind}, lr × {self.lr_scale:.6g}"


def is_kernel(name: str, num_dimensions: int = 2) -> bool:
    """True if weight decay applies to the tensor.

    Args:
        name: the parameter's.
        num_dimensions: dimensions of the unsharded parameter. A one-dimensional weight is a scale whatever its layer is
            called (in ConvNeXt a norm is ``stem.1``); the converse does not hold, and the name decides.
    """
    return name.endswith(".weight") and num_dimensions > 1 and not _NOT_A_KERNEL.search(name)


def assign_rules(
    num_dimensions: Mapping[str, int],
    config: OptimConfig,
    layer_ids: Mapping[str, int] | None = None,
    frozen: Collection[str] = (),
) -> dict[str, Rule]:
    """The rule of every tensor.

    Args:
        num_dimensions: parameter name → number of dimensions of the unsharded tensor.
        config: decay, layer-wise decay and overrides.
        layer_ids: parameter name → layer, 0 for the stem and the largest for the head, if ``config.needs_layers``.
        frozen: names of tensors that are not trained whatever the overrides say; no override applies to them.

    Raises:
        ConfigError: an override matches no remaining tensor, or no tensor is trained.

    Source: layer-wise decay, ``layer_decay ** (last layer - layer)``: BEiT (2106.08254), its ``optim_factory``.
    """
    scales = dict.fromkeys(num_dimensions, 1.0)
    depths = _depths(layer_ids)
    if config.layer_decay is not None and depths:
        scales = {name: config.layer_decay ** depths[name] for name in num_dimensions}
    used: set[int] = set()
    rules: dict[str, Rule] = {}
    for name, dims in num_dimensions.items():
        kernel = is_kernel(name, dims)
        complete = config.updates_complete(hidden_kernel=kernel and depths.get(name) != 0)
        scale = scales[name] * (1.0 if complete else config.others_lr_scale)
        default = Rule(kernel, scale, config.weight_decay if kernel else 0.0, complete=complete)
        if name in frozen:
            rules[name] = replace(default, frozen=True)
            continue
        index = _first_match(name, config.overrides)
        used |= set() if index is None else {index}
        rules[name] = default if index is None else _overridden(default, config.overrides[index])
    _refuse_idle(config.overrides, used, [name for name in num_dimensions if name not in frozen])
    if all(rule.frozen for rule in rules.values()):
        raise ConfigError("optim.overrides: every parameter is frozen, nothing is left to train; narrow a pattern")
    return rules


def _depths(layer_ids: Mapping[str, int] | None) -> dict[str, int]:
    """Parameter name → layers above its own, 0 for the head; empty if they are not known."""
    if layer_ids is None:
        return {}
    last = max(layer_ids.values())
    return {name: last - layer for name, layer in layer_ids.items()}


def _first_match(name: str, overrides: Iterable[OverrideConfig]) -> int | None:
    matches = (index for index, override in enumerate(overrides) if re.search(override.pattern, name))
    return next(matches, None)


def _overridden(default: Rule, override: OverrideConfig) -> Rule:
    decay = default.weight_decay if override.weight_decay is None else override.weight_decay
    scale = default.lr_scale * (override.lr_scale or 1.0)
    return replace(default, lr_scale=scale, weight_decay=decay, frozen=override.freeze)


def _refuse_idle(overrides: tuple[OverrideConfig, ...], used: set[int], names: Iterable[str]) -> None:
    for index, override in enumerate(overrides):
        if index in used:
            continue
        if any(re.search(override.pattern, name) for name in names):
            raise ConfigError(
                f"optim.overrides: {override.pattern!r} would be ignored: an earlier pattern has taken each tensor "
                "that it is found in; put it first"
            )
        some = ", ".join(list(names)[:3])
        raise ConfigError(
            f"optim.overrides: {override.pattern!r} is found in no parameter's name (names are like {some}); correct "
            "it or remove it"
        )


def grouped(rules: Mapping[str, Rule]) -> dict[Rule, list[str]]:
    """Names of the trained parameters by rule: kernels first, then the rest, each in the order of the model."""
    groups: dict[Rule, list[str]] = {}
    for name, rule in rules.items():
        if not rule.frozen:
            groups.setdefault(rule, []).append(name)
    return dict(sorted(groups.items(), key=lambda item: not item[0].kernel))  # stable


def parameter_groups(named: Mapping[str, nn.Parameter], rules: Mapping[str, Rule]) -> list[dict[str, Any]]:
    """Trainable parameters in groups of equal rules.

    Returns:
        torch parameter groups with ``params``, ``weight_decay``, ``lr_scale``, ``complete`` and ``group_name``.
    """
    return [
        {
            "params": [named[name] for name in names],
            "weight_decay": rule.weight_decay,
            "lr_scale": rule.lr_scale,
            "complete": rule.complete,
            "group_name": rule.group_name,
        }
        for rule, names in grouped(rules).items()
    ]


def set_lr(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Gives every parameter group its learning rate for the next update.

    Args:
        groups: the optimiser's parameter groups.
        lr: the schedule's learning rate.
    """
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
