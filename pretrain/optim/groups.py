"""Parameter groups: which tensors decay, decided by their name and never by their number of dimensions.

Only kernels decay (big_vision: ``.*/kernel$``): the weights of dense and convolution layers. Class and register
tokens, position embeddings, norms and biases have names of their own and do not, although some have two dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

# A kernel is the `weight` of a layer that is no norm and no embedding table; tokens and tables are plain parameters
# whose last name is not `weight`.
_NOT_A_KERNEL = re.compile(r"(^|\.)(norm\d*|fc_norm|norm_pre|q_norm|k_norm|pos_embed|[a-z_]*token)(\.|$)")


def is_kernel(name: str) -> bool:
    """True for a tensor that weight decay applies to."""
    return name.endswith(".weight") and not _NOT_A_KERNEL.search(name)


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Splits trainable parameters into a group that decays and one that does not; an empty group is left out.

    Returns:
        torch parameter groups with ``params``, ``weight_decay`` and ``group_name``, in a fixed order.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (decay if is_kernel(name) else rest).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "group_name": "decay"},
        {"params": rest, "weight_decay": 0.0, "group_name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]
