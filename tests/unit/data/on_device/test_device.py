from __future__ import annotations

import pytest
import torch

from pretrain.data.on_device.device import to_model_input


@pytest.mark.parametrize(
    ("mean", "std", "pixel", "value"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0, (-1, -1, -1)),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 255, (1, 1, 1)),
        ((0.0, 0.2, 0.4), (1.0, 0.5, 0.25), 51, (0.2, 0.0, -0.8)),
    ],
)
def test_pixels_are_normalised_per_channel(mean, std, pixel, value):
    images = torch.full((2, 3, 4, 5), pixel, dtype=torch.uint8)
    out = to_model_input(images, mean, std)
    assert out.dtype == torch.float32
    expected = torch.tensor(value, dtype=torch.float32).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(out, expected)
