"""Codes drawn by the Gumbel-softmax relaxation (Jang et al., arXiv 1611.01144), as in DALL-E's discrete VAE (Ramesh et
al., arXiv 2102.12092)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from translate.devices import exact_float32
from translate.quantisers.base import Quantised, Quantiser
from translate.quantisers.shared import Size, grid, project, projection, rows
from translate.settings import Settings


class GumbelSettings(Settings):
    """The encoder says how likely each code is; in training codes are drawn by that, else the likeliest is taken."""

    kind: Literal["gumbel"] = "gumbel"
    size: Size = 1024
    """Codes: 8,192 in DALL-E. Training holds a probability of each code for each latent: N * h * w * size numbers."""
    width: int | None = Field(default=None, ge=1)
    """Dimension of the codes; if it is not that of the latents, a 1x1 convolution leads back. null: that."""
    kl_weight: float = Field(default=5e-4, ge=0)
    """Weight of the divergence of the codes' probabilities from equal ones: 5e-4 in VQGAN's code."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the relaxation, where a stage begins (DALL-E, appendix A.2)."""
    final_temperature: float = Field(default=0.0625, gt=0)
    """And where it ends: 1/16 (ibid.). Between them it falls exponentially (arXiv 1611.01144, section 4)."""
    straight_through: bool = True
    """The decoder gets the drawn code itself, with the relaxation's gradient (arXiv 1611.01144, section 2.2); else the
    relaxation, a mean of codes."""

    def build(self, width: int) -> GumbelQuantiser:
        """A new quantiser of latents (N, width, h, w)."""
        return GumbelQuantiser(self, width)


class GumbelQuantiser(Quantiser):
    """Draws codes by their logits, a 1x1 convolution of the latents, in training; else takes the likeliest.

    The loss is kl_weight * mean KL(q || uniform), a mean over latents, in nats; q are the probabilities without noise
    and temperature (VQGAN's `GumbelQuantize`).
    """

    def __init__(self, settings: GumbelSettings, width: int) -> None:
        super().__init__()
        self.settings, self.size, self.width = settings, settings.size, width
        inner = settings.width or width
        self.logits = nn.Conv2d(width, self.size, 1)
        self.codebook = nn.Parameter(torch.randn(self.size, inner))
        self.project_out = projection(inner, width)
        self.temperature = settings.temperature

    def advance(self, progress: float) -> None:
        """Set the temperature: first * (last / first)^progress."""
        first, last = self.settings.temperature, self.settings.final_temperature
        self.temperature = first * (last / first) ** min(max(progress, 0.0), 1.0)

    def forward(self, z: Tensor) -> Quantised:
        """Latents (N, C, h, w) to codes; see `Quantiser`. Without `straight_through` what training gets is no code."""
        with exact_float32(z.device):
            logits = rows(project(self.logits, z.float()))  # (N * h * w, size)
            shape = (len(z), *z.shape[2:])
            logs = F.log_softmax(logits, dim=1)
            loss = self.settings.kl_weight * ((logs.exp() * logs).sum(1).mean() + math.log(self.size))
            if not self.training:
                indices = _places(logits).view(shape)
                return Quantised(self.codes(indices), indices, loss)
            noise = -torch.empty_like(logits).exponential_().log()
            soft = F.softmax((logits + noise) / self.temperature, dim=1)
            indices = _places(soft)
            if self.settings.straight_through:
                # The gradient of a one-hot matrix times the codebook, without the matrix: codes get that of their own
                # use, probabilities that of the mean, of which no value is left.
                mean = soft @ self.codebook.detach().float()
                codes = F.embedding(indices, self.codebook.float()) + (mean - mean.detach())
            else:
                codes = soft @ self.codebook.float()
            codes = grid(codes.view(*shape, -1))
            return Quantised(project(self.project_out, codes), indices.view(shape), loss)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> (N, C, h, w), float32."""
        with exact_float32(indices.device):
            return project(self.project_out, grid(F.embedding(indices, self.codebook.float())))


def _places(x: Tensor) -> Tensor:
    """Where each row is greatest."""
    return x.detach().argmax(dim=1)
