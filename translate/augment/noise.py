"""Instance noise (Sønderby et al., arXiv 1610.04490, section 2.5; Arjovsky & Bottou, arXiv 1701.04862, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from translate.augment.base import Augmentation
from translate.settings import Settings


class InstanceNoiseSettings(Settings):
    """Gaussian noise on real and fake samples, so that the two distributions overlap."""

    kind: Literal["instance-noise"] = "instance-noise"
    deviation: float = Field(default=0.1, gt=0)
    """At the start; images lie in [-1, 1], points where they are."""
    steps: int | None = Field(default=None, ge=1)
    """The deviation falls in a straight line to 0 at this step; none: it stays."""

    def build(self, shape: tuple[int, ...]) -> InstanceNoise:
        """For samples of any shape."""
        return InstanceNoise(self)


class InstanceNoise(Augmentation):
    """x + N(0, deviation²), each number by itself."""

    def __init__(self, settings: InstanceNoiseSettings) -> None:
        super().__init__()
        self.settings = settings
        self.deviation = settings.deviation
        """At present: `advance` sets it anew in each step, so it needs no place in a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, torch.randn_like(x), alpha=self.deviation)

    def advance(self, step: int) -> None:
        if self.settings.steps is not None:
            self.deviation = self.settings.deviation * max(0.0, 1 - step / self.settings.steps)
