"""The model of a timm folder, built by timm, and its tensors as timm itself would load them.

Tensors under the names and shapes of timm's module are taken as they are. Any other layout (the authors' own release,
another grid) goes through timm's loader, whose filters know it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models._hub import _PREFERRED_FILES, load_model_config_from_path
from torch import Tensor, nn

from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface_folder import read_json
from pretrain.models.exchange.torch_files import SUFFIXES, load_pickled, unwrapped
from pretrain.models.families.timm_shapes import shapes_only
from pretrain.models.interop import read_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_NUM_CHANNELS = 3
_SHORT_FORM = {"architecture", "num_classes", "model_args"}
_LONGEST_PROBLEM = 300  # characters
# What timm raises for arguments that it cannot build.
_REFUSALS = (RuntimeError, TypeError, KeyError, ValueError, AssertionError, AttributeError, IndexError)

Say = Callable[[str], None]


class Described(NamedTuple):
    """A folder's ``config.json``.

    Attributes:
        architecture: a registered name.
        arguments: of timm's constructor.
        settings: timm's ``pretrained_cfg``: preprocessing, labels, number of classes.
    """

    architecture: str
    arguments: dict[str, Any]
    settings: dict[str, Any]


def describe(folder: Path, say: Say) -> Described:
    """Reads ``config.json``, in any form that timm has had.

    A file that names nothing but the architecture (``NAME`` or ``NAME.TAG``, with ``num_classes`` and ``model_args``)
    means the resolution and preprocessing that timm has registered for it.

    Raises:
        CheckpointError: there is none, or it does not describe a model of timm.
    """
    content = read_json(folder / CONFIG)
    try:
        if content.keys() <= _SHORT_FORM:
            return _registered(content, folder, say)
        settings, architecture, arguments = load_model_config_from_path(folder)
    except _REFUSALS as error:
        raise CheckpointError(
            f"{folder / CONFIG}: not a description of a timm model ({type(error).__name__}: {error}); it needs at "
            'least {"architecture": "NAME"}: export it again with timm.models.save_for_hf'
        ) from error
    return Described(architecture, {key: value for key, value in arguments.items() if value is not None}, settings)


def _registered(content: Mapping[str, Any], folder: Path, say: Say) -> Described:
    architecture = content["architecture"].partition(".")[0]
    known = timm.get_pretrained_cfg(content["architecture"], allow_unregistered=False)
    assert known is not None, "an unregistered name has raised"
    settings = known.to_dict(remove_source=True)
    say(f"{folder / CONFIG}: resolution and preprocessing are those that timm has for {architecture}.{known.tag}")
    if "num_classes" in content:
        settings["num_classes"] = content["num_classes"]
    return Described(architecture, dict(content.get("model_args", {})), settings)


def build_twin(where: Path, described: Described) -> Any:
    """The model that a file describes, built by timm on the meta device.

    Raises:
        CheckpointError: timm cannot build it, or it does not take colour images.
    """
    try:
        with shapes_only():
            twin = _create(described)
    except _REFUSALS as error:
        raise CheckpointError(
            f"{where}: timm cannot build the model that it describes ({type(error).__name__}: {error}); "
            "install a timm that knows it, or export it again"
        ) from error
    channels = getattr(twin, "in_chans", _NUM_CHANNELS)
    if channels != _NUM_CHANNELS:
        raise CheckpointError(
            f"{where}: in_chans is {channels}: the model takes images of {channels} channels, and only "
            "colour images (3) are read here; name weights for colour images"
        )
    return twin


def _create(described: Described, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    settings = described.settings | {"source": "", "file": None, "custom_load": False, "state_dict": state}
    return timm.create_model(
        described.architecture, pretrained=state is not None, pretrained_cfg=settings, **described.arguments
    )


def read_state(folder: Path, described: Described, twin: nn.Module, say: Say) -> dict[str, Tensor]:
    """The tensors of a folder, under the names and in the shapes of ``twin``.

    Raises:
        CheckpointError: no weights there, or tensors of another model.
    """
    path = weights_file(folder)
    content = read_tensors(path)[0] if path.suffix == ".safetensors" else load_pickled(path)
    return fitted(content, path, described, twin, say)


def weights_file(folder: Path) -> Path:
    """The file with the weights of a folder, by the names that timm looks for.

    Raises:
        CheckpointError: there is none, or several without one of these names.
    """
    for name in _PREFERRED_FILES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.name.endswith((".safetensors", *SUFFIXES)))
    if len(found) != 1:
        has = f"several ({', '.join(path.name for path in found)})" if found else "none"
        raise CheckpointError(f"{folder}: {WEIGHTS} or another weights file is expected beside {CONFIG}, it has {has}")
    return found[0]


def fitted(content: Any, path: Path, described: Described, twin: nn.Module, say: Say) -> dict[str, Tensor]:
    """Tensors of any layout that timm's loader knows, as those of ``twin``.

    Args:
        content: of the file ``path``: tensors by name, or what a training program has wrapped around them.
        path: for errors.
        described: the model.
        twin: it, on any device.
        say: called with each line for the user.

    Raises:
        CheckpointError: no tensors, or those of another model.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    if not _is_state(content, wanted):
        content = _without_unused_head(unwrapped(content, path, say), described, twin, say)
    if _is_state(content, wanted):
        return {name: content[name] for name in wanted}
    say(f"{path}: its tensors are not named or shaped as {described.architecture}'s; timm's own loader converts them")
    return _converted(content, path, described)


def _is_state(content: Any, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    return (
        isinstance(content, Mapping)
        and content.keys() == wanted.keys()
        and all(
            isinstance(content[name], Tensor) and tuple(content[name].shape) == shape for name, shape in wanted.items()
        )
    )


def _converted(state: Mapping[str, Tensor], path: Path, described: Described) -> dict[str, Tensor]:
    """The tensors as timm's loader interpolates, renames, splits and joins them."""
    with _LoaderReport() as report:
        try:
            loaded = _create(described, state)
        except (*_REFUSALS, OSError) as error:  # OSError: some hybrids download the weights of their backbone first
            problem = " ".join(str(error).split())
            raise CheckpointError(_other_model(path, described, problem)) from error
    if report.problems:
        raise CheckpointError(_other_model(path, described, " ".join(report.problems)))
    return loaded.state_dict()


def _other_model(path: Path, described: Described, problem: str) -> str:
    short = problem if len(problem) <= _LONGEST_PROBLEM else f"{problem[:_LONGEST_PROBLEM]}…"
    return (
        f"{path}: timm cannot load these weights as the {described.architecture} that {CONFIG} describes: {short}; "
        f"name the weights' own architecture and model_args in {CONFIG}, or copy both files from one export"
    )


class _LoaderReport(logging.Handler):
    """Collects the tensors that timm's loader leaves at random or unused, which it only logs where it is not strict."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.problems: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(("Missing keys", "Unexpected keys", "Unable to convert")):
            self.problems.append(message)

    def __enter__(self) -> _LoaderReport:
        self._logger = logging.getLogger("timm.models._builder")
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


def _without_unused_head(state: Mapping[str, Tensor], described: Described, twin: Any, say: Say) -> dict[str, Tensor]:
    """Without the head of the file where the config has no classes: timm leaves it out too."""
    layers = described.settings.get("classifier") or ()
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    unused = [name for name in state if name.rpartition(".")[0] in layers] if not twin.num_classes else []
    if unused:
        say(f"left out, since the config has no classes: {', '.join(unused)}")
    return {name: tensor for name, tensor in state.items() if name not in unused}
