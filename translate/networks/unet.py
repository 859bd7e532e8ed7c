"""The U-Net generator of pix2pix (Isola et al., arXiv 1611.07004, section 6.1.1)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from translate.networks.layers import (
    Generator,
    InitialisationSettings,
    NormName,
    UpsamplingName,
    needs_bias,
    norm_layer,
    upsample,
)
from translate.settings import Settings


class UNetSettings(Settings):
    """Encoder and decoder with a skip connection at each resolution."""

    kind: Literal["unet"] = "unet"
    depth: int = Field(default=8, ge=2)
    """Halvings; images must be divisible by 2**depth (8: the paper's network for 256²; 7 for 128²)."""
    width: int = Field(default=64, ge=1)
    """Channels after the first convolution; they double three times, up to 8 * width."""
    norm: NormName = "batch"
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Rate of the dropout in the inner decoder blocks (depth - 5 of them)."""
    upsampling: UpsamplingName = "transposed"
    initialisation: InitialisationSettings = InitialisationSettings()

    def build(self, in_channels: int, out_channels: int) -> UNet:
        """A new generator (N, in_channels, H, W) -> (N, out_channels, H, W), weights drawn."""
        return UNet(self, in_channels, out_channels)


class UNet(Generator):
    """54.414 M parameters at depth 8, 41.829 M at depth 7 (3 -> 3 channels, width 64, batch norm)."""

    def __init__(self, settings: UNetSettings, in_channels: int, out_channels: int) -> None:
        super().__init__()
        depth, norm, bias = settings.depth, settings.norm, needs_bias(settings.norm)
        self.multiple = self.smallest = 2**depth
        widths = [settings.width * min(2**level, 8) for level in range(depth)]
        innermost = depth - 1

        downs: list[nn.Module] = []
        for level, channels in enumerate(widths):
            layers: list[nn.Module] = [
                nn.Conv2d(widths[level - 1] if level else in_channels, channels, 4, stride=2, padding=1, bias=bias)
            ]
            if 0 < level < innermost:  # neither on raw pixels nor on the bottleneck, which may be one pixel
                layers.append(norm_layer(norm, channels))
            if level < innermost:
                layers.append(nn.LeakyReLU(0.2, inplace=True))
            downs.append(nn.Sequential(*layers))
        self.downs = nn.ModuleList(downs)

        ups: list[nn.Module] = []
        for level in range(innermost, 0, -1):
            # Above the bottleneck the skip is stacked on what comes from below.
            channels = widths[level] * (1 if level == innermost else 2)
            layers = [
                nn.ReLU(inplace=True),
                upsample(settings.upsampling, channels, widths[level - 1], kernel=4, bias=bias),
                norm_layer(norm, widths[level - 1]),
            ]
            if settings.dropout and 4 <= level < innermost:  # the blocks between two maps of 8 * width channels
                layers.append(nn.Dropout(settings.dropout))
            ups.append(nn.Sequential(*layers))
        self.ups = nn.ModuleList(ups)
        self.last = nn.Sequential(
            nn.ReLU(inplace=True),
            upsample(settings.upsampling, widths[0] * 2, out_channels, kernel=4, bias=True),
            nn.Tanh(),
        )
        settings.initialisation.apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> (N, out_channels, H, W) in [-1, 1]; `multiple` divides H and W."""
        skips: list[Tensor] = []
        for down in self.downs:
            x = down(x)  # (N, width_i, H / 2**i, W / 2**i)
            skips.append(x)
        skips.pop()  # the bottleneck is x itself
        for up in self.ups:
            # Skips come from behind their leaky ReLU; the next ReLU gives the same as for what was before.
            x = torch.cat([skips.pop(), up(x)], dim=1)
        image: Tensor = self.last(x)
        return image
