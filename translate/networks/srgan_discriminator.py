"""The discriminator of SRGAN (Ledig et al., arXiv 1609.04802, figure 4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks.layers import (
    Discriminator,
    InitialisationSettings,
    NormName,
    add_spectral_norm,
    needs_bias,
    norm_layer,
    outside_autocast,
)
from translate.settings import Settings


class SRGANDiscriminatorSettings(Settings):
    """Eight 3x3 convolutions, every second one halving, then two dense layers: one logit for the whole image."""

    kind: Literal["srgan"] = "srgan"
    head: Literal["pool", "flatten"] = "pool"
    """What the dense layers read: the mean of each feature map, which fits images of any size; or all its pixels, as in
    the paper, which fits images of one size."""
    side: int = Field(default=96, ge=17)
    """Height and width of the images, for `flatten`; 96 in the paper."""
    width: int = Field(default=64, ge=1)
    """Channels after the first convolution; they double up to 8 * width, and the first dense layer has 16 * width."""
    norm: NormName = "batch"
    spectral_norm: bool = False
    """Divide each layer's weight by its largest singular value (Miyato et al., arXiv 1802.05957)."""
    initialisation: InitialisationSettings = InitialisationSettings(kind="uniform")

    def build(self, in_channels: int) -> SRGANDiscriminator:
        """A new discriminator of images (N, in_channels, H, W), weights drawn."""
        return SRGANDiscriminator(self, in_channels)


class SRGANDiscriminator(Discriminator):
    """5,213,569 parameters with pooling, 23,563,649 flattened at 96 pixels (3 channels, width 64, batch norm).

    Logits are (N, 1, 1, 1), in float32 whatever the autocast state.
    """

    def __init__(self, settings: SRGANDiscriminatorSettings, in_channels: int) -> None:
        super().__init__()
        norm, bias = settings.norm, needs_bias(settings.norm)
        flat = settings.head == "flatten"
        self.side = settings.side if flat else None
        blocks: list[nn.Module] = []
        before = in_channels
        for number in range(8):
            channels = settings.width * 2 ** (number // 2)
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(before, channels, 3, stride=1 + number % 2, padding=1, bias=bias or not number),
                    *([norm_layer(norm, channels)] if number else []),
                    nn.LeakyReLU(0.2, inplace=True),
                )
            )
            before = channels
        last = -(-settings.side // 16) if flat else 1  # four halvings, rounded up
        blocks.append(
            nn.Sequential(
                nn.Flatten() if flat else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                nn.Linear(before * last**2, 16 * settings.width),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Unflatten(1, (-1, 1, 1)),
            )
        )
        self.blocks = nn.ModuleList(blocks)
        self.score = nn.Linear(16 * settings.width, 1)
        # Of a lone image a norm that keeps channels (or narrow groups of them) apart needs two pixels a side behind the
        # last convolution: 17 halve to 9, 5, 3, 2.
        self.smallest = 1 if norm in ("layer", "none") else 17
        if flat:
            self.multiple = self.smallest = settings.side
        if settings.spectral_norm:
            add_spectral_norm(self)
        settings.initialisation.apply(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after each convolution (N, C_i, H_i, W_i) and after the first dense layer (N, 16 * width, 1, 1),
        then the logits (N, 1, 1, 1).

        Raises UserError where `flatten` was built for images of another size.
        """
        height, width = x.shape[2:]
        if self.side is not None and not height == width == self.side:
            raise UserError(
                f"discriminator 'srgan' with head 'flatten' judges images of {self.side}x{self.side} pixels, not "
                f"{width}x{height}: set its side to that of data.augment.crop, or its head to pool"
            )
        activations: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        return [*activations, outside_autocast(self.score, x.flatten(1))[:, :, None, None]]
