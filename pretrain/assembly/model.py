"""The model with its initial weights, from the seed or from a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import psutil
from torch import Tensor, nn

from pretrain.assembly.head import Target, fit_head
from pretrain.check.experiment import check_statistics
from pretrain.config.schema.experiment import Experiment
from pretrain.config.schema.lora import LoraConfig
from pretrain.config.schema.run import Head
from pretrain.engine.checkpoint_folder import weights_file
from pretrain.engine.run_folder import RunFolder
from pretrain.engine.statistics import statistics_names
from pretrain.errors import ConfigError, SetupError
from pretrain.files import write_atomic
from pretrain.models.exchange.hub import local
from pretrain.models.families.registry import (
    accept_sizes,
    adapt_state_dict,
    build_model,
    init_weights,
    tensor_shapes,
)
from pretrain.models.init import digest
from pretrain.models.layers.lora import add_adapters
from pretrain.models.metadata import WeightsMetadata

LARGEST_WHOLE_MODEL = 2_000_000_000  # parameters


def build_initialised_model(
    experiment: Experiment,
    say: Callable[[str], None],
    *,
    local_world: int,
    head: Head,
    with_init: bool,
    target: Target | None = None,
) -> nn.Module:
    """The unsharded model on the CPU, with weights from the seed or, ``with_init``, from ``init.from``.

    Raises:
        ConfigError: an impossible architecture, or adapters that it cannot have. CheckpointError: weights that do not
            fit it, or the ``target`` of their head. SetupError: no memory.
    """
    check_host_memory(experiment, local_world)
    model = build_model(experiment.model, experiment.num_outputs)
    check_statistics(experiment, statistics_names(model))
    if experiment.changes_size and not experiment.data.train_transform.sequence_lengths:
        accept_sizes(model, experiment.image_sizes.all, experiment.init.pos_embed_filter)
    source, new = experiment.init.from_, []
    if source is None or not with_init:
        init_weights(model, experiment.seed)
    else:
        new = _load_initial(experiment, model, source, say, head, target)
    if experiment.optim.lora is not None:
        _add_adapters(experiment.optim.lora, model, experiment.seed, new, say)
    return model


def _load_initial(
    experiment: Experiment,
    model: nn.Module,
    source: str,
    say: Callable[[str], None],
    head: Head,
    target: Target | None,
) -> list[str]:
    """Fills the model from ``init.from``; returns the names of tensors that were not in the file."""
    path, (tensors, about) = read_weights(source, say, experiment.init.weights)
    lines: list[str] = []
    if target is not None:
        tensors, about, lines = fit_head(tensors, about, model, target, head=head, seed=experiment.seed)
    adapted, report = adapt_state_dict(
        tensors,
        about,
        model,
        head="replace" if head == "replace" else "keep",
        filter=experiment.init.pos_embed_filter,
        seed=experiment.seed,
    )
    model.load_state_dict(adapted)
    say(f"weights from {path}")
    for line in [*report.lines(), *lines, *_other_normalisation(about, experiment)]:
        say(f"  {line}")
    return report.new


def _add_adapters(config: LoraConfig, model: nn.Module, seed: int, new: list[str], say: Callable[[str], None]) -> None:
    """Adds the adapters of ``optim.lora``.

    Raises:
        ConfigError: they do not fit the model, or a tensor that the weights do not have would stay at a random value.
    """
    adapters = add_adapters(model, config, seed)
    if untrained := [name for name in new if name not in adapters.trained]:
        raise ConfigError(
            f"optim.lora: {untrained[0]} is not in the weights and would keep its initial value, as only adapters and "
            f"the head are trained; add a pattern for it to optim.lora.train (it is one of {len(untrained)})"
        )
    sizes = {name: math.prod(shape) for name, shape in adapters.shapes.items()}
    trained = sum(sizes[name] for name in adapters.trained)
    say(
        f"adapters of rank {config.rank} on {len(adapters.layers)} layers; {trained / 1e6:,.3f} M of "
        f"{sum(sizes.values()) / 1e6:,.3f} M parameters are trained"
    )


def check_host_memory(experiment: Experiment, local_world: int) -> None:
    """Checks that every rank of this node can build the unsharded model on the CPU.

    Raises:
        ConfigError: more parameters than that route is meant for. SetupError: too little memory is free.
    """
    shapes = tensor_shapes(experiment.model, experiment.num_outputs)
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    if num_parameters > LARGEST_WHOLE_MODEL:
        raise ConfigError(
            f"model: {num_parameters / 1e9:.2f} billion parameters; every rank builds the complete model on its CPU, "
            f"which works up to {LARGEST_WHOLE_MODEL / 1e9:.0f} billion: choose a smaller one"
        )
    needed, free = num_parameters * 4 * local_world, psutil.virtual_memory().available
    if needed > free:
        raise SetupError(
            f"building the complete model on {local_world} ranks needs {needed / 2**30:.1f} GiB of host memory on this "
            f"node, {free / 2**30:.1f} GiB are free: start fewer ranks per node, or free some"
        )


def read_weights(
    source: str, say: Callable[[str], None], kind: Literal["raw", "ema"] = "raw"
) -> tuple[Path, tuple[dict[str, Tensor], WeightsMetadata]]:
    """The file that ``init.from`` or ``objective.teacher`` names, its tensors and its metadata.

    Raises:
        CheckpointError: nothing of that kind, or damaged.
    """
    # Imports timm and torchvision, which take longer than all else that a start without given weights imports.
    from pretrain.models.exchange.formats import is_model_folder, load_any

    path = local(source)
    path = path if is_model_folder(path) else weights_file(path, kind, say)
    return path, load_any(path, say=say)


def record_initial_weights(model: nn.Module, folder: RunFolder, say: Callable[[str], None]) -> None:
    """Writes a digest of every initial tensor, so that two runs can be compared before their first step."""
    digests = digest(model)
    write_atomic(folder.path / "initial_weights.json", json.dumps(digests, indent=1))
    whole = hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=8).hexdigest()
    say(f"{len(digests)} initial tensors, digest {whole}; each in {folder.path / 'initial_weights.json'}")


def _other_normalisation(about: WeightsMetadata, experiment: Experiment) -> list[str]:
    """A remark where the weights were trained on pixels normalised otherwise."""
    ours, theirs = (experiment.data.mean, experiment.data.std), (about.mean, about.std)
    if ours == theirs:
        return []
    if about.mean is None:
        problem = about.transform_problem or "they do not record it"
        return [f"note: how their pixels were normalised is unknown ({problem}); taken: data.mean and data.std, {ours}"]
    return [f"note: they were trained with data.mean {theirs[0]} and data.std {theirs[1]}; this run has {ours}"]
