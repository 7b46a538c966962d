"""The backbone in an ONNX graph, a DINOv2-small, as our Vision Transformer, and its tokens beside onnxruntime's.

The graph is a network for saliency whose decoder is left out here. It resizes the positions for its 224 pixels by
nodes of its own, so that the table is taken from there.

Legend: D width · T tokens with prefix.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

from pipelines.weights.network import load_frozen
from pretrain.config.schema.model import ModelConfig
from pretrain.config.schema.transforms import EvalTransformConfig
from pretrain.data.batch import to_model_input
from pretrain.errors import DataError
from pretrain.models.exchange.huggingface_names import joined, our_name
from pretrain.models.interop import save_weights
from pretrain.models.metadata import WeightsMetadata
from pretrain.models.tensor_shapes import parameter_shapes

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TRANSFORM = EvalTransformConfig(resize="short_side", crop_fraction=0.875, resize_filter="bicubic_aa")
SIDE = 224
# Tensors in the graph: the positions that are added to the tokens, and the tokens after the last norm.
POSITIONS, TOKENS = "/backbone/embeddings/Concat_6_output_0", "/backbone/layernorm/Add_1_output_0"
TOLERANCE = 1e-4  # of the largest number; onnxruntime's kernels sum in another order


def convert(graph: Path, out: Path) -> None:
    """Writes a weights file of ours with the tensors of the graph's backbone.

    Raises:
        DataError: it is not a DINOv2-small.
    """
    state = tensors_of(graph)
    state["pos_embed"] = _run(graph, POSITIONS, np.zeros((1, 3, SIDE, SIDE), dtype=np.float32))
    model = ModelConfig(variant="S/14", img_size=SIDE, layer_scale=1.0)
    expected = {name: shape for name, shape in parameter_shapes(model, 1).items() if not name.startswith("head.")}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        different = sorted({*found.items()} ^ {*expected.items()})
        raise DataError(f"{graph}: not a DINOv2-small; the first tensor that differs is {different[0]}")
    metadata = WeightsMetadata.of(model, 0, MEAN, STD, eval_transform=TRANSFORM)
    save_weights(out, {name: state[name] for name in expected}, metadata)


def tensors_of(graph: Path) -> dict[str, Tensor]:
    """The tensors under our names.

    torch's exporter keeps the names of parameters, but not of a dense layer's weight: that is the matrix of the product
    to which the layer's bias is added, transposed.
    """
    content: Any = onnx.load(str(graph)).graph
    values = {each.name.removeprefix("backbone."): numpy_helper.to_array(each) for each in content.initializer}
    products = {node.output[0]: node.input for node in content.node if node.op_type == "MatMul"}
    named = dict(values)
    for node in content.node:
        if node.op_type == "Add":
            for given, product in (node.input, reversed(node.input)):
                bias = given.removeprefix("backbone.")
                if bias in values and bias.endswith(".bias") and product in products:
                    named[bias.removesuffix("bias") + "weight"] = values[products[product][1]].T
    ours = {our_name(name): value for name, value in named.items()}
    tensors = {name: torch.tensor(np.array(value)).float() for name, value in ours.items() if name is not None}
    return joined(tensors)


def agreement(graph: Path, weights: Path, photos: Sequence[Path]) -> float:
    """The largest difference of the normed tokens (T, D) of photos, as a share of the largest number.

    Raises:
        DataError: it is more than rounding.
    """
    frozen = load_frozen(weights)
    network: Any = frozen.model
    worst = 0.0
    for image in to_model_input(frozen.pixels(list(photos)), MEAN, STD).split(1):
        theirs = _run(graph, TOKENS, image.numpy())
        with torch.inference_mode():
            ours = network.forward_features(image)
        worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    if worst > TOLERANCE:
        raise DataError(f"{graph}: tokens differ from onnxruntime's by {worst:.3g} of the largest")
    return worst


def _run(graph: Path, output: str, images: Any) -> Tensor:
    """The value of ``output``, any tensor of the graph, by onnxruntime."""
    session, given = _session(graph, output)
    return torch.from_numpy(session.run([output], {given: images})[0])


@functools.cache
def _session(graph: Path, output: str) -> tuple[Any, str]:
    content: Any = onnx.load(str(graph))
    content.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(content.SerializeToString(), providers=["CPUExecutionProvider"])
    return session, session.get_inputs()[0].name
