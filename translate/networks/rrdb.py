"""The generator of ESRGAN (Wang et al., arXiv 1809.00219, section 3.1): residual-in-residual dense blocks, no norms.

Names, arithmetic and the scales 1 and 2 are those of BasicSR (github.com/XPixelGroup/BasicSR,
basicsr/archs/rrdbnet_arch.py), which Real-ESRGAN uses as well; so their files of weights fit.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from translate.networks.layers import Generator, draw_small
from translate.settings import Scale, Settings

RESIDUAL_SCALE = 0.2
"""What a residual branch counts (section 3.1, "residual scaling"; BasicSR's number)."""


class RRDBSettings(Settings):
    """Dense blocks at the low resolution, then nearest-neighbour doublings with a convolution each."""

    kind: Literal["rrdb"] = "rrdb"
    blocks: int = Field(default=23, ge=1)
    """Residual-in-residual blocks of three dense blocks each; 23 in the paper, 6 in Real-ESRGAN's anime network."""
    width: int = Field(default=64, ge=1)
    """Channels between the blocks."""
    growth: int = Field(default=32, ge=1)
    """Channels that each convolution of a dense block adds."""
    checkpointing: bool = False
    """Keep for the backward pass what stands between the blocks alone, and compute what is inside them a second time
    (Chen et al., arXiv 1604.06174): the same gradients in less memory, for a forward pass more."""

    def build(self, in_channels: int, out_channels: int, scale: Scale) -> RRDBNet:
        """A new generator (N, in_channels, H, W) -> (N, out_channels, scale * H, scale * W), weights drawn."""
        return RRDBNet(self, in_channels, out_channels, scale)


class DenseBlock(nn.Module):
    """x + 0.2 conv5(x, y1, ..., y4), where yk = LeakyReLU(convk(x, y1, ..., y(k-1))): (N, width, H, W)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, growth, 3, padding=1)
        self.conv2 = nn.Conv2d(width + growth, growth, 3, padding=1)
        self.conv3 = nn.Conv2d(width + 2 * growth, growth, 3, padding=1)
        self.conv4 = nn.Conv2d(width + 3 * growth, growth, 3, padding=1)
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        known = x
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            known = torch.cat([known, _leaky(layer(known))], dim=1)  # `growth` channels more
        return torch.add(x, self.conv5(known), alpha=RESIDUAL_SCALE)


class RRDB(nn.Module):
    """x + 0.2 rdb3(rdb2(rdb1(x))): (N, width, H, W)."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = DenseBlock(width, growth)
        self.rdb2 = DenseBlock(width, growth)
        self.rdb3 = DenseBlock(width, growth)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=RESIDUAL_SCALE)


class RRDBNet(Generator):
    """16,697,987 parameters at x4 (3 -> 3 channels, 23 blocks, width 64, growth 32).

    At x1 and x2 the blocks work at a quarter and at half of the input's size: its pixels are first laid into channels.
    x8, which BasicSR does not have, doubles a third time.
    """

    def __init__(self, settings: RRDBSettings, in_channels: int, out_channels: int, scale: Scale) -> None:
        super().__init__()
        width = settings.width
        self.scale, self.doublings = scale, 3 if scale == 8 else 2
        self.multiple = self.smallest = 2**self.doublings // scale
        self.checkpointing = settings.checkpointing
        self.conv_first = nn.Conv2d(in_channels * self.multiple**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, settings.growth) for _ in range(settings.blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        for number in range(1, self.doublings + 1):
            self.add_module(f"conv_up{number}", nn.Conv2d(width, width, 3, padding=1))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, out_channels, 3, padding=1)
        draw_small(self.body.modules())  # the others as torch draws a new layer

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) in [-1, 1] -> (N, out_channels, scale * H, scale * W), about [-1, 1].

        `multiple` divides H and W: 4 at x1, 2 at x2, else 1.
        """
        x = F.pixel_unshuffle((x + 1) / 2, self.multiple)  # BasicSR works in [0, 1]
        first = x = self.conv_first(x)
        for block in self.body:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        x = first + self.conv_body(x)
        for number in range(1, self.doublings + 1):
            x = _leaky(self.get_submodule(f"conv_up{number}")(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        made: Tensor = self.conv_last(_leaky(self.conv_hr(x)))
        return 2 * made - 1


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)
