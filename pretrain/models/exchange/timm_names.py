"""Which repository of huggingface.co has the pretrained weights that timm calls ``NAME`` or ``NAME.TAG``."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs, get_deprecated_models, is_model

from pretrain.errors import SetupError
from pretrain.models.exchange.huggingface_folder import CONFIG, read_json

FILES = (CONFIG, "model.safetensors")  # a repository of CLIP also has a copy in the layout of OpenCLIP


def repository_of(name: str) -> str:
    """OWNER/REPOSITORY of pretrained weights; without a tag, of those that timm takes for the architecture.

    Raises:
        SetupError: timm does not know the name, or the weights are not on huggingface.co.
    """
    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f"; did you mean timm/{' or timm/'.join(near)}?" if near else "; timm.list_pretrained() lists them"
        raise SetupError(f"timm/{name}: no folder of that name is here, nor an architecture of timm{hint}")
    if (now := get_deprecated_models().get(architecture)) is not None:
        raise SetupError(f"timm/{name}: timm calls these weights {now} today; name timm/{now}")
    known: dict[str, Any] = {
        one.partition(".")[2]: config for one, config in get_arch_pretrained_cfgs(architecture).items()
    }
    tags = [one for one, config in known.items() if config.has_weights]
    chosen = tag or next(iter(known), "")  # timm's own default is the first
    if chosen not in tags:
        allowed = f"choose timm/{architecture}.TAG with TAG one of {', '.join(tags)}" if tags else "choose another name"
        raise SetupError(
            f"timm/{name}: timm {timm.__version__} has no pretrained weights {chosen!r} of {architecture}; {allowed} "
            "(timm.list_pretrained()), or name a newer repository as hf/timm/NAME.TAG"
        )
    config = known[chosen]
    if config.hf_hub_id is None:
        raise SetupError(
            f"timm/{name}: timm downloads these weights from {config.url}, not from huggingface.co; put that file into "
            f'a folder with a {CONFIG} that says {{"architecture": "{architecture}.{chosen}"}}, and name the folder'
        )
    return config.hf_hub_id


def require_architecture(folder: Path, name: str) -> None:
    """Checks that a repository describes the architecture that was asked for: some share the tensors of another.

    Raises:
        SetupError: another one, which would compute something else from the same tensors.
        CheckpointError: ``config.json`` is damaged.
    """
    wanted, found = name.partition(".")[0], read_json(folder / CONFIG).get("architecture")
    if found != wanted:
        raise SetupError(
            f"timm/{name}: {CONFIG} of the repository describes {found}, not {wanted}, whose tensors have the same "
            f'names; copy {folder} to a folder of your own, write "architecture": "{wanted}" into its {CONFIG} (and '
            "take its model_args out), and name that folder"
        )
