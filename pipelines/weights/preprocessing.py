"""Preprocessing that is stated on the command line, for weights that do not record it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pretrain.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from pretrain.config.schema.transforms import EvalTransformConfig
    from pretrain.models.metadata import WeightsMetadata

_OF_RESIZE = ("resize", "crop_fraction", "resize_filter")


def with_stated(
    metadata: WeightsMetadata, stated: Mapping[str, Any], say: Callable[[str], None] = lambda line: None
) -> WeightsMetadata:
    """The metadata with what was stated.

    Args:
        metadata: of the weights.
        stated: see ``terminal.preprocessing.stated_in``.
        say: called with a line where this replaces what the weights record.

    Raises:
        ConfigError: impossible values. CheckpointError: only a part is stated, and the rest is not recorded; or images
            keep their aspect ratio, and nothing else is stated.
    """
    changed: dict[str, Any] = {name: tuple(stated[name]) for name in ("mean", "std") if name in stated}
    if len(changed) == 1 and metadata.mean is None:
        raise CheckpointError("the weights record neither mean nor std of their pixels; state both, --mean and --std")
    if "std" in changed and min(changed["std"]) <= 0:
        raise ConfigError(f"--std {changed['std']}: standard deviations are above 0")
    given = {name: stated[name] for name in _OF_RESIZE if name in stated}
    if given:
        changed["eval_transform"] = _transform(metadata, given)
    for name, value in changed.items():
        recorded = getattr(metadata, name)
        if recorded is not None and recorded != value:
            say(f"{name}: {value} as stated, where the weights record {recorded}")
    found = metadata.model_copy(update=changed)
    if found.eval_transform is not None and found.eval_transform.is_native:
        raise CheckpointError(
            "the weights were evaluated on images at their own aspect ratio (eval_transform.resize: native), which is "
            "done by the evaluations of a training only; to use them on images of "
            f"{'×'.join(map(str, found.img_size))} pixels, state --resize squash, or --resize short_side and "
            "--crop-fraction"
        )
    return found


def _transform(metadata: WeightsMetadata, given: Mapping[str, Any]) -> EvalTransformConfig:
    from pydantic import ValidationError

    from pretrain.config.schema.transforms import EvalTransformConfig

    known = {} if metadata.eval_transform is None else metadata.eval_transform.model_dump()
    ignored = EvalTransformConfig.model_construct(**{**known, **given}).ignored()
    fields = {name: value for name, value in known.items() if name not in ignored} | dict(given)
    needed = {"resize", "resize_filter"} | ({"crop_fraction"} - set(ignored))
    if needed - set(fields):
        missing = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(needed - set(fields)))
        raise CheckpointError(f"{_unknown(metadata)}; state it with {missing}")
    try:
        return EvalTransformConfig(**fields)
    except ValidationError as error:
        raise ConfigError(f"--resize, --crop-fraction, --resize-filter: {error.errors()[0]['msg']}") from error


def require_preprocessing(metadata: WeightsMetadata) -> None:
    """Refuses weights whose preprocessing is unknown.

    Raises:
        CheckpointError: names the options that state it.
    """
    missing = [] if metadata.mean is not None else ["--mean", "--std"]
    missing += [] if metadata.eval_transform is not None else ["--resize", "--resize-filter", "--crop-fraction"]
    if missing:
        raise CheckpointError(f"{_unknown(metadata)}; state it with {', '.join(missing)}")


def _unknown(metadata: WeightsMetadata) -> str:
    problem = metadata.transform_problem
    return f"the weights do not say how images are resized for them{'' if problem is None else f' ({problem})'}"
