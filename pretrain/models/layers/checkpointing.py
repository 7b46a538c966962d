"""Activation checkpointing: which activations are kept for the backward pass, and which are recomputed.

Policies (``cluster.activation_checkpointing``):

  none       everything is kept.
  full       each block keeps only its input.
  every_k    (every_2, every_3, …) each k-th block keeps its input only, the others everything.
  selective  each block keeps its input and the outputs of its matrix products and of attention; norms, GELU, dropout
             and drop-path, which need no matrix product, are recomputed.

Every policy gives bitwise identical loss and gradients: dropout replays the generator's state and drop-path scales are
arguments. Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (1604.06174); Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models" (2205.05198), section 5, for the selective kind.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# By name, since not every build of torch has every kernel.
_KEPT_NAMES = (
    "mm", "addmm", "bmm", "baddbmm", "linear", "convolution",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
KEPT_OPERATIONS = frozenset(
    getattr(torch.ops.aten, name).default for name in _KEPT_NAMES if hasattr(torch.ops.aten, name)
)
# ZeRO-3 replaces dense layers (in the entire process, permanently) by a product and `output += bias`. The addition
# modifies the cached product in place, and repeating it would add the bias twice. Therefore its result, which is the
# same storage, is cached too.
_KEPT_IN_PLACE = frozenset({torch.ops.aten.add_.Tensor})


def block_policy(policy: str, index: int) -> str:
    """The policy of block ``index`` (from 0): none, full or selective."""
    if not policy.startswith("every_"):
        return policy
    return "none" if (index + 1) % int(policy.removeprefix("every_")) else "full"


def _keep(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in KEPT_OPERATIONS or operation in _KEPT_IN_PLACE
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def run_block(policy: str, block: Callable[..., Tensor], *args: Any, uses_rng: bool) -> Tensor:
    """Calls ``block(*args)`` and keeps the activations that the block's policy requires.

    Args:
        policy: none, full or selective (see ``block_policy``).
        block: a pure function of its arguments and, with ``uses_rng``, of torch's generator.
        *args: its arguments.
        uses_rng: the block draws random numbers; saving the generator's state costs a copy per block.
    """
    if policy == "none" or not torch.is_grad_enabled():
        return block(*args)
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": uses_rng}
    if policy == "selective":
        options["context_fn"] = functools.partial(
            create_selective_checkpoint_contexts, _keep, allow_cache_entry_mutation=True
        )
    return checkpoint(block, *args, **options)
