"""Parameter groups: which tensors decay, decided by their name and never by their number of dimensions.

Only kernels decay (big_vision: ``.*/kernel$``): the weights of dense and convolution layers. Class and register
tokens, position embeddings, norms and biases have names of their own and do not, although some have two dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

# A kernel is the `weight` of a layer that is no norm and no embedding table; tokens, tables and scales are plain
# parameters whose last name is not `weight`. `cpb_mlp` (Swin v2) and `pos_block` (Twins) make positions: their authors
# exclude them.
_NOT_A_KERNEL = re.compile(
    r"(^|\.)(norm\w*|[a-z]+_norm|ln_\w+|[a-z]*pos_embed\w*|rel(ative)?_pos\w*|pos_block|[a-z_]*token|cpb_mlp)(\.|$)"
)


def is_kernel(name: str, num_dimensions: int = 2) -> bool:
    """True for a tensor that weight decay applies to.

    Args:
        name: the parameter's.
        num_dimensions: of the whole parameter. A weight of one dimension is a scale whatever its layer is called (in
            ConvNeXt a norm is ``stem.1``); the opposite does not hold, and the name decides.
    """
    return name.endswith(".weight") and num_dimensions > 1 and not _NOT_A_KERNEL.search(name)


def parameter_groups(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Splits trainable parameters into a group that decays and one that does not; an empty group is left out.

    Returns:
        torch parameter groups with ``params``, ``weight_decay`` and ``group_name``, in a fixed order.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (decay if is_kernel(name, parameter.ndim) else rest).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "group_name": "decay"},
        {"params": rest, "weight_decay": 0.0, "group_name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]
