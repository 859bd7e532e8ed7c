"""The patch discriminators of pix2pix (Isola et al., arXiv 1611.07004, section 6.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from translate.networks.layers import (
    Blur,
    Discriminator,
    DownsamplingName,
    InitialisationSettings,
    NormName,
    add_spectral_norm,
    needs_bias,
    norm_layer,
)
from translate.settings import Settings


class PatchSettings(Settings):
    """PatchGAN: each logit judges one square of the image."""

    kind: Literal["patch"] = "patch"
    layers: int = Field(default=3, ge=1, le=5)
    """Halvings. The square's side is 16, 34, 70, 142 or 286 pixels for 1 to 5 layers (18, 40, 84, 172 or 348
    anti-aliased)."""
    width: int = Field(default=64, ge=1)
    """Channels after the first convolution; they double up to 8 * width."""
    norm: NormName = "batch"
    downsampling: DownsamplingName = "strided"
    """What halves: the convolution's stride, or a blur behind its activation (CUT; 4 times the convolutions' work)."""
    spectral_norm: bool = False
    """Divide each convolution's weight by its largest singular value (Miyato et al., arXiv 1802.05957)."""
    initialisation: InitialisationSettings = InitialisationSettings()

    def build(self, in_channels: int) -> PatchDiscriminator:
        """A new discriminator of images (N, in_channels, H, W), weights drawn."""
        return PatchDiscriminator(self, in_channels)


class PixelSettings(Settings):
    """PixelGAN: each logit judges one pixel."""

    kind: Literal["pixel"] = "pixel"
    width: int = Field(default=64, ge=1)
    """Channels of the first 1x1 convolution, half those of the second."""
    norm: NormName = "batch"
    spectral_norm: bool = False
    """Divide each convolution's weight by its largest singular value (Miyato et al., arXiv 1802.05957)."""
    initialisation: InitialisationSettings = InitialisationSettings()

    def build(self, in_channels: int) -> PixelDiscriminator:
        """A new discriminator of images (N, in_channels, H, W), weights drawn."""
        return PixelDiscriminator(self, in_channels)


class _BlockDiscriminator(Discriminator):
    """Blocks in a row, each led by its convolution; the last one makes the logits."""

    def __init__(self, blocks: Sequence[Sequence[nn.Module]], settings: PatchSettings | PixelSettings) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*block) for block in blocks)
        if settings.spectral_norm:
            add_spectral_norm(self)
        settings.initialisation.apply(self)

    def features(self, x: Tensor) -> list[Tensor]:
        activations: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        return activations

    @property
    def receptive_field(self) -> int:
        """Side of the square of input pixels that one logit depends on (beside what a norm brings in)."""
        side = 1
        for layer in reversed(list(self.modules())):
            if isinstance(layer, nn.Conv2d):
                side = (side - 1) * layer.stride[0] + layer.kernel_size[0]
            elif isinstance(layer, Blur):
                side = (side - 1) * layer.stride + layer.kernel_size
        return side


class PatchDiscriminator(_BlockDiscriminator):
    """3 layers, width 64: 2.769 M parameters (6 channels, batch norm), 30x30 logits of 256x256 pixels."""

    def __init__(self, settings: PatchSettings, in_channels: int) -> None:
        bias = needs_bias(settings.norm)
        widths = [settings.width * min(2**level, 8) for level in range(settings.layers + 1)]
        blurs = settings.downsampling == "anti-aliased"
        blocks: list[list[nn.Module]] = [
            [nn.Conv2d(in_channels, widths[0], 4, stride=1 if blurs else 2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        ]
        for level in range(1, settings.layers + 1):
            stride = 2 if level < settings.layers and not blurs else 1
            blocks.append(
                [
                    nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=bias),
                    norm_layer(settings.norm, widths[level]),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
            )
        if blurs:
            for block in blocks[: settings.layers]:
                block.append(Blur())
        blocks.append([nn.Conv2d(widths[-1], 1, 4, padding=1)])
        super().__init__(blocks, settings)
        # Three pixels after the halvings: two for the last norm, one logit.
        self.smallest = 3 * 2**settings.layers


class PixelDiscriminator(_BlockDiscriminator):
    """1x1 convolutions: one logit for each pixel. 9,024 parameters (6 channels, batch norm)."""

    smallest = 2  # instance norm needs more than one pixel

    def __init__(self, settings: PixelSettings, in_channels: int) -> None:
        bias = needs_bias(settings.norm)
        width = settings.width
        super().__init__(
            [
                [nn.Conv2d(in_channels, width, 1), nn.LeakyReLU(0.2, inplace=True)],
                [
                    nn.Conv2d(width, 2 * width, 1, bias=bias),
                    norm_layer(settings.norm, 2 * width),
                    nn.LeakyReLU(0.2, inplace=True),
                ],
                [nn.Conv2d(2 * width, 1, 1, bias=bias)],
            ],
            settings,
        )
