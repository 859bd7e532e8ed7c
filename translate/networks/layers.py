"""What the networks share: norms, initialisation, upsampling, and the two kinds of network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from translate.settings import Settings

NormName = Literal["batch", "instance", "group", "none"]
UpsamplingName = Literal["transposed", "resize"]


class Generator(nn.Module):
    """Turns images (N, C, H, W) in [-1, 1] into images (N, C', scale * H, scale * W) in [-1, 1]."""

    multiple: int
    """Height and width of the input must be divisible by this."""
    smallest: int
    """Height and width of the input must be at least this."""
    scale: int = 1
    """Output pixels per input pixel."""


class Discriminator(nn.Module, ABC):
    """Judges images (N, C, H, W) patch by patch: raw logits (N, 1, H', W')."""

    smallest: int
    """Height and width of the input must be at least this."""

    @abstractmethod
    def features(self, x: Tensor) -> list[Tensor]:
        """Activations after each block, (N, C_i, H_i, W_i); the last entry is the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)[-1]


def norm_layer(name: NormName, channels: int) -> nn.Module:
    """The norm called `name` over feature maps (N, channels, H, W).

    Instance norm has neither affine weights nor running statistics (as CycleGAN trains it); group norm has 32
    groups (Wu & He 2018), or where 32 does not divide the channels the largest number below that does.
    """
    if name == "batch":
        return nn.BatchNorm2d(channels)
    if name == "instance":
        return nn.InstanceNorm2d(channels)
    if name == "group":
        return nn.GroupNorm(next(groups for groups in range(32, 0, -1) if channels % groups == 0), channels)
    return nn.Identity()


def needs_bias(norm: NormName) -> bool:
    """Whether the convolutions of a network with this norm have a bias; batch and group norm bring their own.

    The reference generators decide this once per network, not per layer: their first convolution has no bias
    either when the rest is batch-normalised, though no norm follows it in a U-Net.
    """
    return norm in ("instance", "none")


def upsample(
    kind: UpsamplingName, in_channels: int, out_channels: int, *, kernel: Literal[3, 4], bias: bool
) -> nn.Module:
    """Doubles height and width: (N, in_channels, H, W) -> (N, out_channels, 2H, 2W).

    `transposed` is a strided transposed convolution with this kernel. `resize` is nearest-neighbour x2 and a
    3x3 convolution (whatever `kernel`), against checkerboard patterns (Odena et al. 2016, Distill,
    "Deconvolution and checkerboard artifacts").
    """
    if kind == "transposed":
        # Of an odd kernel, stride 2 and padding 1 leave the output one pixel short of twice the input.
        return nn.ConvTranspose2d(
            in_channels, out_channels, kernel, stride=2, padding=1, output_padding=kernel % 2, bias=bias
        )
    return nn.Sequential(
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
    )


class InitialisationSettings(Settings):
    """How the weights of a new network are drawn."""

    kind: Literal["normal", "xavier", "kaiming", "orthogonal"] = "normal"
    """`normal`: deviation `gain`; `xavier`, `orthogonal`: scaled by it; `kaiming`: variance 2 / fan in."""
    gain: float = Field(default=0.02, gt=0)
    """Standard deviation or scale of the weights; also the deviation of norm weights around 1."""

    @torch.no_grad()
    def apply(self, module: nn.Module) -> None:
        """Draw all convolution, linear and norm weights of `module` anew, in place; biases become 0.

        Layers under `parametrizations.spectral_norm` keep it: what is drawn is the weight before its division
        by the largest singular value. Uses torch's default generator. Source: DCGAN (Radford et al., arXiv
        1511.06434, section 4) for the deviation of 0.02; norm weights around 1 as in the pix2pix reference.
        """
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                self._draw(layer)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)) and layer.affine:
                nn.init.normal_(layer.weight, 1.0, self.gain)
                nn.init.zeros_(layer.bias)

    def _draw(self, layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
        spectral = parametrize.is_parametrized(layer, "weight")
        weight = layer.parametrizations["weight"].original if spectral else layer.weight  # type: ignore[index,union-attr]
        assert isinstance(weight, Tensor)
        if self.kind == "normal":
            nn.init.normal_(weight, 0.0, self.gain)
        elif self.kind == "xavier":
            nn.init.xavier_normal_(weight, self.gain)
        elif self.kind == "kaiming":
            nn.init.kaiming_normal_(weight)
        else:
            nn.init.orthogonal_(weight, self.gain)
        if spectral and layer.training:
            # Each look at the weight is one power iteration: the singular vectors must follow the new weight.
            # Torch itself starts with 15 of them.
            for _ in range(15):
                _ = layer.weight
