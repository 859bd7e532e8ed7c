"""The residual generator of CycleGAN (Zhu et al., arXiv 1703.10593, section 7.2), after Johnson et al."""

from __future__ import annotations

from typing import Literal

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

PaddingName = Literal["reflect", "replicate", "zeros"]


class ResNetSettings(Settings):
    """Two halvings, residual blocks, two doublings; no skip from input to output."""

    kind: Literal["resnet"] = "resnet"
    blocks: int = Field(default=9, ge=0)
    """Residual blocks: 9 in the paper for 256² and larger, 6 for 128²."""
    width: int = Field(default=64, ge=1)
    """Channels after the first convolution; 4 * width in the residual blocks."""
    norm: NormName = "instance"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate of the dropout inside each residual block."""
    upsampling: UpsamplingName = "transposed"
    padding: PaddingName = "reflect"
    """What stands outside the image for the first, last and residual convolutions."""
    initialisation: InitialisationSettings = InitialisationSettings()

    def build(self, in_channels: int, out_channels: int) -> ResNet:
        """A new generator (N, in_channels, H, W) -> (N, out_channels, H, W), weights drawn."""
        return ResNet(self, in_channels, out_channels)


class ResidualBlock(nn.Module):
    """x + conv(conv(x)), both 3x3 with norm, ReLU between them; the shape stays (N, channels, H, W)."""

    def __init__(self, settings: ResNetSettings, channels: int) -> None:
        super().__init__()

        def convolution() -> nn.Conv2d:
            bias = needs_bias(settings.norm)
            return nn.Conv2d(channels, channels, 3, padding=1, padding_mode=settings.padding, bias=bias)

        self.body = nn.Sequential(
            convolution(),
            norm_layer(settings.norm, channels),
            nn.ReLU(inplace=True),
            *([nn.Dropout(settings.dropout)] if settings.dropout else []),
            convolution(),
            norm_layer(settings.norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.body(x)
        return x + residual


class ResNet(Generator):
    """11.378 M parameters with 9 blocks, 7.838 M with 6 (3 -> 3 channels, width 64, instance norm)."""

    multiple = 4
    smallest = 8  # reflection inside the blocks and instance norm need 2x2 pixels at a quarter of the size

    def __init__(self, settings: ResNetSettings, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width, norm, bias = settings.width, settings.norm, needs_bias(settings.norm)
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 7, padding=3, padding_mode=settings.padding, bias=bias),
            norm_layer(norm, width),
            nn.ReLU(inplace=True),
        ]
        for channels in (2 * width, 4 * width):
            layers += [
                nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1, bias=bias),
                norm_layer(norm, channels),
                nn.ReLU(inplace=True),
            ]
        # (N, 4 * width, H / 4, W / 4)
        layers += [ResidualBlock(settings, 4 * width) for _ in range(settings.blocks)]
        for channels in (2 * width, width):
            layers += [
                upsample(settings.upsampling, 2 * channels, channels, kernel=3, bias=bias),
                norm_layer(norm, channels),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.Conv2d(width, out_channels, 7, padding=3, padding_mode=settings.padding), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        settings.initialisation.apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> (N, out_channels, H, W) in [-1, 1]; H and W divisible by 4."""
        image: Tensor = self.layers(x)
        return image
