"""The convolutional encoder and decoder of VQGAN (Esser et al., arXiv 2012.09841, appendix A; the numbers are
those of the authors' code, github.com/CompVis/taming-transformers), and what all networks of image tokenizers are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from translate.networks.layers import outside_autocast
from translate.settings import Settings


class TokenizerEncoder(nn.Module):
    """Turns images (N, C, H, W) in [-1, 1] into latents (N, latent, H / reduction, W / reduction)."""

    reduction: int
    """Pixels along a latent's side: height and width of the images must be divisible by it."""
    latent: int
    """Channels of the latents."""


class TokenizerDecoder(nn.Module, ABC):
    """Turns latents (N, latent, h, w) into images (N, C, h * reduction, w * reduction), unbounded."""

    reduction: int
    latent: int

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight behind which the image stands: what VQGAN's adaptive weight measures gradients on (equation 7).
        Its layer is in float32 whatever autocast says."""


class ConvolutionalTokenizerSettings(Settings):
    """Residual levels that halve between them, attention at the narrowest, and their mirror."""

    kind: Literal["convolutional"] = "convolutional"
    width: int = Field(default=128, ge=1)
    """Channels after the first convolution, of which each level has a multiple."""
    multipliers: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 1, 2, 2, 4], min_length=1)
    """Channels of each level from the image's size down, in widths. Between two levels height and width halve: five
    levels make one latent of 16x16 pixels, four one of 8x8."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks of each level of the encoder; the decoder has one more."""
    latent: int = Field(default=256, ge=1)
    """Channels between encoder, quantiser and decoder."""
    attention: list[Annotated[int, Field(ge=1)]] = Field(default=[16])
    """The levels, by what they divide height and width by, at which attention follows each residual block; those that
    are not reached count for nothing. At the narrowest level one more stands in the middle, whatever is said here."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Rate of the dropout inside each residual block."""
    checkpointing: bool = False
    """Keep for the backward pass what stands between the levels alone, and compute what is inside them a second time
    (Chen et al., arXiv 1604.06174): the same gradients in less memory, for a forward pass more."""

    @field_validator("attention")
    @classmethod
    def _stands_at_levels(cls, reductions: list[int]) -> list[int]:
        wrong = [reduction for reduction in reductions if reduction & (reduction - 1)]
        if wrong:
            raise ValueError(f"levels divide height and width by powers of two (1, 2, 4, ...), not by {wrong[0]}")
        return reductions

    @property
    def reduction(self) -> int:
        """Pixels along a latent's side."""
        return int(2 ** (len(self.multipliers) - 1))

    def build(self, channels: int, outputs: int) -> tuple[ConvolutionalEncoder, ConvolutionalDecoder]:
        """A new encoder of images with `channels`, and a new decoder to images with `outputs` channels; weights drawn
        as torch draws them."""
        return ConvolutionalEncoder(self, channels), ConvolutionalDecoder(self, outputs)


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or where 32 does not divide the channels the largest number below that does; epsilon is 1e-6."""
    return nn.GroupNorm(next(groups for groups in range(32, 0, -1) if channels % groups == 0), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), both 3x3: (N, in_channels, H, W) -> (N, out_channels, H, W).

    Where the channels change, a 1x1 convolution takes x across. Dropout stands before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            group_norm(out_channels),
            nn.SiLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.shortcut(x), self.body(x))


class AttentionBlock(nn.Module):
    """x + out(attention(norm(x))) with one head as wide as x: each pixel of (N, C, H, W) looks at all L = H W.

    Time grows with L². Memory grows with L where torch has a fused kernel for heads of C channels (a CPU, and CUDA's
    memory-efficient one), else with the L² weights: 64 MiB of float32 for each image of 1024x1024 at a reduction of 16.
    The fused kernels cannot be differentiated twice.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.project = nn.Conv2d(channels, 3 * channels, 1)  # queries, keys, values
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # (N, 1, L, 3 C): the fused kernels want a pixel's channels side by side.
        projected = self.project(self.norm(x)).flatten(2).transpose(1, 2).contiguous()[:, None]
        query, key, value = projected.chunk(3, dim=3)
        attended = F.scaled_dot_product_attention(query, key, value)
        return torch.add(x, self.out(attended.transpose(2, 3).reshape(x.shape)))


