"""Architectures of timm, saved by timm, read here, and written back: the same outputs everywhere."""

from __future__ import annotations

import pytest

from tests.sweeps.timm_models import NUM_CLASSES, outcome

REPRESENTATIVES = {
    "vit_small_patch16_224": "vit",
    "vit_so400m_patch14_siglip_224": "vit",
    "deit3_small_patch16_224": "vit",
    "vit_small_patch14_reg4_dinov2": "vit",
    "vit_base_patch16_clip_quickgelu_224": "timm",
    "vit_small_patch16_dinov3": "timm",
    "eva02_tiny_patch14_224": "vit",
    "beitv2_base_patch16_224": "timm",
    "vit_pe_core_tiny_patch16_384": "timm",
    "aimv2_large_patch14_224": "timm",
    "hiera_tiny_224": "timm",
    "swin_tiny_patch4_window7_224": "timm",
}


HEADLESS = ("vit_so400m_patch14_siglip_224", "vit_small_patch16_dinov3", "hiera_tiny_224")
CASES = [*((name, NUM_CLASSES) for name in REPRESENTATIVES), *((name, 0) for name in HEADLESS)]


@pytest.mark.parametrize(("name", "num_classes"), CASES)
def test_representatives(name: str, num_classes: int) -> None:
    found = outcome(name, num_classes)
    assert (found.family, found.reason) == (REPRESENTATIVES[name], "")
