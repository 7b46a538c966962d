"""Resizing of position embeddings and patch kernels against scipy (Google), plain torch (DeiT) and timm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_simple

from pretrain.models import surgery
from pretrain.models.surgery import resize_pos_embed, resize_relative_bias

Grid = tuple[int, int]
GRIDS: list[tuple[Grid, Grid]] = [
    ((14, 14), (24, 24)),
    ((24, 24), (14, 14)),
    ((7, 7), (7, 12)),
    ((5, 9), (8, 3)),
    ((2, 3), (11, 11)),
]


def embedding(grid: Grid, num_prefix_tokens: int, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(grid[0] * 100 + grid[1])
    return torch.randn(1, num_prefix_tokens + grid[0] * grid[1], width, generator=generator)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_corners_equals_scipy_zoom(old: Grid, new: Grid, num_prefix_tokens: int) -> None:
    source = embedding(old, num_prefix_tokens)
    patches = source[0, num_prefix_tokens:].reshape(*old, -1).double().numpy()
    zoom = (new[0] / old[0], new[1] / old[1], 1)
    expected: Any = scipy.ndimage.zoom(patches, zoom, order=1)
    assert expected.shape[:2] == new
    ours = resize_pos_embed(source, old, new, num_prefix_tokens, "bilinear_corners")
    got = ours[0, num_prefix_tokens:].reshape(*new, -1).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    assert torch.equal(ours[:, :num_prefix_tokens], source[:, :num_prefix_tokens])


def test_corners_stay_where_they_are() -> None:
    source = embedding((4, 6), 0).reshape(4, 6, -1)
    resized = resize_pos_embed(source.reshape(1, 24, -1), (4, 6), (9, 7), 0, "bilinear_corners").reshape(9, 7, -1)
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(resized[row, column], source[row, column], rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_aa_equals_timm(old: Grid, new: Grid, num_prefix_tokens: int) -> None:
    source = embedding(old, num_prefix_tokens)
    expected = resample_abs_pos_embed(source, list(new), list(old), num_prefix_tokens)
    ours = resize_pos_embed(source, old, new, num_prefix_tokens, "bicubic_aa")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_equals_torch(old: Grid, new: Grid) -> None:
    source = embedding(old, 1)
    planes = source[:, 1:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(planes, size=new, mode="bicubic", align_corners=False)
    ours = resize_pos_embed(source, old, new, 1, "bicubic")
    torch.testing.assert_close(ours[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6)
    assert torch.equal(ours[:, :1], source[:, :1])


@pytest.mark.parametrize("filter", ["bilinear_corners", "bicubic", "bicubic_aa"])
@pytest.mark.parametrize(("old", "new"), [((9, 1), (4, 1)), ((9, 1), (4, 3)), ((9, 5), (4, 1)), ((1, 1), (3, 2))])
def test_grids_of_one_column_resize_as_those_of_one_row(old: Grid, new: Grid, filter: Any) -> None:
    source = embedding(old, 1)
    turned = torch.cat([source[:, :1], source[:, 1:].unflatten(1, old).transpose(1, 2).flatten(1, 2)], dim=1)
    ours = resize_pos_embed(source, old, new, 1, filter)[:, 1:].unflatten(1, new)
    other = resize_pos_embed(turned, (old[1], old[0]), (new[1], new[0]), 1, filter)[:, 1:].unflatten(1, new[::-1])
    torch.testing.assert_close(ours, other.transpose(1, 2), rtol=0, atol=1e-5)


def test_the_three_filters_differ() -> None:
    source = embedding((14, 14), 1)
    results = [resize_pos_embed(source, (14, 14), (7, 7), 1, f) for f in ("bilinear_corners", "bicubic", "bicubic_aa")]
    for index, left in enumerate(results):
        for right in results[index + 1 :]:
            assert (left - right).abs().max() > 1e-2


@pytest.mark.parametrize("num_prefix_rows", [0, 3])
@pytest.mark.parametrize(("old", "new"), [(7, 12), (12, 7)])
def test_relative_bias_equals_timms_simple_resize(old: int, new: int, num_prefix_rows: int) -> None:
    table = torch.randn((2 * old - 1) ** 2 + num_prefix_rows, 6)
    shape = ((2 * new - 1) ** 2 + num_prefix_rows, 6)
    expected = resize_rel_pos_bias_table_simple(table, (new, new), shape)
    ours = resize_relative_bias(table, (old, old), (new, new), "bicubic")
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (8, 8)), ((16, 16), (14, 14)), ((8, 8), (16, 16)), ((4, 6), (5, 3))]
)
def test_patch_kernels_equal_timms(old: Grid, new: Grid) -> None:
    kernel = torch.randn(5, 3, *old, generator=torch.Generator().manual_seed(old[0] + new[1]))
    expected = resample_patch_embed(kernel, list(new))
    torch.testing.assert_close(surgery.resample_patch_embed(kernel, new), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(surgery.resample_patch_embed(kernel, old), kernel)
