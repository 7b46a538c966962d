"""Checkpoints of timm's training script: the file names the architecture, and keeps the script's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.data import resolve_data_config

from pretrain.models.exchange.timm_folder import Described

# Options of the script that decide how images become inputs, where they are given.
_PREPROCESSING = ("img_size", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def is_training(content: Any) -> bool:
    """Whether the content of a file is such a checkpoint, with the script's arguments."""
    if not isinstance(content, Mapping) or not hasattr(content.get("args"), "__dict__"):
        return False
    name = content.get("arch")
    return isinstance(name, str) and timm.is_model(name.partition(".")[0])


def described_in_training(content: Mapping[str, Any]) -> Described:
    """The model of a checkpoint, built as the script builds it."""
    options = vars(content["args"])
    known = timm.get_pretrained_cfg(content["arch"])
    assert known is not None, "see is_training"
    settings = known.to_dict(remove_source=True)
    given = {name: options[name] for name in _PREPROCESSING if options.get(name) not in (None, "")}
    settings |= resolve_data_config(given, pretrained_cfg=settings)
    if options.get("num_classes") is not None:
        settings["num_classes"] = options["num_classes"]
    arguments = dict(options.get("model_kwargs") or {})
    for name, argument in (("gp", "global_pool"), ("in_chans", "in_chans")):
        if options.get(name) is not None:
            arguments[argument] = options[name]
    return Described(content["arch"].partition(".")[0], arguments, settings)
