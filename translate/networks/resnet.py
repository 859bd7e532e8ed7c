"""The residual generator of CycleGAN (Zhu et al., arXiv 1703.10593, section 7.2), after Johnson et al."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from translate.networks.layers import (
    Blur,
    DownsamplingName,
    InitialisationSettings,
    NormName,
    TappedGenerator,
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
    downsampling: DownsamplingName = "strided"
    """What halves: the convolution's stride, or a blur behind its activation (CUT; 4 times the work of the two
    convolutions)."""
    upsampling: UpsamplingName = "transposed"
    padding: PaddingName = "reflect"
    """What stands outside the image for the first, last and residual convolutions."""
    initialisation: InitialisationSettings = InitialisationSettings()
    checkpointing: bool = False
    """Keep for the backward pass what stands between the parts (stem, each block, tail) alone, and compute what is
    inside them a second time (Chen et al., arXiv 1604.06174): the same gradients in less memory, for a forward pass
    more."""

    @model_validator(mode="after")
    def _recomputes_what_has_no_state(self) -> ResNetSettings:
        if self.checkpointing and self.norm == "batch":
            raise ValueError(
                "checkpointing runs each layer twice, and batch norm would count each batch twice in its running "
                "statistics; set norm to instance or group"
            )
        return self

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


class ResNet(TappedGenerator):
    """11.378 M parameters with 9 blocks, 7.838 M with 6 (3 -> 3 channels, width 64, instance norm).

    Taps: `input` (the image itself), `down1` and `down2` (the two halving convolutions, before their norm; anti-aliased
    they have not halved yet), `block1`, `block2`, ... (the sums that the residual blocks end in).
    """

    multiple = 4
    smallest = 8  # reflection inside the blocks and instance norm need 2x2 pixels at a quarter of the size

    def __init__(self, settings: ResNetSettings, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width, norm, bias = settings.width, settings.norm, needs_bias(settings.norm)
        blurs = settings.downsampling == "anti-aliased"
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 7, padding=3, padding_mode=settings.padding, bias=bias),
            norm_layer(norm, width),
            nn.ReLU(inplace=True),
        ]
        self.taps = {"input": in_channels}
        ends = {"input": 0}  # name of a tap -> the layers up to and with it
        for number, channels in enumerate((2 * width, 4 * width), start=1):
            layers.append(nn.Conv2d(channels // 2, channels, 3, stride=1 if blurs else 2, padding=1, bias=bias))
            self.taps[f"down{number}"], ends[f"down{number}"] = channels, len(layers)
            # Without a norm between them the ReLU stands right behind the tap, which it must leave as it is.
            layers += [norm_layer(norm, channels), nn.ReLU(inplace=norm != "none"), *([Blur()] if blurs else [])]
        # (N, 4 * width, H / 4, W / 4)
        parts = [len(layers)]
        for number in range(1, settings.blocks + 1):
            layers.append(ResidualBlock(settings, 4 * width))
            self.taps[f"block{number}"], ends[f"block{number}"] = 4 * width, len(layers)
            parts.append(len(layers))
        for channels in (2 * width, width):
            layers += [
                upsample(settings.upsampling, 2 * channels, channels, kernel=3, bias=bias),
                norm_layer(norm, channels),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.Conv2d(width, out_channels, 7, padding=3, padding_mode=settings.padding), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self._ends, self._parts = ends, parts if settings.checkpointing else []
        self._random = settings.dropout > 0
        settings.initialisation.apply(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) -> (N, out_channels, H, W) in [-1, 1]; H and W divisible by 4."""
        return self.tapped(x, ())[0]

    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        return self._run(x, names, max(self._ends[name] for name in names))[1]

    def tapped(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._run(x, names, len(self.layers))

    def _run(self, x: Tensor, names: Sequence[str], end: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The first `end` layers, from one tap or part to the next."""
        tapped = {self._ends[name] for name in names}
        # Without gradients nothing is kept for a backward pass, so there is nothing to save.
        parts = self._parts if torch.is_grad_enabled() else []
        found = {0: x}
        begin = 0
        for stop in sorted(stop for stop in {*tapped, *parts, end} if 0 < stop <= end):
            if parts:
                # The state of the random numbers is kept only where dropout must be drawn again.
                x = checkpoint(self._between, x, begin, stop, use_reentrant=False, preserve_rng_state=self._random)
            else:
                x = self._between(x, begin, stop)
            if stop in tapped:
                found[stop] = x
            begin = stop
        return x, {name: found[self._ends[name]] for name in names}

    def _between(self, x: Tensor, begin: int, end: int) -> Tensor:
        for layer in itertools.islice(self.layers, begin, end):
            x = layer(x)
        return x
