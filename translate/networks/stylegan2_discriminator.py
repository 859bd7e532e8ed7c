"""The residual discriminator of StyleGAN2 (Karras et al., arXiv 1912.04958, figure 7c and appendix B)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate.networks.layers import Discriminator, outside_autocast
from translate.networks.minibatch import MinibatchDeviation
from translate.networks.r3gan import draw_weights
from translate.settings import Settings

SIDE = 4
"""Of the feature maps that the dense layers read."""


class StyleGAN2DiscriminatorSettings(Settings):
    """Residual blocks that blur and halve, then two dense layers: one logit for the whole image.

    There is no equalised learning rate: the paper draws weights with deviation 1, divides them by the root of their fan
    in at each use, and pairs that with Adam's rate of 0.002. Here they are drawn divided, which is the same function
    at the start; but Adam's steps have the size that they have in all other networks, and so a learning rate means here
    what it means there. With equalised weights a rate of 1e-4 would move a layer of 512 channels 68 times less.
    """

    kind: Literal["stylegan2"] = "stylegan2"
    width: int = Field(default=64, ge=1)
    """Channels at the image's size; they double with each halving, up to 8 * width. 64 at 256² in the paper's
    configuration E."""
    layers: int = Field(default=6, ge=1)
    """Halvings, each in a block: 6 lead from 256² to the 4x4 pixels that the dense layers read. To images of other
    sizes, which end in more or fewer pixels, an adaptive average gives 4x4."""
    group: int = Field(default=4, ge=0)
    """Examples over which the standard deviation is taken that the last block sees (Karras et al., arXiv 1710.10196,
    section 3); 0 leaves that out, and each image is judged by itself."""

    def build(self, in_channels: int) -> StyleGAN2Discriminator:
        """A new discriminator of images (N, in_channels, H, W), weights drawn."""
        return StyleGAN2Discriminator(self, in_channels)


class ScaledLeakyReLU(nn.Module):
    """sqrt(2) * leaky_relu(x, 0.2), which keeps the second moment of a normal variable (to 4 %)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, 0.2).mul_(math.sqrt(2))  # the backward pass looks at x alone


def blurred(x: Tensor, stride: Literal[1, 2]) -> Tensor:
    """The filter [1, 3, 3, 1] / 8 along both sides, zeros outside: (N, C, H, W) -> (N, C, H + 1, W + 1), or of stride 2
    -> (N, C, H // 2, W // 2).

    In float32 also under autocast: on a CPU, bf16 kernels of depthwise convolutions are slower by an order of magnitude
    in one of the directions.
    """
    with torch.autocast(x.device.type, enabled=False):
        y = x.to(torch.promote_types(x.dtype, torch.float32))
        line = (4 - (2 * torch.arange(4, device=x.device) - 3).abs()).to(y.dtype) / 8
        kernel = torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
        y = F.conv2d(y, kernel, stride=stride, padding=3 - stride, groups=x.shape[1])
    return y.to(x.dtype)


class HalvingBlock(nn.Module):
    """(body(x) + skip(x)) / sqrt(2): (N, in_channels, H, W) -> (N, out_channels, H // 2, W // 2); H and W at least 2.

    The body is two 3x3 convolutions, the second one of stride 2 behind a blur; the skip a blur of stride 2 and a 1x1
    convolution without bias.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.halve = nn.Conv2d(in_channels, out_channels, 3, stride=2)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.activation = ScaledLeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.enter(x))
        y = self.activation(self.halve(blurred(y, 1)))
        return torch.add(self.skip(blurred(x, 2)), y) / math.sqrt(2)


class StyleGAN2Discriminator(Discriminator):
    """24,001,089 parameters as the settings are (3 channels).

    Logits are (N, 1, 1, 1), in float32 whatever the autocast state. It can be differentiated twice, as penalties on its
    gradient ask. With a minibatch's deviation an image's logit depends on those beside it.
    """

    def __init__(self, settings: StyleGAN2DiscriminatorSettings, in_channels: int) -> None:
        super().__init__()
        widths = [settings.width * min(2**level, 8) for level in range(settings.layers + 1)]
        last = widths[-1]
        self.smallest = 2**settings.layers
        blocks: list[nn.Module] = [nn.Sequential(nn.Conv2d(in_channels, widths[0], 1), ScaledLeakyReLU())]
        blocks += [HalvingBlock(before, after) for before, after in pairwise(widths)]
        blocks.append(
            nn.Sequential(
                *([MinibatchDeviation(settings.group)] if settings.group else []),
                nn.Conv2d(last + (settings.group > 0), last, 3, padding=1),
                ScaledLeakyReLU(),
            )
        )
        blocks.append(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(SIDE),
                nn.Flatten(),
                nn.Linear(last * SIDE**2, last),
                ScaledLeakyReLU(),
                nn.Unflatten(1, (-1, 1, 1)),
            )
        )
        self.blocks = nn.ModuleList(blocks)
        self.score = nn.Linear(last, 1)
        draw_weights(self)

    def features(self, x: Tensor) -> list[Tensor]:
        """Activations (N, C_i, H_i, W_i) at the image's size, after each halving, after the last convolution and after
        the first dense layer (N, C, 1, 1), then the logits (N, 1, 1, 1). H and W at least `smallest`."""
        activations: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            activations.append(x)
        return [*activations, outside_autocast(self.score, x.flatten(1))[:, :, None, None]]
