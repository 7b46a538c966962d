"""Writes ``traces/google_NAME.npz``: weights as today's vit_jax and big_vision name them, and the logits they compute.

Run by hand, in an environment with ``pip install "jax[cpu]==0.10.2" flax==0.12.8 einops ml_collections absl-py
tensorflow-cpu`` and checkouts of github.com/google-research/big_vision (commit 0127fb6) and vision_transformer
(c6de1e5): ``PYTHONPATH=big_vision:vision_transformer python .../tests/golden/make/google_weights.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import ml_collections
import numpy as np
from big_vision.models import vit as big_vision_vit
from vit_jax import models_vit

TRACES = Path(__file__).parent.parent / "traces"
CLASSES, WIDTH, PATCH = 5, 24, 8
SIZES: dict[str, Any] = {"width": WIDTH, "depth": 2, "mlp_dim": 48, "num_heads": 2, "patch_size": (PATCH, PATCH)}


def vit_jax_model(**more: Any) -> Any:
    """A small model of google-research/vision_transformer."""
    transformer = {"num_layers": 2, "mlp_dim": 48, "num_heads": 2}
    patches = ml_collections.ConfigDict({"size": (PATCH, PATCH)})
    return models_vit.VisionTransformer(
        num_classes=CLASSES, patches=patches, transformer=transformer, hidden_size=WIDTH, **more
    )


# name → (model, image side, arguments of its call, output → logits)
CASES: dict[str, tuple[Any, int, dict[str, Any], Any]] = {
    "vit_jax_token": (vit_jax_model(), 32, {"train": False}, lambda out: out),
    "vit_jax_mean_tanh": (
        vit_jax_model(classifier="gap", representation_size=20),
        32,
        {"train": False},
        lambda out: out,
    ),
    "big_vision_sincos": (big_vision_vit.Model(CLASSES, posemb="sincos2d", **SIZES), 224, {}, lambda out: out[0]),
    "big_vision_sincos_map": (
        big_vision_vit.Model(CLASSES, posemb="sincos2d", pool_type="map", scan=True, **SIZES),
        48,
        {},
        lambda out: out[0],
    ),
    "big_vision_token": (big_vision_vit.Model(CLASSES, pool_type="tok", **SIZES), 32, {}, lambda out: out[0]),
}


def main() -> None:
    """Writes the files again."""
    for name, (model, side, arguments, logits) in CASES.items():
        random = np.random.RandomState(0)
        images = random.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)
        params = model.init(jax.random.PRNGKey(0), images, **arguments)["params"]
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        # Every array gets numbers: heads, biases and class tokens start at zero.
        flat = {key: (0.2 * random.standard_normal(flat[key].shape)).astype(np.float32) for key in sorted(flat)}
        flat = {key: array + 1.0 if key.endswith("/scale") else array for key, array in flat.items()}
        out = model.apply({"params": flax.traverse_util.unflatten_dict(flat, sep="/")}, images, **arguments)
        np.savez_compressed(TRACES / f"google_{name}.npz", **flat)
        np.savez_compressed(TRACES / f"google_{name}_logits.npz", logits=np.asarray(logits(out)), side=side)


if __name__ == "__main__":
    main()
