"""The class of transformers that ``hf/NAME`` names, and its config from ours. Imports transformers, so torch too.

NAME is a class as ``architectures`` in config.json has it: a classifier (``Dinov2ForImageClassification``) or an image
tower (``CLIPVisionModel``). ``model.kwargs`` are arguments of its config class, and of its constructor where it has
some of its own (``add_pooling_layer``). A config class accepts any key; here an unknown one is an error.
"""

from __future__ import annotations

import copy
import difflib
import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from pretrain.config.families import FAMILIES
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import ConfigError

INPUT = "pixel_values"
VISION = "vision_config"
DROPOUT, DROP_PATH = "hidden_dropout_prob", "drop_path_rate"
# More classes than any data set here has, so that the classifier is the layer of this width.
MARK = 7919


def class_name(name: str) -> str:
    """The class in a ``model.name``."""
    return name.removeprefix("hf/")


def class_of(name: str) -> Any:
    """The class that ``model.name: name`` names.

    Raises:
        ConfigError: transformers is not installed, or has no such class of images.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f"model.name: {name} needs transformers: pip install 'vit-pretrain[hf]'")
    import transformers

    kind = getattr(transformers, class_name(name), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        names = [one for one in dir(transformers) if one.endswith(("ForImageClassification", "VisionModel"))]
        near = difflib.get_close_matches(class_name(name), names, n=3, cutoff=0.6)
        hint = f"; did you mean hf/{' or hf/'.join(near)}?" if near else "; classes end in ForImageClassification"
        raise ConfigError(f"model.name: transformers has no class {class_name(name)!r}{hint}")
    if kind.main_input_name != INPUT:
        raise ConfigError(f"model.name: {name} takes {kind.main_input_name}, not images; name its image tower")
    return kind


def constructor_keys(kind: Any) -> frozenset[str]:
    """Arguments of the class itself, besides its config."""
    return frozenset(inspect.signature(kind.__init__).parameters) - {"self", "config", "args", "kwargs"}


def known_settings(kind: Any) -> dict[str, Any]:
    """Every setting of the config class with its default."""
    return kind.config_class().to_dict()


def build_body(model: ModelConfig, num_labels: int = MARK) -> Any:
    """The module, on torch's default device, with its own initial weights and, of a classifier, ``num_labels`` classes.

    Raises:
        ConfigError: no such class, an unknown setting, or values that it refuses.
    """
    kind = class_of(model.name)
    own = constructor_keys(kind)
    arguments = {key: value for key, value in model.kwargs.items() if key in own}
    settings = {key: copy.deepcopy(value) for key, value in model.kwargs.items() if key not in own}
    known = known_settings(kind)
    _refuse_unknown(settings, known, model.name)
    _place(settings, known, model)
    try:
        return kind(kind.config_class(**settings, num_labels=num_labels), **arguments)
    except Exception as error:  # each config class has errors of its own
        raise ConfigError(
            f"model: transformers cannot build {model.name} at {model.img_size} pixels with "
            f"{model.kwargs or 'no kwargs'}: {type(error).__name__}: {error}; change model.img_size or model.kwargs"
        ) from error


def _place(settings: dict[str, Any], known: Mapping[str, Any], model: ModelConfig) -> None:
    """Writes our settings where the config class has them."""
    height, width = model.size
    tower, inner = settings, known
    if VISION in known and "image_size" not in known:
        tower, inner = settings.setdefault(VISION, {}), known[VISION]
    if "image_size" in inner:
        is_pair = height != width or isinstance(inner["image_size"], list | tuple)
        tower["image_size"] = [height, width] if is_pair else height
    if model.dropout and DROPOUT not in known:
        raise ConfigError(f"model.dropout: {model.name} has none in transformers; remove it")
    if DROPOUT in known:
        settings[DROPOUT] = model.dropout
    if DROP_PATH in known:
        settings[DROP_PATH] = model.drop_path


def _refuse_unknown(settings: Mapping[str, Any], known: Mapping[str, Any], name: str, path: str = "") -> None:
    refused = FAMILIES["hf"].refused_kwargs
    for key, value in settings.items():
        if path and key in refused:
            raise ConfigError(f"model.kwargs.{path}{key} is set by the engine ({refused[key]}); remove it here")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
            hint = f"did you mean {path}{near[0]}?" if near else f"it has {', '.join(sorted(known))}"
            raise ConfigError(f"model.kwargs.{path}{key}: no setting of {name}, so it would be ignored; {hint}")
        if isinstance(value, Mapping) and isinstance(known[key], Mapping):
            _refuse_unknown(value, known[key], name, f"{path}{key}.")
