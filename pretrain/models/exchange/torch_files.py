"""Checkpoints of other training programs: files of ``torch.save``, and the wrappers around a model's tensors.

Of ``.pt``, ``.pth`` and ``.bin`` only tensors and plain values are loaded. Wrappers are dictionaries that hold the
tensors, and prefixes of their names.

Training scripts (timm's, DeiT's, MAE's) keep their arguments in an ``argparse.Namespace``. It is allowed: unpickling it
sets attributes and runs no code, and its attributes are held to the same rule.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".bin", ".tar", ".ckpt")
# Keys under which programs keep the model, the average before the weights themselves, as timm chooses.
CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
_PARALLEL, _COMPILED, _BODY = "module.", "_orig_mod.", "backbone."
_DEEPEST = 3


def load_pickled(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote; nothing but tensors and plain values is ever made of it.

    Raises:
        CheckpointError: no such file, a damaged one, or one that needs other objects.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; name a file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds objects other than tensors and plain values ({_objects(path)}), which could run any code "
            "when they are loaded; nothing is unpickled here: save its tensors with safetensors.torch.save_file(…)"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a complete file of torch.save ({str(error).splitlines()[0]}); copy it again"
        ) from error


def _objects(path: Path) -> str:
    try:
        return ", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(str(path))[:4]) or "unknown"
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return "unknown"


def unwrapped(content: Any, path: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    """The tensors of a model, by their own names; every wrapper that is taken off is named.

    Args:
        content: of a checkpoint: tensors, or dictionaries of them beside other things.
        path: for errors.
        say: called with each line for the user.

    Raises:
        CheckpointError: no tensors where a model is expected.
    """
    found = _inside(content, path, say)
    return _without_prefixes({name: each for name, each in found.items() if isinstance(each, Tensor)}, path, say)


def _inside(content: Any, path: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: holds a {type(content).__name__}, not the tensors of a model by name")
        known = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
        if not known:
            break
        others = f"; not read: {', '.join(map(str, content.keys() - {known[0]}))}" if len(content) > 1 else ""
        say(f"{path}: the tensors under {known[0]!r}{others}")
        content = content[known[0]]
    strange = [str(name) for name, each in content.items() if not isinstance(each, Tensor)]
    if not content or len(strange) == len(content):
        raise CheckpointError(
            f"{path}: no tensors in it: it has {', '.join(sorted(strange)[:8]) or 'nothing'}; the model is looked for "
            f"under {', '.join(CONTAINERS)}: save its state_dict alone"
        )
    if strange:
        raise CheckpointError(f"{path}: {strange[0]} is not a tensor ({len(strange)} such); save a state_dict alone")
    return content


def _without_prefixes(state: dict[str, Tensor], path: Path, say: Callable[[str], None]) -> dict[str, Tensor]:
    if any(_COMPILED in name for name in state):
        say(f"{path}: {_COMPILED!r} removed from the tensors' names")
        state = _renamed(state, path, lambda name: name.replace(_COMPILED, ""))
    while state and all(name.startswith(_PARALLEL) for name in state):
        say(f"{path}: {_PARALLEL!r} removed from the tensors' names")
        state = _renamed(state, path, lambda name: name.removeprefix(_PARALLEL))
    body = {name: tensor for name, tensor in state.items() if name.startswith(_BODY)}
    if body:
        left = sorted(state.keys() - body.keys())
        rest = f"; {len(left)} tensors beside it are left out, such as {left[0]}" if left else ""
        say(f"{path}: {_BODY!r} removed from the tensors' names{rest}")
        state = _renamed(body, path, lambda name: name.removeprefix(_BODY))
    return state


def _renamed(state: Mapping[str, Tensor], path: Path, rename: Callable[[str], str]) -> dict[str, Tensor]:
    renamed = {rename(name): tensor for name, tensor in state.items()}
    if len(renamed) != len(state):
        raise CheckpointError(f"{path}: two tensors have the same name without their prefixes; save one state_dict")
    return renamed
