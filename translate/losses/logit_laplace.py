"""The logit-Laplace distribution of pixels: a reconstruction loss whose support is the range of colours (Ramesh et al.,
arXiv 2102.12092, appendix A.3; ViT-VQGAN's loss, arXiv 2110.04627, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from translate.networks.tokenizer import MARGIN
from translate.settings import Settings


class LogitLaplaceSettings(Settings):
    """How unlikely the target is under the distribution that the decoder gives for each value."""

    kind: Literal["logit-laplace"] = "logit-laplace"
    weight: float = Field(default=1.0, ge=0)


def logit_laplace(raw: Tensor, target: Tensor) -> Tensor:
    """-ln f(x | mu, b), averaged over all values: float32 scalar, autocast or not.

    f(x | mu, b) = exp(-|logit(x) - mu| / b) / (2 b x (1 - x)) (appendix A.3), where x is the colour inside (0.1, 0.9).

    Args:
        raw: mu and behind it ln b, (N, 2 C, H, W).
        target: images (N, C, H, W) in [-1, 1].
    """
    with torch.autocast(raw.device.type, enabled=False):
        mean, log_scale = raw.float().chunk(2, dim=1)
        x = 0.5 + target.float().clamp(-1, 1) * (0.5 - MARGIN)
        distance = (torch.logit(x) - mean).abs() * torch.exp(-log_scale)
        return (distance + log_scale + torch.log(2 * x * (1 - x))).mean()
