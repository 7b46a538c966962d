from __future__ import annotations

import pickle
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from pipelines.sources.digits import DigitsSource
from pretrain.data.images.decode import open_image


def test_digits_are_those_of_scikit_learn_without_loss():
    source = DigitsSource()
    items = source.items()
    bunch: Any = load_digits()
    assert len(items) == 1797
    assert [item.labels for item in items] == [(label,) for label in bunch.target.tolist()]
    for index in (0, 7, 1796):
        data, extension = source.read(items[index])
        pixels = open_image(data).decode()
        assert extension == "png"
        assert pixels.shape == (8, 8, 3)
        assert np.array_equal(np.rint(pixels[..., 0] / (255 / 16)), bunch.images[index])
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_a_process_gets_the_source_without_its_images():
    source = DigitsSource()
    items = source.items()
    sent = pickle.dumps(source)
    assert len(sent) < 2000
    assert pickle.loads(sent).read(items[3]) == source.read(items[3])
