"""Generator and critic without norm layers (Huang et al., arXiv 2501.05441, "The GAN is dead; long live the GAN!",
section 4, configuration E; the numbers are those of the authors' code, github.com/brownvc/R3GAN)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from translate.errors import UserError
from translate.networks.critics import CriticBaseSettings
from translate.networks.latent import LatentGenerator, Shape
from translate.networks.layers import InitialisationSettings, add_spectral_norm, square_side
from translate.settings import Settings

LEAK = 0.2
RELU_GAIN = math.sqrt(2 / (1 + LEAK**2))
"""What a leaky ReLU takes from the deviation of its input (He et al., arXiv 1502.01852, eq. 15)."""


class _BodySettings(Settings):
    """What generator and critic have in common: stages at sides 4, 8, ... up to the image's."""

    width: int = Field(default=128, ge=1)
    """Channels at sides 4 to `full_to`; above, they halve with each doubling of the side. The paper's: 768."""
    full_to: Literal[4, 8, 16, 32, 64] = 32
    """Largest side with all channels (the paper's 32); less makes much cheaper networks."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks of each stage (the paper's 2)."""
    expansion: int = Field(default=2, ge=1)
    """Channels inside a block per channel outside (the paper's 2)."""
    group_width: int = Field(default=16, ge=1)
    """Channels of each group of the 3x3 convolutions (the paper's 16: 1536 channels in 96 groups)."""

    def halvings(self, side: int) -> int:
        """How often the channels are halved at a side."""
        return max(side.bit_length() - self.full_to.bit_length(), 0)

    def widths(self, side: int) -> list[int]:
        """Channels of each stage, from side 4 up to `side`.

        Raises:
            UserError: a stage's channels cannot be halved or grouped.
        """
        widths = []
        for stage in range(side.bit_length() - 2):
            halvings = self.halvings(4 * 2**stage)
            inner = self.expansion * self.width // 2**halvings
            if self.width % 2**halvings or inner % min(self.group_width, inner or 1):
                raise UserError(
                    f"width: {self.width} channels give no whole groups of {self.group_width} at side {4 * 2**stage}; "
                    f"use a multiple of {2 ** self.halvings(side) * self.group_width}"
                )
            widths.append(self.width // 2**halvings)
        return widths


class R3GANGeneratorSettings(_BodySettings):
    """Residual stages on a learnt 4x4 basis that the latent modulates; no norm layers, linear output."""

    kind: Literal["r3gan"] = "r3gan"

    def build(self, latent: int, shape: Shape, classes: int | None = None) -> R3GANGenerator:
        """A new generator (N, latent) -> (N, C, S, S) for a power of two S from 8, weights drawn.

        Raises:
            UserError: another shape; or classes, as there is no norm layer to put them into.
        """
        if classes is not None:
            raise UserError("conditioning: generator 'r3gan' has no norm layers to condition; use concat")
        return R3GANGenerator(self, latent, shape)


class R3GANCriticSettings(_BodySettings, CriticBaseSettings):
    """The generator's mirror: residual stages, then one number for each channel by a depthwise 4x4 convolution."""

    kind: Literal["r3gan"] = "r3gan"
    initialisation: InitialisationSettings | None = None  # type: ignore[assignment]  # `prepare` knows what None is
    """Without: the paper's, which scales the residual blocks by their number and starts them at zero."""

    @model_validator(mode="after")
    def _has_a_norm(self) -> R3GANCriticSettings:
        if self.spectral_norm and self.initialisation is None:
            raise ValueError(
                "spectral_norm: r3gan's blocks start from zero weights, which cannot be divided by their norm; "
                "set initialisation, or use kind 'residual'"
            )
        return self

    def trunk(self, shape: Shape) -> tuple[nn.Module, int]:
        """(N, C, S, S) -> features (N, F) for a power of two S from 8; and F.

        Raises:
            UserError: another shape.
        """
        trunk = R3GANTrunk(self, shape)
        return trunk, trunk.width

    def prepare(self, module: nn.Module) -> None:
        if self.initialisation is None:
            draw_weights(module)
            return
        if self.spectral_norm:
            add_spectral_norm(module)
        self.initialisation.apply(module)


@torch.no_grad()
def draw_weights(module: nn.Module) -> None:
    """Normal weights of deviation 1 / sqrt(fan in), those of residual blocks by fix-up; biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, 0.0, 1 / math.sqrt(layer.weight[0].numel()))
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for block in module.modules():
        if isinstance(block, BottleneckBlock):
            block.enter.weight.mul_(block.gain)
            block.mix.weight.mul_(block.gain)
            block.leave.weight.zero_()


class BottleneckBlock(nn.Module):
    """x + conv1(f(conv3(f(conv1(x))))), f a leaky ReLU, conv3 grouped; the shape stays (N, channels, H, W).

    Fix-up initialisation (Zhang et al., arXiv 1901.09321): the last convolution is zero, so that a new network is the
    sum of its shortcuts, and the others are scaled by L^(-1/(2m - 2)) for `depth` L blocks of m = 3 layers.
    """

    def __init__(self, settings: _BodySettings, channels: int, depth: int) -> None:
        super().__init__()
        inner = settings.expansion * channels
        groups = inner // min(settings.group_width, inner)
        self.gain = RELU_GAIN * depth ** (-1 / (2 * 3 - 2))
        self.enter = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=groups)
        self.leave = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.enter(x), LEAK)
        y = F.leaky_relu(self.mix(y), LEAK)
        return torch.add(x, self.leave(y))


def _bilinear(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in float32 at least, and the filter [1, 3, 3, 1] / 8 in both directions for each channel: (C, 1, 4, 4)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    line = (4 - (2 * torch.arange(4, device=x.device) - 3).abs()).to(x.dtype) / 8
    return x, torch.outer(line, line).expand(x.shape[1], 1, 4, 4)


def bilinear_up(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W), bilinear, zeros outside.

    In float32 also under autocast, as `bilinear_down`: on a CPU, bf16 kernels of depthwise convolutions are slower
    by an order of magnitude in one of the directions.
    """
    with torch.autocast(x.device.type, enabled=False):
        y, kernel = _bilinear(x)
        y = F.conv_transpose2d(y, 4 * kernel, stride=2, padding=1, groups=x.shape[1])
    return y.to(x.dtype)


def bilinear_down(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H/2, W/2), bilinear with antialiasing, zeros outside; a quarter of the transpose of
    `bilinear_up`."""
    with torch.autocast(x.device.type, enabled=False):
        y, kernel = _bilinear(x)
        y = F.conv2d(y, kernel, stride=2, padding=1, groups=x.shape[1])
    return y.to(x.dtype)


def _change_width(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, bias=False)


class R3GANGenerator(LatentGenerator):
    """The output is linear: it finds [-1, 1] by itself, and may step a little outside."""

    def __init__(self, settings: R3GANGeneratorSettings, latent: int, shape: Shape) -> None:
        super().__init__()
        self.latent, self.shape = latent, shape
        widths = settings.widths(square_side("r3gan", shape))
        depth = settings.blocks * len(widths)
        self.basis = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.modulation = nn.Linear(latent, widths[0], bias=False)
        self.stages = nn.ModuleList(
            nn.Sequential(*(BottleneckBlock(settings, width, depth) for _ in range(settings.blocks)))
            for width in widths
        )
        self.transitions = nn.ModuleList(_change_width(below, above) for below, above in pairwise(widths))
        self.last = nn.Conv2d(widths[-1], shape[0], 1, bias=False)
        draw_weights(self)

    def forward(self, latent: Tensor, label: Tensor | None = None) -> Tensor:
        x = self.basis * self.modulation(latent)[:, :, None, None]  # (N, width, 4, 4)
        x = self.stages[0](x)
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            x = stage(bilinear_up(transition(x)))
        image: Tensor = self.last(x)
        return image


class R3GANTrunk(nn.Module):
    """(N, C, S, S) -> features (N, width)."""

    def __init__(self, settings: R3GANCriticSettings, shape: Shape) -> None:
        super().__init__()
        widths = settings.widths(square_side("r3gan", shape))[::-1]
        depth = settings.blocks * len(widths)
        self.width = widths[-1]
        self.first = nn.Conv2d(shape[0], widths[0], 1, bias=False)
        self.stages = nn.ModuleList(
            nn.Sequential(*(BottleneckBlock(settings, width, depth) for _ in range(settings.blocks)))
            for width in widths
        )
        self.transitions = nn.ModuleList(_change_width(above, below) for above, below in pairwise(widths))
        self.basis = nn.Conv2d(self.width, self.width, 4, groups=self.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](self.first(x))
        for transition, stage in zip(self.transitions, self.stages[1:], strict=True):
            x = stage(transition(bilinear_down(x)))
        features: Tensor = self.basis(x).flatten(1)  # (N, width, 4, 4) -> (N, width)
        return features
