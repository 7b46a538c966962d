"""ONNX graphs: normalised images in, logits out, preprocessing in the file's metadata. Written only.

The graph computes whatever the model does, so nothing is refused; a batch may have any number of images. The
weights of a graph of more than 1.5 GiB are in a second file of the same name with ``.data``.

Legend: B images · C H W · K classes · R width of the head's input.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.errors import SetupError
from pretrain.models.metadata import HEADER_KEY, WeightsMetadata

OPSET = 20  # the first with a GELU operator
INPUT, LOGITS, FEATURES = "images", "logits", "features"
_EXTERNAL_ABOVE_BYTES = int(1.5 * 2**30)  # protobuf ends at 2 GiB
_MEANING = {
    None: "logits (batch, classes)",
    "softmax": "logits (batch, classes); their softmax are the probabilities",
    "sigmoid": "logits (batch, classes); the sigmoid of each is the probability of its class",
    "none": "numbers (batch, numbers) in the units of the data",
}
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Features(nn.Module):
    """A model without its head: normalised images (B, C, H, W) → the head's input (B, R)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model: Any = self.model
        return model.forward_head(model.forward_features(images), pre_logits=True)


def require_packages() -> None:
    """Fails early if optional packages are missing.

    Raises:
        SetupError: names them and how to install them.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"--format onnx needs {', '.join(missing)}: pip install 'vit-pretrain[onnx]'")


def write_onnx(path: str | Path, model: nn.Module, metadata: WeightsMetadata) -> None:
    """Writes the graph of ``model``, with ``metadata`` as JSON in its properties, and the main facts in plain words.

    Args:
        path: ends in .onnx.
        model: fp32, on the CPU, with the weights.
        metadata: metadata of the weights; without classes the output is the head's input.

    Raises:
        SetupError: the optional packages are missing.
    """
    require_packages()
    path = Path(path)
    images = torch.zeros(2, 3, *metadata.img_size)
    output = LOGITS if metadata.num_classes else FEATURES
    graph = model if metadata.num_classes else Features(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own deprecations
        program: Any = torch.onnx.export(
            graph.eval(),
            (images,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    program.model.metadata_props.update(_properties(metadata))
    num_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    program.save(path, external_data=num_bytes > _EXTERNAL_ABOVE_BYTES)


def _properties(metadata: WeightsMetadata) -> Mapping[str, str]:
    transform = metadata.eval_transform
    height, width = metadata.img_size
    facts = {
        "input": f"float32 RGB images (batch, 3, {height}, {width}): (x / 255 - mean) / std",
        "mean": str(list(metadata.normalisation[0])),
        "std": str(list(metadata.normalisation[1])),
        "eval_transform": "unknown" if transform is None else transform.model_dump_json(),
        "output": _MEANING[metadata.activation] if metadata.num_classes else "the input of the head that was left out",
    }
    return facts | {HEADER_KEY: metadata.model_dump_json()}
