"""The signs of the latents instead of a learnt codebook (LFQ: MAGVIT-v2, Yu et al., arXiv 2310.05737)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn import functional as F

from translate.devices import exact_float32
from translate.quantisers.base import Quantised, Quantiser
from translate.quantisers.shared import check_size, grid, project, projection, rows, straight_through
from translate.settings import Settings


def _checked(bits: int) -> int:
    check_size(1 << min(bits, 64))
    return bits


class LookupFreeSettings(Settings):
    """Each latent is projected to few numbers, of which just the signs are kept: 2^bits codes."""

    kind: Literal["lookup-free"] = "lookup-free"
    bits: Annotated[int, Field(ge=1), AfterValidator(_checked)] = 10
    """Signs of each token."""
    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of the entropy penalty (arXiv 2310.05737, equation 5)."""
    diversity: float = Field(default=1.0, ge=0)
    """Weight, within the penalty, of the entropy of the batch's mean: above 1 more of the codes are used."""
    beta: float = Field(default=0.25, ge=0)
    """Weight of the commitment: how strongly numbers are drawn to their signs."""
    temperature: float = Field(default=0.01, gt=0)
    """Of the probabilities that the penalty looks at: the lower, the surer of a sign is a small number."""

    def build(self, width: int) -> LookupFreeQuantiser:
        """A new quantiser of latents (N, width, h, w)."""
        return LookupFreeQuantiser(self, width)


class LookupFreeQuantiser(Quantiser):
    """Keeps the signs of a projection of the latents, as -1 and +1 (0 is -1), and projects them back. The first is the
    index's highest bit.

    The loss is entropy_weight * (mean H(q) - diversity * H(mean q)) + beta * mean |z - sg[code]|² (arXiv 2310.05737,
    equation 5), q(code) ~ exp(-|z - code|² / temperature), means over this process's latents; see `entropies`.
    """

    def __init__(self, settings: LookupFreeSettings, width: int) -> None:
        super().__init__()
        self.settings, self.size, self.width = settings, 1 << settings.bits, width
        self.project_in, self.project_out = projection(width, settings.bits), projection(settings.bits, width)

    def forward(self, z: Tensor) -> Quantised:
        """Latents (N, C, h, w) to their signs; see `Quantiser`."""
        settings = self.settings
        with exact_float32(z.device):
            z = project(self.project_in, z.float())
            positive = z.detach() > 0
            indices = (positive.movedim(1, -1).long() << self._places(z.device)).sum(-1)
            codes = positive.float() * 2 - 1
            loss = settings.beta * F.mse_loss(z, codes)
            if settings.entropy_weight:
                each, of_mean = entropies(rows(z), settings.temperature)
                loss = loss + settings.entropy_weight * (each - settings.diversity * of_mean)
            codes = straight_through(codes, z).contiguous()
            return Quantised(project(self.project_out, codes), indices, loss)

    def codes(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w) -> (N, C, h, w), float32."""
        with exact_float32(indices.device):
            bits = (indices[..., None] >> self._places(indices.device)) & 1
            return project(self.project_out, grid(bits.float() * 2 - 1))

    def _places(self, device: torch.device) -> Tensor:
        """The bit of the index in which each sign stands."""
        return torch.arange(self.settings.bits - 1, -1, -1, device=device)


def entropies(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean H(q) and H(mean q) in nats, of the probabilities q of all 2^bits codes for each of (M, bits) numbers.

    Both are exact, and none of M * 2^bits numbers is held. As |z - code|² is a sum over bits, the bits of one token are
    independent, q(+1) = sigmoid(4 z / temperature) each, and H(q) is the sum of their entropies (arXiv 2406.07548,
    section 3.2). Under the mean they are not; but q of all bits is the outer product of q of the first half and q of
    the second, so its mean is one matrix product, of (2^(bits/2), M) and (M, 2^(bits/2)).
    """
    logits = 4 * z / temperature
    each = (F.softplus(logits) - logits * logits.sigmoid()).sum(1).mean()
    halves = [_joint(half) for half in logits.tensor_split(2, dim=1)]
    mean = halves[0].t() @ halves[1] / len(z)
    # At 0 the derivative of p log p has no end; what is left out is below 2^16 codes * 3e-11.
    return each, torch.special.entr(mean.clamp_min(1e-12)).sum()


def _joint(logits: Tensor) -> Tensor:
    """(M, b) logits of independent bits -> (M, 2^b), the probabilities of what they may be together."""
    both = torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=-1)
    joint = logits.new_ones(len(logits), 1)
    for bit in both.unbind(1):
        joint = (joint[:, :, None] * bit[:, None, :]).flatten(1)
    return joint
