"""The modules of a network that are gathered together when weights are sharded, and compiled one by one: its blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

from pretrain.errors import ConfigError

GRAPHS_PER_UNIT = 2  # the probe batch of a checkpoint, and evaluation; training adds one for each size of images

_LISTS = (nn.ModuleList, nn.Sequential)


def listed_blocks(net: nn.Module) -> list[str]:
    """Names of the innermost blocks of any network, in its order: members of a list, of several layers each.

    A block that shares a parameter with another module is none, since gathering and releasing it would concern both.
    """
    uses = Counter(id(parameter) for _, parameter in net.named_parameters(remove_duplicate=False))
    modules = dict(net.named_modules())
    found: list[str] = []
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]] if name else None
        is_member = isinstance(parent, _LISTS) and not isinstance(module, _LISTS)
        if is_member and _num_layers(module) > 1 and all(uses[id(each)] == 1 for each in module.parameters()):
            found.append(name)
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _num_layers(module: nn.Module) -> int:
    """Number of its modules that own parameters directly."""
    return sum(any(True for _ in each.parameters(recurse=False)) for each in module.modules())


def compile_units(
    net: nn.Module, backend: str, around: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
) -> None:
    """Compiles the forward pass of every block with static shapes, each as one graph or with an error.

    Call it after an engine has wrapped the model. The engine's hooks, which gather weights, stay outside the graphs.
    Names, weights and state dict are unchanged; a batch of another size triggers another compilation.

    Args:
        net: a network with ``units()``; one of several sizes of images has ``num_sizes`` (``registry.accept_sizes``).
        backend: of ``torch.compile``.
        around: forward pass of a block → what is compiled in its place.

    Raises:
        ConfigError: the network has no blocks.
    """
    units: list[str] = net.units()  # type: ignore[operator]
    if not units:
        raise ConfigError(f"cluster.compile: {net.config.name} has no blocks that are known; set it to false")  # type: ignore[union-attr]
    # Blocks of one class share Dynamo's cache, in which each shape and mode is an entry; above the limit it would fail.
    num_graphs = (GRAPHS_PER_UNIT + getattr(net, "num_sizes", 1)) * len(units)
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, num_graphs)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, num_graphs)
    for name in units:
        module: Any = net.get_submodule(name)
        forward: Callable[..., Any] = MethodType(type(module).forward, module)
        forward = forward if around is None else around(forward)
        module.forward = torch.compile(forward, backend=backend, dynamic=False, fullgraph=True)
