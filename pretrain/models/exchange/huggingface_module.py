"""Hugging Face folders whose network is transformers' own module: the family ``hf/NAME``.

transformers reads and writes the tensors, so that the names of every version fit. A setting of config.json becomes a
key of ``model.kwargs`` if it differs from the default of its config class and is none that a run decides (dropout,
labels, image size).

Legend: K classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pretrain.config.families import FAMILIES
from pretrain.config.schema.model import ModelConfig
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.exchange.huggingface_folder import CONFIG, WEIGHTS, read_folder_tensors

# Keys of config.json about the file, and settings of training that a run decides.
_BOOKKEEPING = frozenset(
    {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "text_config"}
    | {"return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward", "is_encoder_decoder"}
    | {"stage_names", "out_features", "out_indices"}  # of backbones for detectors, derived from the depth
    | {"attention_probs_dropout_prob", "attention_dropout", "dropout", "initializer_range", "initializer_factor"}
)
# Tensors that an image model of the class has no place for: other towers, projections, decoders, mask tokens.
_LEFT_OUT = ("text_", "logit_scale", "logit_bias", "visual_projection", "vision_projection", "decoder", "lm_head")
_LEFT_OUT_ENDS = ("mask_token", "relative_position_index", "position_ids", "num_batches_tracked")

Network = tuple[dict[str, Tensor], ModelConfig, int]  # tensors, model, K


def read_module(folder: Path, content: Mapping[str, Any], kind: str, say: Callable[[str], None]) -> Network:
    """The tensors of a folder under the names of the family ``hf``, the model, and K (0: without a head).

    Args:
        folder: with safetensors and config.json.
        content: of config.json.
        kind: ``architectures[0]`` there.
        say: called with a line about tensors that are left out.

    Raises:
        CheckpointError: transformers is missing, has no such class of images, or its tensors are not in the folder.
    """
    if importlib.util.find_spec("transformers") is None:
        raise CheckpointError(
            f"{folder / CONFIG}: {kind} is read by transformers, which is not installed: pip install 'vit-pretrain[hf]'"
        )
    from pretrain.models.families.hf_classes import class_of

    name = _image_class(kind, content)
    try:
        theirs = class_of(f"hf/{name}")
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: architectures: {error}") from error
    net, arguments = _load(theirs, _own_config(theirs, content, folder), folder, say)
    model = _model_config(theirs, net.config, arguments, folder)
    state, num_classes = _named(net, model)
    return state, model, num_classes


def write_module(folder: Path, state: Mapping[str, Tensor], model: ModelConfig, num_classes: int) -> None:
    """Writes config.json and the tensors; the class loads them by ``from_pretrained``.

    Args:
        folder: exists.
        state: unsharded tensors under the names of the family ``hf``.
        model: of the family.
        num_classes: K; 0: without a head.

    Raises:
        CheckpointError: the class is a tower, which has no place for a head.
    """
    import torch

    from pretrain.models.families.hf_backbone import BODY, create
    from pretrain.models.families.hf_classes import build_body, class_name, class_of, constructor_keys

    with torch.device("meta"):
        classifier = create(model, 1).classifier
    if num_classes and not classifier:
        raise CheckpointError(
            f"model.name: {class_name(model.name)} is an image tower of transformers without a place for a head; give "
            "--drop-head, or choose --format onnx"
        )
    if arguments := sorted(model.kwargs.keys() & constructor_keys(class_of(model.name))):
        # config.json has no place for them: from_pretrained would add a pooler with random weights.
        raise CheckpointError(
            f"model.kwargs.{arguments[0]} is an argument of {class_name(model.name)} that a folder of transformers "
            "cannot record; choose --format onnx"
        )
    body = build_body(model, num_classes)
    names: dict[str, str] = {}
    if num_classes:
        names = {f"{classifier}.{leaf}": f"head.{leaf}" for leaf in ("weight", "bias")}
    body.load_state_dict({name: state[names[name] if name in names else BODY + name] for name in body.state_dict()})
    with quietly():
        body.save_pretrained(folder)


def _image_class(kind: str, content: Mapping[str, Any]) -> str:
    """The class of the image tower, for a model of images and text (``CLIPModel``); any other class is itself."""
    if "vision_config" in content and kind.endswith("Model") and not kind.endswith("VisionModel"):
        return kind.removesuffix("Model") + "VisionModel"
    return kind


def _own_config(kind: Any, content: Mapping[str, Any], folder: Path) -> Any:
    """The config of the class, also where config.json is that of a model around it."""
    own = content
    if content.get("model_type") != kind.config_class.model_type:
        own = content.get("vision_config") or content
    try:
        return kind.config_class.from_dict(dict(own))
    except Exception as error:  # each config class has errors of its own
        raise CheckpointError(
            f"{folder / CONFIG}: transformers refuses it ({type(error).__name__}: {error}); copy or export it again"
        ) from error


def _load(kind: Any, config: Any, folder: Path, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
    """transformers' network with the tensors of the folder, and the arguments of its constructor.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or has no place.
    """
    from pretrain.models.families.hf_classes import constructor_keys

    read_folder_tensors(folder)  # our errors for files that are missing, pickled or damaged
    arguments: dict[str, Any] = {}
    net, report = _from_pretrained(kind, config, folder, arguments)
    missing = set(report["missing_keys"])
    if missing and "add_pooling_layer" in constructor_keys(kind) and all("pooler." in name for name in missing):
        arguments = {"add_pooling_layer": False}
        net, report = _from_pretrained(kind, config, folder, arguments)
        missing = set(report["missing_keys"])
    left = sorted(name for name in report["unexpected_keys"])
    foreign = [name for name in left if not _is_left_out(name)]
    wrong = [*sorted(missing), *(str(entry[0]) for entry in report["mismatched_keys"]), *foreign]
    if wrong:
        what = "is missing" if missing else "has no place in it" if foreign == wrong else "has another shape"
        raise CheckpointError(
            f"{folder / WEIGHTS}: tensor {wrong[0]} {what} ({len(wrong)} such tensors), so these are not the weights "
            f"of the {kind.__name__} that {CONFIG} describes; copy both files again"
        )
    if left:
        say(f"{len(left)} tensors of {folder / WEIGHTS} are not part of {kind.__name__} and are left out: {left[0]}, …")
    return net, arguments


def _is_left_out(name: str) -> bool:
    return name.startswith(_LEFT_OUT) or name.endswith(_LEFT_OUT_ENDS) or ".decoder." in name


def _from_pretrained(kind: Any, config: Any, folder: Path, arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    with quietly():
        return kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused by ``_load``
            use_safetensors=True,
            local_files_only=True,
            dtype="auto",
            **arguments,
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers without its progress bars and its report on each load."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _model_config(kind: Any, config: Any, arguments: Mapping[str, Any], folder: Path) -> ModelConfig:
    from pretrain.models.families.hf_classes import VISION, known_settings

    known = known_settings(kind)
    settings = json.loads(json.dumps(config.to_dict()))
    tower = settings if "image_size" in known else settings.get(VISION, {})
    size, channels = tower.get("image_size") or 224, tower.get("num_channels", settings.get("num_channels", 3))
    if channels != 3:
        raise CheckpointError(f"{folder / CONFIG}: num_channels: {channels} is not read, only 3; name other weights")
    try:
        return ModelConfig(
            name=f"hf/{kind.__name__}",
            img_size=size if isinstance(size, int) else size[0] if size[0] == size[1] else tuple(size),
            kwargs={**_changed(settings, json.loads(json.dumps(known))), **arguments},
        )
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}; name other weights") from error


def _changed(settings: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from their defaults and that a run does not decide."""
    ignored = _BOOKKEEPING | set(FAMILIES["hf"].refused_kwargs)
    changed = {}
    for key, value in settings.items():
        if key in ignored or key not in known or value == known[key]:
            continue
        nested = isinstance(value, Mapping) and isinstance(known[key], Mapping)
        changed[key] = _changed(value, known[key]) if nested else value
    return {key: value for key, value in changed.items() if value != {}}


def _named(net: Any, model: ModelConfig) -> tuple[dict[str, Tensor], int]:
    """The tensors of transformers' network under our names, and the number of its classes."""
    import torch

    from pretrain.models.families.hf_backbone import BODY, create

    with torch.device("meta"):
        classifier = create(model, 1).classifier
    state = {}
    for name, tensor in net.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        state[f"head.{leaf}" if classifier and owner == classifier else BODY + name] = tensor
    return state, state["head.weight"].shape[0] if "head.weight" in state else 0
