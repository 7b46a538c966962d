"""Writes ``traces/schedule_free_updates.npz``: weights after updates of Meta's schedule-free AdamW.

Run by hand, in an environment of its own: ``pip install torch==2.14.0 schedulefree==1.4.1`` and
``python tests/golden/make/schedule_free_updates.py``. There are both sets of weights: those that are trained, and their
average.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from schedulefree import AdamWScheduleFree

TARGET = Path(__file__).parent.parent / "traces" / "schedule_free_updates.npz"
STEPS, LR, DECAY, BETAS = 30, 0.02, 0.1, (0.9, 0.99)
SHAPES = {"kernel": (16, 12), "bias": (16,)}
WARMUPS = (0, 6)  # the rate of update k = 0, 1, … is LR · min(1, (k + 1) / warmup)


def main() -> None:
    """Writes the file again."""
    random = np.random.RandomState(0)
    start = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    # Of very different sizes, so that the second moment matters.
    gradients = {
        name: (
            (random.standard_normal((STEPS, *shape)) + 0.5) * 10.0 ** random.randint(-3, 2, size=(1, *shape))
        ).astype(np.float16)  # exact in fp32, and half the file
        for name, shape in SHAPES.items()
    }
    arrays = {f"start/{name}": array for name, array in start.items()}
    arrays |= {f"gradient/{name}": array for name, array in gradients.items()}
    for warmup in WARMUPS:
        arrays |= {f"warmup {warmup}/{key}": array for key, array in run(warmup, start, gradients).items()}
    np.savez_compressed(TARGET, **arrays, lr=LR, decay=DECAY, betas=np.array(BETAS))


def run(warmup: int, start: dict[str, np.ndarray], gradients: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``trained/NAME`` and ``average/NAME`` after updates 10 and 30: (2, ...)."""
    weights = {name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in start.items()}
    groups = [{"params": [one], "weight_decay": DECAY if one.ndim > 1 else 0.0} for one in weights.values()]
    optimizer = AdamWScheduleFree(groups, lr=LR, betas=BETAS, warmup_steps=warmup)
    optimizer.train()
    seen: dict[str, list[np.ndarray]] = {}
    for step in range(STEPS):
        for name, one in weights.items():
            one.grad = torch.from_numpy(gradients[name][step].astype(np.float32))
        optimizer.step()
        if step + 1 in (10, 30):
            optimizer.eval()
            for name, one in weights.items():
                seen.setdefault(f"average/{name}", []).append(one.detach().numpy().copy())
            optimizer.train()
            for name, one in weights.items():
                seen.setdefault(f"trained/{name}", []).append(one.detach().numpy().copy())
    return {key: np.stack(arrays) for key, arrays in seen.items()}


if __name__ == "__main__":
    main()
