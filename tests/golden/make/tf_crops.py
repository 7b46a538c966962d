"""Writes traces/tf_crops.npz: boxes of TensorFlow's distorted bounding box, as big_vision's inception_crop asks.

Made with TensorFlow 2.15.1 (CPU), NumPy 1.26.4, Python 3.11. The arguments are those of google-research/big_vision,
``pp/ops_image.py``, ``decode_jpeg_and_inception_crop``: 5 to 100 % of the area, ratios 0.75 to 1.33, the complete image
as the only object, none of which must be covered. Run by hand from the repository's root, in an environment with these:

    python -m tests.golden.make.tf_crops
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

OUT = Path(__file__).resolve().parents[1] / "traces" / "tf_crops.npz"
DRAWS = 4000
SIZES = ((375, 500), (500, 333), (224, 224), (17, 23), (5, 4), (40, 400), (10, 258), (10, 1000))


@tf.function
def draw(height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """(DRAWS, 4): top, left, height, width."""

    def one(_: tf.Tensor) -> tf.Tensor:
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.stack([height, width, 3]),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(0.05, 1.0),
            aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
            seed=1,
        )
        return tf.concat([begin[:2], size[:2]], axis=0)

    return tf.map_fn(one, tf.range(DRAWS), parallel_iterations=1)


def main() -> None:
    """Makes the file."""
    tf.random.set_seed(0)
    boxes = {f"{h}x{w}": draw(tf.constant(h), tf.constant(w)).numpy().astype(np.uint16) for h, w in SIZES}
    np.savez_compressed(OUT, **boxes)
    for size, drawn in boxes.items():
        height, width = map(int, size.split("x"))
        share = (drawn[:, 2].astype(float) * drawn[:, 3]).mean() / (height * width)
        print(size, "mean area", round(share, 4), "complete", (drawn[:, 2:] == [height, width]).all(axis=1).mean())
    print(OUT, OUT.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
