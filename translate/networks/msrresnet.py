"""SRResNet without batch norm, as BasicSR has it (github.com/XPixelGroup/BasicSR, basicsr/archs/srresnet_arch.py)."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks.layers import Generator, draw_small
from translate.settings import Scale, Settings


class MSRResNetSettings(Settings):
    """Residual blocks without norms at the low resolution, then sub-pixel convolutions; added to the enlarged input."""

    kind: Literal["msrresnet"] = "msrresnet"
    blocks: int = Field(default=16, ge=1)
    """Residual blocks."""
    width: int = Field(default=64, ge=1)
    """Channels of all layers but the last."""

    def build(self, in_channels: int, out_channels: int, scale: Scale) -> MSRResNet:
        """A new generator (N, in_channels, H, W) -> (N, out_channels, scale * H, scale * W), weights drawn.

        Raises UserError where `out_channels` are not `in_channels`.
        """
        if in_channels != out_channels:
            raise UserError(
                f"generator 'msrresnet' adds its input to its output, so it cannot turn {in_channels} channels into "
                f"{out_channels}; use kind: srresnet or rrdb"
            )
        return MSRResNet(self, in_channels, scale)


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))): (N, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(F.relu(self.conv1(x), inplace=True))
        return x + residual


class MSRResNet(Generator):
    """1,517,571 parameters at x4 (3 channels, 16 blocks, width 64).

    Names and arithmetic of the layers are those of BasicSR, which works in [0, 1]: its files of weights fit. Scales 1
    and 8, which it does not have, continue the row: no sub-pixel convolution, and three.
    """

    multiple = 1
    smallest = 1

    def __init__(self, settings: MSRResNetSettings, channels: int, scale: Scale) -> None:
        super().__init__()
        width = settings.width
        self.scale, self.doublings = scale, int(math.log2(scale))
        self.conv_first = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(settings.blocks)))
        for number in range(1, self.doublings + 1):
            self.add_module(f"upconv{number}", nn.Conv2d(width, 4 * width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, channels, 3, padding=1)
        draw_small(self.modules())

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> (N, C, scale * H, scale * W), about [-1, 1]."""
        y: Tensor = self.body(_leaky(self.conv_first((x + 1) / 2)))
        for number in range(1, self.doublings + 1):
            # (N, 4 * width, h, w) -> (N, width, 2h, 2w)
            y = _leaky(F.pixel_shuffle(self.get_submodule(f"upconv{number}")(y), 2))
        y = self.conv_last(_leaky(self.conv_hr(y)))
        # To [-1, 1]: 2 (y + enlarged (x + 1) / 2) - 1, and enlarging leaves constants as they are.
        return 2 * y + F.interpolate(x, scale_factor=self.scale, mode="bilinear")


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1, inplace=True)
