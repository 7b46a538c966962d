"""Patch tokens from images: a convolution, or the ResNet of the hybrid models before it.

Legend: B images · C channels · H W · P patch side · N patch tokens · D width.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.surgery import resampled_kernel
from pretrain.models.variants import NUM_CHANNELS, STEM_WIDTH, ViTShape


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is the side of its kernel, which can be resampled for patches of another side.

    Source: FlexiViT (2212.08013), section 3.4; the kernel learns through the resampling.
    """

    def forward(self, input: Tensor, patch: int | None = None) -> Tensor:
        """Maps (B, C, H, W) to (B, D, H / P, W / P), with P = ``patch``; None: the kernel's own."""
        if patch is None or (patch, patch) == self.kernel_size:
            return super().forward(input)
        return F.conv2d(input, resampled_kernel(self.weight, (patch, patch)), self.bias, patch)


class PatchEmbed(nn.Module):
    """A convolution whose kernel equals its stride: each patch's C·P·P values times one (D, C·P·P) matrix.

    Args:
        patch: height and width of its patches.
        embed_dim: D.
        can_resample: whether ``forward`` takes patches of other sides. DeepSpeed knows the layers that autocast casts
            by their exact class, so that it reduces the gradients of a subclass in fp32.
    """

    def __init__(self, patch: tuple[int, int], embed_dim: int, *, can_resample: bool) -> None:
        super().__init__()
        convolution = PatchConv2d if can_resample else nn.Conv2d
        self.proj = convolution(NUM_CHANNELS, embed_dim, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor, patch: int | None = None) -> Tensor:
        """Embeds (B, C, H, W) as (B, N, D), patches in row-major order of the grid; ``patch`` as ``PatchConv2d``."""
        embedded = self.proj(images) if patch is None else self.proj(images, patch)
        return embedded.flatten(2).transpose(1, 2)


class HybridEmbed(nn.Module):
    """Patches of one pixel of a ResNet's feature map, each embedded by a (D, C) matrix.

    Source: ViT (2010.11929), section 3.1, hybrid architecture.
    """

    def __init__(self, stage_blocks: tuple[int, ...], embed_dim: int) -> None:
        super().__init__()
        self.backbone = ResNet(stage_blocks)
        self.proj = nn.Conv2d(self.backbone.num_features, embed_dim, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """Embeds (B, C, H, W) as (B, N, D), the feature map in row-major order."""
        return self.proj(self.backbone(images)).flatten(2).transpose(1, 2)


def patch_embed(shape: ViTShape, *, can_resample: bool) -> PatchEmbed | HybridEmbed:
    """The module that makes patch tokens from images: a convolution, or a ResNet before it."""
    if shape.stem_blocks:
        return HybridEmbed(shape.stem_blocks, shape.embed_dim)
    return PatchEmbed(shape.patch, shape.embed_dim, can_resample=can_resample)


# ── the ResNet of the hybrid models: group norm and standardised convolutions ──
# Source: Big Transfer (1912.11370) for the two changes; ViT (2010.11929), section 3.1 (hybrid); the geometry is that of
# google-research/vision_transformer, models_resnet.py. Names, epsilons and results are timm's.
# Differs: Google adds 1e-5 to the standard deviation where timm and we add 1e-8 to the variance under the root, and has
# 1e-6 instead of 1e-5 in group norm; the logits of an R50 hybrid differ by 1.4e-5.

NUM_GROUPS = 32


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pads (B, C, H, W) as TensorFlow's SAME: ceil(H / stride) outputs, the odd pixel of padding below and right."""
    height, width = (max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
    if not (height or width):
        return x
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class StdConv2d(nn.Conv2d):
    """A convolution without bias whose kernel is standardised per output channel, in fp32 at least."""

    def __init__(self, into: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(into, out, kernel, stride, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H / stride, W / stride)."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (weight - mean) * torch.rsqrt(variance + 1e-8)
        padded = pad_same(input, self.kernel_size[0], self.stride[0])
        return F.conv2d(padded, weight.to(input.dtype), None, self.stride)


class Bottleneck(nn.Module):
    """relu(shortcut + 1×1 → 3×3 → 1×1), each convolution followed by a group norm."""

    def __init__(self, into: int, middle: int, stride: int, project: bool) -> None:
        super().__init__()
        parts = [("conv", StdConv2d(into, 4 * middle, 1, stride)), ("norm", nn.GroupNorm(NUM_GROUPS, 4 * middle))]
        self.downsample = nn.Sequential(OrderedDict(parts)) if project else nn.Identity()
        self.conv1, self.norm1 = StdConv2d(into, middle, 1), nn.GroupNorm(NUM_GROUPS, middle)
        self.conv2, self.norm2 = StdConv2d(middle, middle, 3, stride), nn.GroupNorm(NUM_GROUPS, middle)
        self.conv3, self.norm3 = StdConv2d(middle, 4 * middle, 1), nn.GroupNorm(NUM_GROUPS, 4 * middle)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, 4 · middle, H / stride, W / stride)."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.downsample(x))


class Stem(nn.Module):
    """7×7 convolution and 3×3 maximum, each of stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = StdConv2d(NUM_CHANNELS, STEM_WIDTH, 7, 2)
        self.norm = nn.GroupNorm(NUM_GROUPS, STEM_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, 64, H / 4, W / 4)."""
        x = F.relu(self.norm(self.conv(x)))
        return F.max_pool2d(pad_same(x, 3, 2, -math.inf), 3, 2)


class ResNet(nn.Module):
    """Stem and stages of bottlenecks; each stage after the first halves the sides and doubles the width."""

    def __init__(self, stage_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = Stem()
        self.stages, into = nn.Sequential(), STEM_WIDTH
        for stage, num_blocks in enumerate(stage_blocks):
            middle, blocks = STEM_WIDTH * 2**stage, nn.Sequential()
            for index in range(num_blocks):
                blocks.append(Bottleneck(into, middle, stride=2 if stage and not index else 1, project=not index))
                into = 4 * middle
            self.stages.append(nn.Sequential(OrderedDict([("blocks", blocks)])))
        self.num_features = into

    def forward(self, images: Tensor) -> Tensor:
        """The last feature map (B, num_features, H / stride, W / stride)."""
        return self.stages(self.stem(images))
