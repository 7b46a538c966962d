"""Trained weights as a model in evaluation mode, with everything it needs to process images as in training.

``heads`` adds the meaning of the head's outputs.

Legend: B images · H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.weights.load import load_source
from pipelines.weights.preprocessing import require_preprocessing, with_stated
from pretrain.config.schema.data import Target
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.batch import Batch, to_model_input
from pretrain.data.images.augment import EvalTransform
from pretrain.data.images.colour import Pixels
from pretrain.data.storage.classes import told_apart
from pretrain.distributed.device import choose_device, choose_matmul_precision, has_tf32
from pretrain.errors import CheckpointError, ConfigError
from pretrain.models.families.registry import adapt_state_dict, build_model
from pretrain.models.init import digest
from pretrain.models.interop import expected_shapes
from pretrain.models.metadata import Task, WeightsMetadata

FILTER = "bilinear_corners"  # how position embeddings are resized, as for fine-tuning


@dataclass(frozen=True)
class Network:
    """A model in evaluation mode, with everything it needs to process images as in training.

    Attributes:
        task: what the weights must have been trained for; None: anything, also weights without a head.
        target: what the samples of a set to evaluate on must have; None: anything.
        model: on ``device``, in the precision of the training.
        metadata: of the weights, at the resolution that is used.
        transform: image bytes → uint8 (H, W, 3).
    """

    task: ClassVar[Task | None] = None
    target: ClassVar[Target | None] = None

    model: nn.Module
    metadata: WeightsMetadata
    transform: EvalTransform
    device: torch.device

    @torch.inference_mode()
    def outputs(self, images: Tensor) -> Tensor:
        """Outputs of the head, fp32 on the device, for pixels uint8 (B, 3, H, W)."""
        metadata = self.metadata
        inputs = to_model_input(images.to(self.device, non_blocking=True), *metadata.normalisation)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=metadata.precision == "autocast"):
            return self.model(inputs).float()

    def pixels(self, images: Sequence[bytes | str | Path]) -> Tensor:
        """Encoded images, or paths of such files, as uint8 (B, 3, H, W).

        Raises:
            BadSample: one of them is not a readable image. OSError: no such file.
        """
        return stack(self.transform(encoded(image)) for image in images)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, which are classes or numbers; "0", "1", … for weights without names."""
        return self.metadata.class_names or tuple(str(number) for number in range(self.metadata.num_classes))

    @property
    def keys(self) -> list[str]:
        """``names``, made unique: classes of the same name are followed by their id."""
        ids = self.metadata.class_ids or tuple(str(number) for number in range(self.metadata.num_classes))
        return told_apart(list(zip(ids, self.names, strict=True)))


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


class Frozen(Network):
    """A network that computes features (``evaluation.features.FrozenModel``); it needs no head."""

    def logits(self, batch: Batch) -> Tensor:
        """See ``FrozenModel.logits``."""
        return self.outputs(batch.images)

    def digests(self) -> dict[str, str]:
        """Name → short hash of every tensor, at the resolution that is used."""
        return digest(self.model)


def load_frozen(source: str | Path, **options: Any) -> Frozen:
    """Reads weights, with or without a head; arguments and errors as ``load_network``."""
    return load_network(source, Frozen, **options)


# many: what a user may choose about weights, all with defaults
def load_network(
    source: str | Path,
    kind: type[AnyNetwork],
    *,
    weights: Literal["raw", "ema"] = "raw",
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    stated: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> AnyNetwork:
    """Reads weights and builds their model.

    Args:
        source: a run folder, a checkpoint, or a weights file.
        kind: the class of the network, which decides what the weights must have been trained for.
        weights: of a run or checkpoint, the raw or the EMA weights.
        img_size: resolution in pixels, or (height, width); None: the weights' own. Another one resizes the position
            embedding.
        device: as for ``choose_device``; None: auto.
        stated: preprocessing that replaces what the weights record (see ``weights.preprocessing``).
        say: called with each line for the user.

    Raises:
        CheckpointError: no weights, damaged, trained for something else, or of a resolution that cannot be changed.
        ConfigError: an impossible resolution. SetupError: no such path or device.
    """
    state, metadata = load_source(Path(source), weights, say)
    metadata = with_stated(metadata, stated or {}, say)
    if metadata.transform_problem is not None:
        require_preprocessing(metadata)
    if kind.task is not None and (metadata.task != kind.task or not metadata.num_classes):
        has = f"were trained for {metadata.task}" if metadata.num_classes else "have no head"
        raise CheckpointError(f"{source}: the weights {has}, not for {kind.task}; name others")
    model, metadata = network_of(state, metadata, img_size, say)
    transform = EvalTransform(eval_transform_of(metadata, say), *metadata.img_size)
    chosen = choose_device(str(device or "auto"))
    choose_matmul_precision(chosen, tf32=metadata.tf32 and has_tf32(chosen))
    model.to(chosen, torch.bfloat16 if metadata.precision == "bf16" else torch.float32)
    return kind(model.eval().requires_grad_(False), metadata, transform, chosen)


def network_of(
    state: dict[str, Tensor],
    metadata: WeightsMetadata,
    img_size: int | tuple[int, int] | None,
    say: Callable[[str], None],
) -> tuple[nn.Module, WeightsMetadata]:
    """Builds the model of saved tensors on the CPU, at another resolution if ``img_size`` asks for one.

    Weights without a head get an untrained one with one output, since every network here has a head.

    Raises:
        CheckpointError: of a resolution that cannot be changed. ConfigError: an impossible resolution.
    """
    wanted = metadata.img_size if img_size is None else (img_size, img_size) if isinstance(img_size, int) else img_size
    config = metadata.model
    if wanted != metadata.img_size:
        try:
            config = ModelConfig.model_validate({**config.model_dump(exclude_defaults=True), "img_size": wanted})
        except ValueError as error:
            raise ConfigError(f"img_size {wanted}: {error}") from error
    model = build_model(config, metadata.num_classes or 1)
    head = "keep" if metadata.num_classes else "replace"
    adapted, report = adapt_state_dict(state, metadata, model, head=head, filter=FILTER, seed=0)
    model.load_state_dict(adapted)
    for name, (old, new) in report.resized.items():
        say(f"resized: {name} from grid {old} to {new}")
    return model, metadata.of_model(config)


def built(state: Mapping[str, Tensor], metadata: WeightsMetadata) -> nn.Module:
    """The model of saved tensors, in evaluation mode; without classes its head has one output and is not used."""
    model = build_model(metadata.model, max(1, metadata.num_classes))
    missing, unexpected = model.load_state_dict(state, strict=False)
    expected = expected_shapes(metadata)
    assert not unexpected and not set(missing) & set(expected), (missing, unexpected)
    return model.eval()


def eval_transform_of(metadata: WeightsMetadata, say: Callable[[str], None]) -> EvalTransformConfig:
    """The transform that the weights were evaluated with; if they do not record it, the default one, with a note."""
    if metadata.eval_transform is not None:
        return metadata.eval_transform
    say("the weights do not record how images are resized: using the short side at 8/7 of the size, then a centre crop")
    return EvalTransformConfig()


def encoded(image: bytes | str | Path) -> bytes:
    """The bytes of an image, or of the file at a path.

    Raises:
        OSError: no such file.
    """
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def stack(pixels: Iterable[Pixels]) -> Tensor:
    """Images uint8 (H, W, 3) → one tensor (B, 3, H, W)."""
    return torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image in pixels]))
