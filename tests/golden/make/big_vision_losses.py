"""Writes ``traces/big_vision_losses.npz``: losses of 30 steps of four recipes, trained by big_vision's own code.

Run by hand from the repository's root, in an environment with ``pip install "jax[cpu]==0.10.2" flax==0.12.8
optax==0.2.8 einops ml_collections absl-py tensorflow-cpu`` and a checkout of github.com/google-research/big_vision
(commit 0127fb6): ``PYTHONPATH=PATH/TO/big_vision python -m tests.golden.make.big_vision_losses``.

Model, loss, schedule, clipping, decay and optimiser are big_vision's, put together as its ``train.py`` does: AugReg's
sigmoid with Adam in bf16, the baseline's softmax, Scaling ViT's Adafactor, and fine-tuning by SGD with a momentum in
bf16. The start is that of google_weights.py, images and labels are those of ``tests/golden/batches.py``. Rates are
larger and schedules shorter than published, so that 30 steps show every part of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import big_vision.optax as bv_optax
import big_vision.utils as u
import flax.traverse_util
import jax
import ml_collections
import numpy as np
import optax
from big_vision.models import vit

from tests.golden.batches import BATCH, CLASSES, STEPS, batch_of

TRACES = Path(__file__).parent.parent / "traces"
SIZES: dict[str, Any] = {"width": 24, "depth": 2, "mlp_dim": 48, "num_heads": 2, "patch_size": (8, 8)}
ADAM = {"optax_name": "scale_by_adam", "optax": {"mu_dtype": "bfloat16"}, "lr": 0.005, "wd": 0.1 * 0.005}
ADAFACTOR = {"optax_name": "big_vision.scale_by_adafactor", "lr": 0.005, "wd": 0.03 * 0.005}
MOMENTUM = {"optax_name": "big_vision.momentum_hp", "lr": 0.03}
COSINE = {"warmup_steps": 6, "decay_type": "cosine"}
RSQRT = {"decay_type": "rsqrt", "timescale": 8, "warmup_steps": 6, "cooldown_steps": 10}
# recipe → (weights, arguments of the model, labels are one-hot, loss, optimiser, schedule)
RECIPES: dict[str, tuple[str, dict[str, Any], bool, Any, dict[str, Any], dict[str, Any]]] = {
    "augreg": ("token", {"pool_type": "tok"}, False, u.sigmoid_xent, ADAM, COSINE),
    "baseline": ("sincos", {"posemb": "sincos2d"}, True, u.softmax_xent, ADAM, COSINE),
    "scaling": (
        "sincos_map",
        {"posemb": "sincos2d", "pool_type": "map", "scan": True},
        False,
        u.sigmoid_xent,
        {**ADAFACTOR, "wd_mults": [(".*head/kernel", 100.0), (".*/kernel", 1.0)]},
        RSQRT,
    ),
    "transfer": ("token", {"pool_type": "tok"}, True, u.softmax_xent, MOMENTUM, COSINE),
}


def main() -> None:
    """Writes the file again."""
    arrays = {}
    for name, (weights, options, one_hot, loss, optimiser, schedule) in RECIPES.items():
        with np.load(TRACES / f"google_big_vision_{weights}.npz") as file:
            flat = {key: file[key] for key in file.files}
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        config = ml_collections.ConfigDict({**optimiser, "grad_clip_norm": 1.0, "schedule": schedule})
        sched_kw = {"total_steps": STEPS, "batch_size": BATCH, "data_size": 1000}
        transform, _ = bv_optax.make(config, params, sched_kw=sched_kw)
        model = vit.Model(CLASSES, **options, **SIZES)

        @jax.jit
        def update(
            params: Any, state: Any, images: Any, labels: Any, model=model, loss=loss, transform=transform
        ) -> Any:
            def of(params: Any) -> Any:
                return loss(logits=model.apply({"params": params}, images, train=True)[0], labels=labels)

            value, gradients = jax.value_and_grad(of)(params)
            changes, state = transform.update(gradients, state, params)
            return optax.apply_updates(params, changes), state, value, optax.global_norm(gradients)

        state, losses, norms = transform.init(params), [], []
        for step in range(STEPS):
            images, labels = batch_of(step, one_hot=one_hot)
            params, state, value, norm = update(params, state, images, labels)
            losses.append(float(value))
            norms.append(float(norm))
        arrays |= {f"{name}/losses": np.array(losses), f"{name}/norms": np.array(norms)}
        final = flax.traverse_util.flatten_dict(params, sep="/")
        arrays |= {f"{name}/final/{key}": np.asarray(final[key]) for key in ("head/kernel", "embedding/kernel")}
        print(name, np.round(losses, 4), np.round(norms, 2))
    np.savez_compressed(TRACES / "big_vision_losses.npz", **arrays)


if __name__ == "__main__":
    main()
