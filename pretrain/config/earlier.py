"""The settings of a model as earlier versions wrote them into run folders and weights files, in today's words.

Before rotary positions had the key ``rope``, they were ``pos_embed: rope_2d``, and every model had the keys of
``NOT_ROTARY``, which had an effect with ``rope_2d`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pretrain.config.tree import Leaf, Section

NOT_ROTARY = ("rope_temperature", "rope_grid")


def model_of_today(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings, from any version, as this version writes them."""
    if "rope" in model or "pos_embed" not in model:
        return dict(model)
    if model["pos_embed"] == "rope_2d":
        return {**model, "pos_embed": "none", "rope": "axial"}
    return {key: value for key, value in model.items() if key not in NOT_ROTARY}


def settings_of_today(settings: Section) -> Section:
    """A saved experiment, from any version, as this version writes it."""
    model = settings.children.get("model")
    if not isinstance(model, Section):
        return settings
    texts = {key: node.text if isinstance(node, Leaf) else None for key, node in model.children.items()}
    children = {
        key: model.children[key] if text == texts.get(key, "") else Leaf(text, True, model.where)
        for key, text in model_of_today(texts).items()
    }
    return Section({**settings.children, "model": Section(children, model.where)}, settings.where)
