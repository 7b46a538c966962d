"""The ResNet of the hybrid models: group norm and standardised convolutions.

Legend: B images · C channels · H W.
Source: Big Transfer (1912.11370) for the two changes; ViT (2010.11929), section 3.1 (hybrid); the geometry is that of
google-research/vision_transformer, models_resnet.py. Names, epsilons and results are timm's.
Differs: Google adds 1e-5 to the standard deviation where timm and we add 1e-8 to the variance under the root, and has
1e-6 instead of 1e-5 in group norm; the logits of an R50 hybrid differ by 1.4e-5.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.variants import NUM_CHANNELS, STEM_WIDTH

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
