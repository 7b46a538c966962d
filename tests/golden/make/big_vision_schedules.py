"""Writes ``traces/big_vision_schedules.npz``: learning rates of big_vision's own function at every step of a run.

Run by hand, from the root of a checkout of github.com/google-research/big_vision at commit 0127fb6, in an environment
with ``pip install "jax[cpu]==0.10.2" flax==0.12.8 einops ml_collections absl-py tensorflow-cpu``:
``PYTHONPATH=. python .../tests/golden/make/big_vision_schedules.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import big_vision.utils
import numpy as np

TARGET = Path(__file__).parent.parent / "traces" / "big_vision_schedules.npz"
TOTAL, BASE = 40, 3e-3
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"decay_type": "cosine", "warmup_steps": 7},
    "linear": {"decay_type": "linear", "warmup_steps": 7, "linear_end": 1e-5},
    "polynomial": {"decay_type": "polynomial", "warmup_steps": 3, "end": 1e-4, "power": 3},
    "rsqrt": {"decay_type": "rsqrt", "timescale": 10, "cooldown_steps": 8},
    "rsqrt_shift": {"decay_type": "rsqrt", "timescale": 10, "shift": 3, "warmup_steps": 5, "cooldown_steps": 8},
    "rsqrt_long_shift": {"decay_type": "rsqrt", "timescale": 10, "shift": 12, "warmup_steps": 9},
}


def main() -> None:
    """Writes the file again."""
    arrays = {}
    for name, settings in SCHEDULES.items():
        rate = big_vision.utils.create_learning_rate_schedule(TOTAL, batch_size=8, data_size=80, base=BASE, **settings)
        arrays[name] = np.array([rate(step) for step in range(TOTAL + 1)], dtype=np.float32)
    np.savez_compressed(TARGET, **arrays)


if __name__ == "__main__":
    main()
