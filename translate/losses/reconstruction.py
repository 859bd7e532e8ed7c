"""Pixel by pixel distances between an output and its target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from translate.settings import Settings


class ReconstructionSettings(Settings):
    """How far the output is from the target, and how much that counts."""

    kind: Literal["l1", "l2", "charbonnier"] = "l1"
    """`l1`: absolute, `l2`: squared difference, `charbonnier`: absolute with a round foot."""
    weight: float = Field(default=100.0, ge=0)
    """Weight of the term in the generator's loss; 100 is pix2pix's."""
    epsilon: float = Field(default=1e-3, gt=0)
    """Of `charbonnier`: the difference below which it is quadratic."""

    def build(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(output, target), both of one shape -> the mean distance as a float32 scalar, unweighted.

        Charbonnier is sqrt(d² + epsilon²) (Lai et al., arXiv 1704.03915, section 3.3).
        """
        epsilon = self.epsilon

        def l1(output: Tensor, target: Tensor) -> Tensor:
            return (output.float() - target.float()).abs().mean()

        def l2(output: Tensor, target: Tensor) -> Tensor:
            return (output.float() - target.float()).square().mean()

        def charbonnier(output: Tensor, target: Tensor) -> Tensor:
            return torch.sqrt((output.float() - target.float()).square() + epsilon**2).mean()

        return {"l1": l1, "l2": l2, "charbonnier": charbonnier}[self.kind]
