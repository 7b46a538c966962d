"""Writes traces/tf_resize.npz: pictures resized by TensorFlow, and evaluation images of big_vision's pipeline.

Made with TensorFlow 2.15.1 (CPU), NumPy 1.26.4, Python 3.11 and google-research/big_vision at commit
0127fb6b337ee2a27bf4e54dea79cff176527356, whose ``pp/ops_image.py`` is imported unchanged. Run by hand from the
repository's root, in an environment with these:

    PYTHONPATH=PATH/TO/big_vision python -m tests.golden.make.tf_resize

``resize/…``: ``tf.image.resize`` without antialias, fp32, before the pipelines cut it to bytes; every ``step``-th row
and column. ``evaluation/…``: ``resize_small`` and ``central_crop`` of odd sizes, bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from big_vision.pp import ops_image

from tests.golden.pictures import picture

OUT = Path(__file__).resolve().parents[1] / "traces" / "tf_resize.npz"
SIZES = ((61, 83, 32, 32, 1), (40, 30, 64, 64, 3), (251, 263, 224, 224, 11), (333, 500, 256, 384, 13))
ODD = ((61, 83), (83, 61), (40, 40), (101, 97), (64, 333), (45, 46), (37, 90), (59, 200))
SHORT_SIDE, SIDE = 37, 32


def main() -> None:
    """Makes the file."""
    results = {}
    for height, width, to_height, to_width, step in SIZES:
        for method in ("bilinear", "area"):
            made = tf.image.resize(picture(height, width), (to_height, to_width), method=method, antialias=False)
            results[f"resize/{method}/{height}x{width}/{to_height}x{to_width}/{step}"] = made.numpy()[::step, ::step]
    for height, width in ODD:
        image = {"image": tf.constant(picture(height, width))}
        small = ops_image.get_resize_small(SHORT_SIDE)(image)
        results[f"evaluation/{height}x{width}"] = ops_image.get_central_crop(SIDE)(small)["image"].numpy()
    np.savez_compressed(OUT, **results)
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
