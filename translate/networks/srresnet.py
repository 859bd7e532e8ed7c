"""The residual generator of SRGAN (Ledig et al., arXiv 1609.04802, figure 4), which trained by pixels is SRResNet."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from translate.networks.faster import NarrowConv2d, PReLU, SubPixelConv2d
from translate.networks.layers import Generator, InitialisationSettings, NormName, needs_bias, norm_layer
from translate.settings import Scale, Settings


class SRResNetSettings(Settings):
    """Residual blocks at the low resolution, then sub-pixel convolutions."""

    kind: Literal["srresnet"] = "srresnet"
    blocks: int = Field(default=16, ge=1)
    """Residual blocks; 16 in the paper (section 3.2)."""
    width: int = Field(default=64, ge=1)
    """Channels of all layers but the first and the last."""
    norm: NormName = "batch"
    initialisation: InitialisationSettings = InitialisationSettings(kind="uniform")

    def build(self, in_channels: int, out_channels: int, scale: Scale) -> SRResNet:
        """A new generator (N, in_channels, H, W) -> (N, out_channels, scale * H, scale * W), weights drawn."""
        return SRResNet(self, in_channels, out_channels, scale)


class ResidualBlock(nn.Module):
    """x + norm(conv(PReLU(norm(conv(x))))): (N, width, H, W), nothing behind the sum."""

    def __init__(self, settings: SRResNetSettings) -> None:
        super().__init__()
        width, norm, bias = settings.width, settings.norm, needs_bias(settings.norm)
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=bias),
            norm_layer(norm, width),
            PReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=bias),
            norm_layer(norm, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return x + residual


class SRResNet(Generator):
    """1,547,350 parameters at x4 (3 -> 3 channels, 16 blocks, width 64, batch norm; each PReLU has one slope).

    The network sees the low resolution in [0, 1] and makes the high one in [-1, 1] (section 3.2): a black border
    around the image is then zero padding. There is no tanh at its end; what leaves the range is clamped when it
    becomes pixels.
    """

    multiple = 1
    smallest = 1

    def __init__(self, settings: SRResNetSettings, in_channels: int, out_channels: int, scale: Scale) -> None:
        super().__init__()
        width, norm = settings.width, settings.norm
        self.scale = scale
        self.head = nn.Sequential(nn.Conv2d(in_channels, width, 9, padding=4), PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(settings) for _ in range(settings.blocks)))
        self.merge = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=needs_bias(norm)),
            norm_layer(norm, width),
        )
        doublings: list[nn.Module] = []
        for _ in range(int(math.log2(scale))):
            doublings += [SubPixelConv2d(width), PReLU()]  # (N, width, h, w) -> (N, width, 2h, 2w)
        self.upsampling = nn.Sequential(*doublings)
        self.tail = NarrowConv2d(width, out_channels, 9)
        settings.initialisation.apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) in [-1, 1] -> (N, out_channels, scale * H, scale * W), about [-1, 1]."""
        first: Tensor = self.head((x + 1) / 2)
        x = first + self.merge(self.blocks(first))
        made: Tensor = self.tail(self.upsampling(x))
        return made
