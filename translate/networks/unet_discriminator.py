"""The U-Net discriminator of Real-ESRGAN (Wang et al., arXiv 2107.10833, section 3.4), layer by layer as BasicSR has it
(github.com/XPixelGroup/BasicSR, basicsr/archs/discriminator_arch.py, `UNetDiscriminatorSN`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate.networks.layers import Discriminator, InitialisationSettings, add_spectral_norm, outside_autocast
from translate.settings import Settings


class UNetDiscriminatorSettings(Settings):
    """Three halvings and three doublings with skips between them: a logit for each pixel."""

    kind: Literal["unet"] = "unet"
    width: int = Field(default=64, ge=1)
    """Channels at the image's size; they double with each halving, up to 8 * width."""
    initialisation: InitialisationSettings = InitialisationSettings(kind="uniform")

    def build(self, in_channels: int) -> UNetDiscriminator:
        """A new discriminator of images (N, in_channels, H, W), weights drawn."""
        return UNetDiscriminator(self, in_channels)


class UNetDiscriminator(Discriminator):
    """4,376,897 parameters (3 channels, width 64). All convolutions but the first and the last have spectral norm.

    Logits are (N, 1, H, W), in float32 whatever the autocast state.
    """

    multiple = smallest = 8

    def __init__(self, settings: UNetDiscriminatorSettings, in_channels: int) -> None:
        super().__init__()
        width = settings.width
        self.conv0 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1, bias=False)
        self.conv3 = nn.Conv2d(4 * width, 8 * width, 4, stride=2, padding=1, bias=False)
        self.conv4 = nn.Conv2d(8 * width, 4 * width, 3, padding=1, bias=False)
        self.conv5 = nn.Conv2d(4 * width, 2 * width, 3, padding=1, bias=False)
        self.conv6 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.conv7 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv8 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv9 = nn.Conv2d(width, 1, 3, padding=1)
        for name, layer in list(self.named_children()):
            if name not in ("conv0", "conv9"):
                add_spectral_norm(layer)
        settings.initialisation.apply(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after conv0, ..., conv8, those of the way up with their skip added, then the logits (N, 1, H, W).

        8 divides H and W.
        """
        down0 = _leaky(self.conv0(x))  # (N, width, H, W)
        down1 = _leaky(self.conv1(down0))
        down2 = _leaky(self.conv2(down1))
        down3 = _leaky(self.conv3(down2))  # (N, 8 * width, H / 8, W / 8)
        up4 = _leaky(self.conv4(_doubled(down3))) + down2
        up5 = _leaky(self.conv5(_doubled(up4))) + down1
        up6 = _leaky(self.conv6(_doubled(up5))) + down0
        last7 = _leaky(self.conv7(up6))
        last8 = _leaky(self.conv8(last7))
        return [down0, down1, down2, down3, up4, up5, up6, last7, last8, outside_autocast(self.conv9, last8)]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear")


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)
