"""LPIPS as a loss: how different two images look (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from translate.data.spec import ImageSpec
from translate.errors import UserError
from translate.pretrained.lpips import LPIPS
from translate.settings import Settings


class LPIPSSettings(Settings):
    """Distance between features of a classifier; its weights come from `translate weights get lpips`."""

    network: Literal["vgg", "alex"] = "vgg"
    """`vgg`: the authors' choice for optimising; `alex` is quicker."""
    weight: float = Field(default=1.0, ge=0)

    def build(self, specs: Sequence[ImageSpec]) -> LPIPSLoss:
        """The loss for images of these specs; UserError where the weights are absent or a side is no grey or RGB
        picture."""
        for spec in specs:
            if spec.kind != "image" or spec.width not in (1, 3):
                raise UserError("LPIPS compares grey or RGB pictures: leave the loss out, or set 1 or 3 channels")
        return LPIPSLoss(LPIPS.load(self.network))


class LPIPSLoss(nn.Module):
    """The mean distance of a batch. The weights are buffers that no state_dict holds."""

    def __init__(self, distance: LPIPS) -> None:
        super().__init__()
        self.distance = distance

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Images (N, 3 or 1, H, W) in [-1, 1], twice -> float32 scalar, autocast or not; no gradient to the target."""
        distances: Tensor = self.distance(output, target.detach())
        return distances.mean()
