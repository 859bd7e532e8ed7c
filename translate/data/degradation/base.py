"""The contract of a degradation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Degradation(nn.Module, ABC):
    """Makes low resolution images."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    @abstractmethod
    def forward(self, high: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], H and W multiples of the scale -> (N, C, H / scale, W / scale), float32.

        The result stands on 256 levels, as if it had been written to a file: 2 k / 255 - 1.

        Args:
            high: the images.
            chance: what is random is drawn from it, for images on the CPU; None: torch's default generators. What
                decides about shapes and branches is the CPU's, so that nothing waits for the device.
        """
