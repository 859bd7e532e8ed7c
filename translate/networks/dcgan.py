"""The convolutional generator and critic of DCGAN (Radford et al., arXiv 1511.06434, section 3 and figure 1)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from translate.errors import UserError
from translate.networks.attention import AttentionKind, SelfAttention
from translate.networks.conditional import Norm, VirtualBatch, VirtualBatchGenerator
from translate.networks.critics import CriticBaseSettings
from translate.networks.latent import LatentGenerator, Shape
from translate.networks.layers import (
    InitialisationSettings,
    LatentNormName,
    UpsamplingName,
    needs_bias,
    square_side,
    upsample,
)
from translate.networks.minibatch import MinibatchDeviation
from translate.settings import Settings


class DCGANGeneratorSettings(Settings):
    """From 4x4 pixels by doublings to the image: any power of two from 8."""

    kind: Literal["dcgan"] = "dcgan"
    width: int = Field(default=64, ge=1)
    """Channels at half the image's side; they double with each halving, up to 8 * width. The paper's: 128."""
    norm: LatentNormName = "batch"
    upsampling: UpsamplingName = "transposed"
    attention: int | None = None
    """Side of the feature maps over which self-attention stands (SAGAN, Zhang et al., arXiv 1805.08318: 32)."""
    attention_kind: AttentionKind = "dot"
    """`dot`: SAGAN's; `l2`: by distances, with a Lipschitz constant (Kim et al., arXiv 2006.04710)."""
    initialisation: InitialisationSettings = InitialisationSettings()

    def build(self, latent: int, shape: Shape, classes: int | None = None) -> LatentGenerator:
        """A new generator (N, latent) -> (N, *shape), weights drawn; with `classes` its batch norms are conditional.

        Raises UserError for a shape or a side of attention that it cannot have, and for classes without norm: batch.
        """
        generator = DCGANGenerator(self, latent, shape, classes)
        return VirtualBatchGenerator(generator) if self.norm == "virtual-batch" else generator


class DCGANCriticSettings(CriticBaseSettings):
    """Halvings down to 4x4 pixels, whose features the score reads: any power of two from 8."""

    kind: Literal["dcgan"] = "dcgan"
    width: int = Field(default=64, ge=1)
    """Channels after the first convolution; they double up to 8 * width."""
    norm: LatentNormName = "batch"
    """Not on the first convolution."""
    attention: int | None = None
    """Side of the feature maps over which self-attention stands (SAGAN, Zhang et al., arXiv 1805.08318: 32)."""
    attention_kind: AttentionKind = "dot"
    """`dot`: SAGAN's; `l2`: by distances, with a Lipschitz constant (Kim et al., arXiv 2006.04710)."""
    minibatch_deviation: bool = False
    """Append to the last features how much the examples differ (Karras et al., arXiv 1710.10196, section 3)."""

    def trunk(self, shape: Shape) -> tuple[nn.Module, int]:
        """Images (N, *shape) -> features (N, F) at 4x4 pixels, flat; and F.

        Raises UserError for a shape or a side of attention that it cannot have.
        """
        side = square_side(self.kind, shape)
        sides = [side >> level for level in range(1, side.bit_length() - 2)]  # side / 2, ..., 4
        _check_attention(self.attention, sides)
        bias = needs_bias(self.norm)
        layers: list[nn.Module] = []
        channels = shape[0]
        for after in sides:
            width = _channels(self.width, side, after)
            first = not layers
            layers.append(nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=bias))
            if not first:
                layers.append(Norm(self.norm, width))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            if after == self.attention:
                layers.append(SelfAttention(width, self.attention_kind))
            channels = width
        trunk: nn.Module = nn.Sequential(*layers)
        if self.norm == "virtual-batch":
            trunk = VirtualBatch(trunk, shape)
        # The deviation stands outside the reference batch, which is none of the examples.
        tail = [MinibatchDeviation()] if self.minibatch_deviation else []
        return nn.Sequential(trunk, *tail, nn.Flatten()), (channels + len(tail)) * 4 * 4


def _channels(width: int, side: int, at: int) -> int:
    """Channels of the feature maps with side `at` in a network of images with side `side`."""
    return width * min(side // (2 * at), 8)


def _check_attention(attention: int | None, sides: list[int]) -> None:
    if attention is not None and attention not in sides:
        raise UserError(f"attention: no feature maps have the side {attention}; use one of {sorted(sides)}")


class Doubling(nn.Module):
    """ReLU(norm(upsample(x))): (N, before, H, W) -> (N, after, 2H, 2W)."""

    def __init__(self, settings: DCGANGeneratorSettings, before: int, after: int, classes: int | None) -> None:
        super().__init__()
        bias = needs_bias(settings.norm)
        self.upsample = upsample(settings.upsampling, before, after, kernel=4, bias=bias)
        self.norm = Norm(settings.norm, after, classes)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        normal: Tensor = self.norm(self.upsample(x), label)
        return normal.relu()


class DCGANGenerator(LatentGenerator):
    """3.577 M parameters at 64x64 RGB, latent 100, width 64; with the paper's width of 128 12.658 M."""

    def __init__(self, settings: DCGANGeneratorSettings, latent: int, shape: Shape, classes: int | None = None) -> None:
        super().__init__()
        self.latent, self.shape, self.classes = latent, shape, classes
        side = square_side(settings.kind, shape)
        sides = [4 << level for level in range(side.bit_length() - 3)]  # 4, ..., side / 2
        _check_attention(settings.attention, sides)
        widths = [_channels(settings.width, side, at) for at in sides]
        bias = needs_bias(settings.norm)
        # The transposed 4x4 convolution of a single pixel is a linear layer.
        self.first = nn.Linear(latent, widths[0] * 4 * 4, bias=bias)
        self.norm = Norm(settings.norm, widths[0], classes)
        self.doublings = nn.ModuleList(Doubling(settings, before, after, classes) for before, after in pairwise(widths))
        self.attention = None
        if settings.attention is not None:
            channels = _channels(settings.width, side, settings.attention)
            self.attention = SelfAttention(channels, settings.attention_kind)
        self.attended = settings.attention
        self.last = upsample(settings.upsampling, widths[-1], shape[0], kernel=4, bias=bias)
        settings.initialisation.apply(self)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.first(latent).unflatten(1, (-1, 4, 4))
        x = self._attend(self.norm(x, label).relu())
        for doubling in self.doublings:
            x = self._attend(doubling(x, label))
        image: Tensor = self.last(x).tanh()
        return image

    def _attend(self, x: Tensor) -> Tensor:
        """Self-attention, where it stands."""
        if self.attention is None or x.shape[2] != self.attended:
            return x
        attended: Tensor = self.attention(x)
        return attended
