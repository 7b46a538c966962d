"""The programs in the README of an export that load it.

They are complete, for a folder beside a ``photo.jpg``; tests/golden/test_model_card.py runs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pretrain.models.exchange.huggingface_folder import CONFIG, read_json
from pretrain.models.exchange.huggingface_towers import POOLED

if TYPE_CHECKING:
    from pretrain.models.metadata import WeightsMetadata

_ACTIVATED = {"softmax": ".softmax(-1)", "sigmoid": ".sigmoid()", "none": "", None: ".softmax(-1)"}


def loading(folder: Path, format: str, metadata: WeightsMetadata) -> list[str]:
    """How the exported folder is loaded by timm, transformers and this product, as Markdown."""
    name = folder.name
    lines = ["Beside the folder:", ""]
    if format == "timm":
        lines += ["timm:", "", *_program(_timm(name), metadata), ""]
    else:
        lines += ["timm reads its own folders: export with `--format timm`.", ""]
    lines += ["transformers:", "", *_program(_transformers(folder, format, metadata), metadata), ""]
    return [*lines, "vit-pretrain:", "", *_own(name, metadata)]


def _program(loading: list[str], metadata: WeightsMetadata) -> list[str]:
    """Loads the model, and prints the scores or the size of the features."""
    if not metadata.num_classes:
        shown = ["print(output.shape)"]
    elif metadata.task == "regression":
        shown = ["print(output[0].tolist())"]
    else:
        shown = [
            f"scores = output[0]{_ACTIVATED[metadata.activation]}",
            "print(int(scores.argmax()), float(scores.max()))",
        ]
    return ["```python", *loading, *shown, "```"]


def _timm(name: str) -> list[str]:
    return [
        "import timm",
        "import torch",
        "from PIL import Image",
        "",
        f'model = timm.create_model("local-dir:{name}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
        'image = transform(Image.open("photo.jpg").convert("RGB"))',
        "with torch.inference_mode():",
        "    output = model(image[None])",
    ]


def _transformers(folder: Path, format: str, metadata: WeightsMetadata) -> list[str]:
    """With the class and the output that hold what the weights compute: a tower has no logits."""
    name, auto, output = folder.name, "AutoModelForImageClassification", "logits"
    if format == "timm" and not metadata.num_classes:
        auto, output = "AutoModel", "pooler_output"
    elif format == "hf" and "ForImageClassification" not in (kind := read_json(folder / CONFIG)["architectures"][0]):
        auto, output = "AutoModel", "pooler_output" if kind in POOLED else "last_hidden_state"
    return [
        "import torch",
        "from PIL import Image",
        f"from transformers import AutoImageProcessor, {auto}",
        "",
        f'model = {auto}.from_pretrained("{name}").eval()',
        f'processor = AutoImageProcessor.from_pretrained("{name}")',
        'inputs = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")',
        "with torch.inference_mode():",
        f"    output = model(**inputs).{output}",
    ]


def _own(name: str, metadata: WeightsMetadata) -> list[str]:
    if not metadata.num_classes:
        return ["A run starts from it with `init.from`, and `python -m pipelines probe` measures its features."]
    loader = "load_regressor" if metadata.task == "regression" else "load_classifier"
    shown = "answer" if metadata.task == "regression" else "answer[0].index, answer[0].score"
    return [
        "```python",
        f"from pipelines.weights.heads import {loader}",
        "",
        f'answer = {loader}("{name}").predict(["photo.jpg"])[0]',
        f"print({shown})",
        "```",
    ]
