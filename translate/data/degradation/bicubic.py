"""MATLAB's bicubic resize, what published numbers are measured with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from translate.data.degradation.base import Degradation
from translate.data.matlab import Convention, imresize
from translate.settings import Settings


class BicubicSettings(Settings):
    """MATLAB's `imresize(image, 1 / scale)`: what published numbers are measured with."""

    kind: Literal["bicubic"] = "bicubic"
    convention: Convention = "uint8"
    """`uint8`: of bytes, rounded after each pass, as published test sets are. `double`: of doubles, rounded once."""

    def build(self, scale: int) -> Bicubic:
        """The degradation for networks that enlarge so many times."""
        return Bicubic(self, scale)


class Bicubic(Degradation):
    """Nothing random. `uint8` is MATLAB's own result byte for byte for images of 8 bits."""

    def __init__(self, settings: BicubicSettings, scale: int) -> None:
        super().__init__(scale)
        self.convention = settings.convention

    def forward(self, high: Tensor, chance: torch.Generator | None = None) -> Tensor:
        levels = (high.float() + 1).mul_(127.5)  # in place from here on: new memory costs more than the numbers
        if self.convention == "uint8":
            low = imresize(levels.round_().clamp_(0, 255), 1 / self.scale, convention="uint8")
        else:
            low = imresize(levels, 1 / self.scale).add_(0.5).floor_().clamp_(0, 255)
        return low.div_(127.5).sub_(1)
