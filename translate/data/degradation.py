"""How low resolution images come from high ones: on the device, whole batches at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from translate.data.matlab import Convention, imresize
from translate.settings import Settings


class Degradation(nn.Module, ABC):
    """Makes low resolution images. What is random is drawn from torch's default generators."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    @abstractmethod
    def forward(self, high: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], H and W multiples of the scale -> (N, C, H / scale, W / scale), float32.

        The result stands on 256 levels, as if it had been written to a file: 2 k / 255 - 1.
        """


class BicubicSettings(Settings):
    """MATLAB's `imresize(image, 1 / scale)`: what published numbers are measured with."""

    kind: Literal["bicubic"] = "bicubic"
    convention: Convention = "uint8"
    """`uint8`: of bytes, rounded after each pass, as the published test sets are. `double`: of doubles, rounded once."""

    def build(self, scale: int) -> Bicubic:
        """The degradation for networks that enlarge so many times."""
        return Bicubic(self, scale)


class Bicubic(Degradation):
    """Nothing random. `uint8` is MATLAB's own result byte for byte for images of 8 bits."""

    def __init__(self, settings: BicubicSettings, scale: int) -> None:
        super().__init__(scale)
        self.convention = settings.convention

    def forward(self, high: Tensor) -> Tensor:
        levels = (high.float() + 1) * 127.5
        if self.convention == "uint8":
            low = imresize(levels.round().clamp(0, 255), 1 / self.scale, convention="uint8")
        else:
            low = (imresize(levels, 1 / self.scale) + 0.5).floor().clamp(0, 255)
        return low / 127.5 - 1


DegradationSettings = BicubicSettings