class Halving(nn.Conv2d):
    """A 3x3 convolution of stride 2: (N, C, H, W) -> (N, C, H / 2, W / 2).

    Zeros stand beyond the right and lower border alone, as TensorFlow pads even sides: with zeros on all sides the grid
    would move by half a pixel with each level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


def _doubling(channels: int) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1)]


def _level(
    settings: ConvolutionalTokenizerSettings, reduction: int, channels: int, out_channels: int, blocks: int
) -> list[nn.Module]:
    """The residual blocks of a level, each with attention behind it where the settings ask for it."""
    parts: list[nn.Module] = []
    for before in (channels, *[out_channels] * (blocks - 1)):
        parts.append(ResidualBlock(before, out_channels, settings.dropout))
        if reduction in settings.attention:
            parts.append(AttentionBlock(out_channels))
    return parts


def _middle(settings: ConvolutionalTokenizerSettings, channels: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(channels, channels, settings.dropout),
        AttentionBlock(channels),
        ResidualBlock(channels, channels, settings.dropout),
    )


def _run(parts: Iterable[nn.Module], x: Tensor, settings: ConvolutionalTokenizerSettings) -> Tensor:
    """One part after the other; with checkpointing the backward pass computes each of them again."""
    # Without gradients nothing is kept for a backward pass, so there is nothing to save.
    again = settings.checkpointing and torch.is_grad_enabled()
    for part in parts:
        if again:
            # The state of the random numbers is kept only where dropout must be drawn again.
            x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=settings.dropout > 0)
        else:
            x = part(x)
    return x


class ConvolutionalEncoder(TokenizerEncoder):
    """Images (N, channels, H, W) -> latents (N, latent, H / f, W / f), f being the reduction.

    29,298,176 parameters as the settings are (3 channels, f = 16); 26,345,728 of multipliers 1, 1, 2, 4 with attention
    at 8. The 1x1 convolution that the authors' code puts between encoder and quantiser (65,792 more) is left out: it
    follows a convolution with nothing between them, so both together are one convolution.
    """

    def __init__(self, settings: ConvolutionalTokenizerSettings, channels: int) -> None:
        super().__init__()
        self.reduction, self.latent = settings.reduction, settings.latent
        self._settings = settings
        widths = [settings.width, *(settings.width * multiplier for multiplier in settings.multipliers)]
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for number, (before, width) in enumerate(pairwise(widths)):
            parts = _level(settings, 2**number, before, width, settings.blocks)
            if number < len(settings.multipliers) - 1:
                parts.append(Halving(width))
            self.levels.append(nn.Sequential(*parts))
        self.middle = _middle(settings, widths[-1])
        self.norm = group_norm(widths[-1])
        self.last = nn.Conv2d(widths[-1], settings.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [-1, 1] -> (N, latent, H / f, W / f); H and W divisible by f."""
        latents: Tensor = self.last(F.silu(self.norm(_run([*self.levels, self.middle], self.first(x), self._settings))))
        return latents


class ConvolutionalDecoder(TokenizerDecoder):
    """Latents (N, latent, h, w) -> images (N, outputs, f h, f w), unbounded, f being the reduction.

    42,449,795 parameters as the settings are (3 outputs, f = 16); 38,316,163 of multipliers 1, 1, 2, 4 with attention
    at 8. Here too the authors' 1x1 convolution behind the quantiser (65,792 more) is left out, for a convolution
    follows it.
    """

    def __init__(self, settings: ConvolutionalTokenizerSettings, outputs: int) -> None:
        super().__init__()
        self.reduction, self.latent = settings.reduction, settings.latent
        self._settings = settings
        deepest = len(settings.multipliers) - 1
        widths = [settings.width * multiplier for multiplier in (settings.multipliers[-1], *settings.multipliers[::-1])]
        self.first = nn.Conv2d(settings.latent, widths[0], 3, padding=1)
        self.middle = _middle(settings, widths[0])
        self.levels = nn.ModuleList()
        for number, (before, width) in enumerate(pairwise(widths)):
            parts = _level(settings, 2 ** (deepest - number), before, width, settings.blocks + 1)
            if number < deepest:
                parts += _doubling(width)
            self.levels.append(nn.Sequential(*parts))
        self.norm = group_norm(widths[-1])
        self.last = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        assert isinstance(self.last.weight, nn.Parameter)
        return self.last.weight

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, latent, h, w) -> (N, outputs, f h, f w), about [-1, 1] when trained, for there is no tanh.

        The last layer is in float32 whatever autocast says: the adaptive weight is measured on it.
        """
        x = F.silu(self.norm(_run([self.middle, *self.levels], self.first(z), self._settings)))
        return outside_autocast(self.last, x)
