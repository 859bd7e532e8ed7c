"""The transformer encoder and decoder of ViT-VQGAN (Yu et al., arXiv 2110.04627, section 3.1 and table 2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from translate.networks.layers import outside_autocast
from translate.networks.vqgan import TokenizerDecoder, TokenizerEncoder
from translate.settings import Settings


class TransformerTokenizerSettings(Settings):
    """A vision transformer from patches to latents, and another one back. The defaults are the paper's small ones."""

    kind: Literal["transformer"] = "transformer"
    patch: int = Field(default=8, ge=1)
    """Pixels along the side of a patch, each of which becomes one latent."""
    width: int = Field(default=512, ge=4)
    """Channels inside; divisible by 4 (sines and cosines of two axes) and by `heads`."""
    layers: int = Field(default=8, ge=1)
    """Transformer blocks of the encoder, and of the decoder."""
    heads: int = Field(default=8, ge=1)
    mlp: int = Field(default=2048, ge=1)
    """Width inside the two-layer perceptrons of the blocks and of the ends."""
    latent: int = Field(default=32, ge=1)
    """Channels between encoder, quantiser and decoder: the paper looks codes up among 32 numbers."""

    @model_validator(mode="after")
    def _divides(self) -> TransformerTokenizerSettings:
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width: {self.width} must be divisible by 4 and by heads, {self.heads}")
        return self

    @property
    def reduction(self) -> int:
        """Pixels along a latent's side."""
        return self.patch

    def build(self, channels: int, outputs: int) -> tuple[TransformerEncoder, TransformerDecoder]:
        """A new encoder of images with `channels`, and a new decoder to images with `outputs` channels; weights drawn
        as torch draws them."""
        return TransformerEncoder(self, channels), TransformerDecoder(self, outputs)


def positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """What is added to the patches of a grid: (height * width, channels), float32 in [-1, 1], rows one by one.

    The first half of the channels tells the row y, the second the column x: sin(y f_i), then cos(y f_i), with the
    frequencies f_i = 10000^(-4 i / channels) for i below channels / 4. Source: Vaswani et al., arXiv 1706.03762,
    section 3.5, for each axis by itself. They are computed, not learnt, and so exist for a grid of any size.
    """
    quarter = channels // 4
    frequencies = torch.exp(torch.arange(quarter, device=device) * (-math.log(10_000) / quarter))

    def axis(length: int) -> Tensor:  # (length, channels / 2)
        angles = torch.arange(length, device=device)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    half = 2 * quarter
    rows = axis(height)[:, None].expand(height, width, half)
    columns = axis(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x)), with GELU inside it: tokens (N, L, width) keep their shape.

    Each token looks at all others: time grows with L², memory with L where torch has a fused kernel. Source:
    Dosovitskiy et al., arXiv 2010.11929, equations 2 and 3.
    """

    def __init__(self, settings: TransformerTokenizerSettings) -> None:
        super().__init__()
        width = settings.width
        self.heads = settings.heads
        self.before_attention = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, 3 * width)  # queries, keys, values; each head's channels side by side
        self.out = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6), nn.Linear(width, settings.mlp), nn.GELU(), nn.Linear(settings.mlp, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        projected: Tensor = self.project(self.before_attention(x))
        query, key, value = projected.view(samples, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)  # (N, heads, L, width / heads)
        x = x + self.out(attended.transpose(1, 2).reshape(samples, tokens, width))
        return torch.add(x, self.perceptron(x))


class _Transformer(nn.Module):
    """Grids (N, width, h, w) -> (N, outputs, h, w): positions, blocks, and a two-layer perceptron with tanh."""

    def __init__(self, settings: TransformerTokenizerSettings, outputs: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TransformerBlock(settings) for _ in range(settings.layers)))
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        self.widen = nn.Linear(settings.width, settings.mlp)
        self.last = nn.Linear(settings.mlp, outputs)

    def forward(self, grid: Tensor) -> Tensor:
        height, width = grid.shape[2:]
        tokens = grid.flatten(2).transpose(1, 2)  # (N, L, width)
        tokens = self.blocks(tokens + positions(height, width, grid.shape[1], grid.device).to(tokens.dtype))
        made = outside_autocast(self.last, torch.tanh(self.widen(self.norm(tokens))))
        image: Tensor = made.transpose(1, 2).reshape(len(grid), -1, height, width)
        return image


class TransformerEncoder(TokenizerEncoder):
    """Images (N, channels, H, W) -> latents (N, latent, H / patch, W / patch).

    26,435,104 parameters as the settings are (3 channels). Nothing bounds the latents: the tanh is inside the last
    perceptron, as in the decoder (section 3.1).
    """

    def __init__(self, settings: TransformerTokenizerSettings, channels: int) -> None:
        super().__init__()
        self.reduction, self.latent = settings.reduction, settings.latent
        self.first = nn.Conv2d(channels, settings.width, settings.patch, stride=settings.patch)
        self.transformer = _Transformer(settings, settings.latent)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [-1, 1] -> (N, latent, H / patch, W / patch); H and W divisible by patch."""
        latents: Tensor = self.transformer(self.first(x))
        return latents


class TransformerDecoder(TokenizerDecoder):
    """Latents (N, latent, h, w) -> images (N, outputs, patch h, patch w), unbounded: each token makes its own patch."""

    def __init__(self, settings: TransformerTokenizerSettings, outputs: int) -> None:
        super().__init__()
        self.reduction, self.latent = settings.reduction, settings.latent
        self.first = nn.Conv2d(settings.latent, settings.width, 1)
        self.transformer = _Transformer(settings, outputs * settings.patch**2)

    @property
    def last_layer(self) -> nn.Parameter:
        """(outputs * patch², mlp): the layer that makes patches."""
        weight = self.transformer.last.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def forward(self, z: Tensor) -> Tensor:
        """Latents (N, latent, h, w) -> (N, outputs, patch h, patch w), about [-1, 1] when trained, without a tanh."""
        return F.pixel_shuffle(self.transformer(self.first(z)), self.reduction)
