"""The files of a Hugging Face folder: JSON, and tensors in one safetensors file or in several with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.errors import CheckpointError
from pretrain.models.interop import read_tensors

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
INDEX = f"{WEIGHTS}.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file does not exist or has other content.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; copy the complete folder") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error}); copy or export the folder again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(content).__name__}")
    return content


def read_folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder under its own name, on the CPU, in its saved type.

    Raises:
        CheckpointError: no weights, pickled or damaged ones, or files that do not hold the tensors of their index.
    """
    if (folder / INDEX).is_file():
        return _split(folder)
    pickled = folder / "pytorch_model.bin"
    if not (folder / WEIGHTS).exists() and pickled.exists():
        raise CheckpointError(
            f"{pickled}: pickled, and nothing is unpickled here: make {WEIGHTS} of it with transformers' "
            "save_pretrained, where you trust it"
        )
    return read_tensors(folder / WEIGHTS)[0]


def _split(folder: Path) -> dict[str, Tensor]:
    index = folder / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: has no weight_map of tensors and their files; copy or export the folder again")
    parts = {part: read_tensors(folder / Path(str(part)).name)[0] for part in sorted(set(places.values()))}
    for name, part in places.items():
        if name not in parts[part]:
            raise CheckpointError(f"{index}: tensor {name} should be in {part}, which lacks it; copy both files again")
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}
