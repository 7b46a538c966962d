"""Writes traces/tf_randaugment_*.npz: every operation of RandAugment, computed by TensorFlow's reference code.

Made with TensorFlow 2.15.1 (CPU), TensorFlow Addons 0.23.0, NumPy 1.26.4, Python 3.11, and google-research/big_vision
at commit 0127fb6b337ee2a27bf4e54dea79cff176527356, whose ``pp/archive/autoaugment.py`` is imported unchanged.
Run by hand from the repository's root, in an environment with these; this project need not be installed there:

    TF_ENABLE_ONEDNN_OPTS=0 python -m tests.golden.make.tf_randaugment PATH/TO/big_vision/pp/archive

An operation's random numbers (its sign, the centre of a cutout) are replaced by fixed ones, and nothing else. The
operations run inside a ``tf.function`` with an image of unknown size, as in an input pipeline. Of a large result every
``step``-th row and column is kept.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.golden.pictures import FLAT, flat, picture

TRACES = Path(__file__).resolve().parents[1] / "traces"
LEVELS = (0, 2, 5, 7, 9, 10, 15, 20, 25)
SIGNED = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
SIZES = {"small": (13, 19, 1), "tall": (29, 11, 1), "square": (224, 224, 16), "wide": (251, 263, 19)}
CENTRES = ((0, 0), (7, 10), (-1, -1))  # rows and columns; negative: from the far edge
NEED_A_RANGE = ("AutoContrast", "Equalize", "Sharpness", "Contrast", "Color", "Solarize", "Posterize")


def apply(reference: Any, name: str, level: float, sign: int, centre: tuple[int, int], image: np.ndarray) -> np.ndarray:
    """One operation at one level, with the sign and the centre that are given."""
    hparams = reference.HParams(cutout_const=40, translate_const=100)  # distort_image_with_randaugment's
    reference._randomly_negate_tensor = lambda value: tf.constant(value, tf.float32) * sign
    places = iter([centre[0] % image.shape[0], centre[1] % image.shape[1]])
    tf.compat.v1.random_uniform = lambda *args, **kwargs: tf.constant(next(places), tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def run(pixels: tf.Tensor) -> tf.Tensor:
        operation, _, arguments = reference._parse_policy_info(name, 1.0, float(level), [128] * 3, hparams)
        return operation(pixels, *arguments)

    return run(image).numpy()


def write(label: str, rows: list[tuple[str, float, int, int, int]], results: list[np.ndarray]) -> None:
    """One file: the operation, level, sign and centre of each result, and the results."""
    names, levels, signs, tops, lefts = zip(*rows, strict=True)
    path = TRACES / f"tf_randaugment_{label}.npz"
    np.savez_compressed(
        path,
        operation=np.array(names),
        level=np.array(levels),
        sign=np.array(signs),
        centre=np.stack([tops, lefts], axis=1),
        result=np.stack(results),
    )
    print(path, path.stat().st_size, "bytes,", len(rows), "results")


def main(path: str) -> None:
    """Makes all files."""
    sys.path.insert(0, path)
    import autoaugment as reference

    operations = list(reference.NAME_TO_FUNC)
    for label, (height, width, step) in SIZES.items():
        image, rows, results = picture(height, width), [], []
        for name, level in itertools.product(operations, LEVELS):
            for sign in (1, -1) if name in SIGNED else (1,):
                for centre in CENTRES if name == "Cutout" else CENTRES[:1]:
                    rows.append((name, level, sign, centre[0] % height, centre[1] % width))
                    results.append(apply(reference, name, level, sign, centre, image)[::step, ::step])
        write(label, rows, results)
    rows, results = [], []
    for label, name, level in itertools.product(FLAT, NEED_A_RANGE, LEVELS):
        rows.append((f"{label}/{name}", level, 1, 0, 0))
        results.append(apply(reference, name, level, 1, (0, 0), flat(label)))
    write("flat", rows, results)


if __name__ == "__main__":
    main(sys.argv[1])
