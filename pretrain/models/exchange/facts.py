"""The purpose of weights, for which other programs' configs have few words, and which travels beside them.

timm's folders carry it in the header of their tensors, which is that of our own files; Hugging Face's in
``config.json``, in their own word ``problem_type`` as far as that goes, and under ``vit_pretrain``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pretrain.config.schema.base import PositiveFloat, Strict
from pretrain.config.schema.objective import Activation
from pretrain.errors import CheckpointError
from pretrain.models.interop import header_of, is_weights_header, parse_header
from pretrain.models.metadata import Task, WeightsMetadata

KEY = "vit_pretrain"  # in config.json
PROBLEMS: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "none",
}


class Facts(Strict):
    """The fields of ``WeightsMetadata`` of the same names.

    ``class_names`` and ``class_ids`` count only beside a config that has the same: an edited one keeps its own.
    """

    class_names: tuple[str, ...] | None = None
    class_ids: tuple[str, ...] | None = None
    objective: str | None = None
    activation: Activation | None = None
    target_mean: tuple[float, ...] | None = None
    target_std: tuple[PositiveFloat, ...] | None = None
    precision: Literal["fp32", "bf16", "autocast"] | None = None
    tf32: bool = False

    @classmethod
    def of(cls, metadata: WeightsMetadata) -> Facts:
        """Those of ``metadata``."""
        return cls(**{name: getattr(metadata, name) for name in cls.model_fields})

    @property
    def task(self) -> Task:
        """The kind of output; other programs have no dense heads of ours."""
        return "regression" if self.activation == "none" or self.target_mean is not None else "classification"

    def added_to(self, metadata: WeightsMetadata, where: str | Path) -> WeightsMetadata:
        """``metadata`` with these facts.

        Raises:
            CheckpointError: they contradict it, for example in the number of outputs.
        """
        fields = self.model_dump(exclude_unset=True)
        if self.activation == "none" and self.target_mean is None:  # numbers in the head's own units
            fields |= {"target_mean": (0.0,) * metadata.num_classes, "target_std": (1.0,) * metadata.num_classes}
        if metadata.class_names not in (self.class_names, self.class_ids):
            fields |= {"class_names": metadata.class_names, "class_ids": metadata.class_ids}
        if not metadata.num_classes:
            fields |= dict.fromkeys(("activation", "target_mean", "target_std"), None)
        try:
            return WeightsMetadata.model_validate({**dict(metadata), **fields})
        except ValidationError as error:
            raise CheckpointError(f"{where}: {error.errors()[0]['msg']}; export it again") from error


def facts_in_header(header: Mapping[str, str], path: Path) -> Facts:
    """The facts in a safetensors header; none if the file is not ours.

    Raises:
        CheckpointError: they are damaged.
    """
    return Facts.of(parse_header(path, header)) if is_weights_header(header) else Facts()


def problem_of(metadata: WeightsMetadata) -> dict[str, str]:
    """``problem_type`` of ``config.json``, by which transformers chooses the activation, of timm's folders too."""
    words = {activation: problem for problem, activation in PROBLEMS.items()}
    return {} if metadata.activation is None else {"problem_type": words[metadata.activation]}


def to_config(metadata: WeightsMetadata) -> dict[str, Any]:
    """The entries of Hugging Face's ``config.json``."""
    facts = Facts.of(metadata).model_dump(mode="json", exclude_defaults=True, exclude={"class_names", "class_ids"})
    return {**problem_of(metadata), **({KEY: facts} if facts else {})}


def from_config(config: Mapping[str, Any], where: Path) -> Facts:
    """The facts in a ``config.json``; their own word counts where only that is there.

    Raises:
        CheckpointError: an unknown ``problem_type``, one that contradicts our entry, or a damaged entry.
    """
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEMS:
        raise CheckpointError(f"{where}: problem_type: {problem!r} is not read; known are {', '.join(PROBLEMS)}")
    stated = {} if problem is None else {"activation": PROBLEMS[problem]}
    try:
        facts = Facts.model_validate({**stated, **config.get(KEY, {})})
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{where}: {KEY}: {reason}; export it again") from error
    if problem is not None and facts.activation != PROBLEMS[problem]:
        raise CheckpointError(
            f"{where}: problem_type: {problem} contradicts {KEY}.activation: {facts.activation}; correct one of them"
        )
    return facts


def facts_beside(folder: Path, tensors: str) -> Facts:
    """The facts of a timm folder without reading its tensors.

    Args:
        folder: see ``exchange.timm``.
        tensors: the name of the file with the tensors.
    """
    path = folder / tensors
    return facts_in_header(header_of(path), path) if path.is_file() else Facts()
