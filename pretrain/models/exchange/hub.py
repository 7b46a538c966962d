"""Weights by name: the repository ``hf/OWNER/NAME`` of huggingface.co, or ``timm/NAME.TAG`` as timm calls its own.

They are found in the hub's cache, or downloaded: only config.json, the preprocessing and safetensors; nothing in them
is run. Imports torch only for a name of timm.
"""

from __future__ import annotations

import re
from pathlib import Path

from pretrain.errors import SetupError

FILES = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")
_NAME = re.compile(r"hf/([\w.-]+/[\w.-]+)")
_TIMM_NAME = re.compile(r"timm/(\w+(\.\w+)?)")


def local(source: str | Path) -> Path:
    """The path of weights on this machine; a repository is first looked up in the cache, then downloaded.

    A path that exists is itself, whatever its name is. ``timm/NAME`` without a tag means the weights that
    ``timm.create_model(NAME, pretrained=True)`` loads.

    Raises:
        SetupError: the repository cannot be reached, does not exist, or has no weights of that name.
    """
    path, text = Path(source), str(source).rstrip("/")
    if path.exists():
        return path
    if (match := _NAME.fullmatch(text)) is not None:
        return _repository(text, match[1], FILES)
    if (match := _TIMM_NAME.fullmatch(text)) is not None:
        from pretrain.models.exchange.timm_names import FILES as OF_TIMM
        from pretrain.models.exchange.timm_names import repository_of, require_architecture

        folder = _repository(text, repository_of(match[1]), OF_TIMM)
        require_architecture(folder, match[1])
        return folder
    return path


def _repository(source: str, repository: str, files: tuple[str, ...]) -> Path:
    """The folder with ``files`` of a repository.

    Raises:
        SetupError: it is not in the cache, and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    problem = ""
    for cached in (True, False):
        try:
            folder = Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=cached))
        except Exception as error:  # of the hub, of its HTTP client, or of the disk
            problem = type(error).__name__
            continue
        # A library that knows the config, as timm does, leaves only the weights in the cache.
        missing = [pattern for pattern in ("config.json", "*.safetensors") if not any(folder.glob(pattern))]
        if not missing:
            return folder
        problem = f"{folder} has no {' and no '.join(missing)}"
    include = " ".join(f"--include '{pattern}'" for pattern in files)
    raise SetupError(
        f"{source}: no folder of that name is here, and the repository {repository} cannot be downloaded from "
        f"huggingface.co ({problem}). On a machine with a network run\n"
        f"  hf download {repository} {include} --local-dir {repository.rpartition('/')[2]}\n"
        "copy that folder here, and name the folder instead"
    )
