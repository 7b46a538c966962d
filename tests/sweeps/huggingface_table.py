"""The table of the classes of transformers that are read, and what becomes of them on the way back.

Each network is built small by transformers, saved by it, read here, compared, and written back where Hugging Face can
express it; then transformers loads that folder and must compute the same.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from pipelines.weights.network import built
from pretrain.errors import CheckpointError
from pretrain.models.exchange.huggingface import read_huggingface, write_huggingface
from pretrain.models.exchange.huggingface_folder import CONFIG, read_json
from pretrain.models.exchange.onnx import Features
from pretrain.models.families.hf_backbone import pooled
from tests.golden.exchange import SQUASH
from tests.sweeps.huggingface import CASES, outputs_of, save
from tests.sweeps.page import table

NAME = "transformers"


class Outcome(NamedTuple):
    """After its round trip: ``model.name`` of the weights, and why they are not written back (empty: they are)."""

    name: str
    refusal: str


@functools.cache
@torch.no_grad()
def outcome(name: str) -> Outcome:
    """Reads a saved case, compares it, writes it back and compares again.

    Raises:
        AssertionError: outputs differ by more than 1e-5 of the largest. CheckpointError: it is not read.
    """
    with tempfile.TemporaryDirectory() as folder:
        theirs, back = Path(folder) / "theirs", Path(folder) / "back"
        net = save(name, theirs)
        state, metadata = read_huggingface(theirs)
        images = torch.randn(2, 3, *metadata.img_size, generator=torch.Generator().manual_seed(1))
        expected = outputs_of(name, net, images)
        limits: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5 * max(1.0, float(expected.abs().max()))}
        ours = built(state, metadata)
        torch.testing.assert_close((ours if metadata.num_classes else Features(ours))(images), expected, **limits)
        back.mkdir()
        try:
            write_huggingface(back, state, metadata.model_copy(update={"eval_transform": SQUASH}))
        except CheckpointError as error:
            return Outcome(metadata.model.name, str(error).partition(";")[0])
        kind = getattr(transformers, read_json(back / CONFIG)["architectures"][0])
        torch.testing.assert_close(pooled(kind.from_pretrained(back).eval()(images)), expected, **limits)
        return Outcome(metadata.model.name, "")


def section() -> str:
    """The text: one row per network."""
    found = {name: outcome(name) for name in CASES}
    as_vit, written = (sum(test(one) for one in found.values()) for test in (_is_vit, _is_written))
    return "\n".join(
        [
            f"{len(found)} networks of transformers, small and with random weights, were saved by it and read: "
            f"{as_vit} as `vit`, {len(found) - as_vit} as `hf/CLASS`, with the same outputs to 1e-5; {written} "
            "are written back as a folder from which transformers computes the same.",
            "",
            *table(
                ("Network", "Class", "Read as", "Written back as `hf`"),
                [(name, f"`{CASES[name].kind}`", f"`{one.name}`", one.refusal or "yes") for name, one in found.items()],
            ),
        ]
    )


def _is_vit(one: Outcome) -> bool:
    return one.name == "vit"


def _is_written(one: Outcome) -> bool:
    return not one.refusal
