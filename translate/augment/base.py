"""The contract of an augmentation, and what several of them use."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from translate.errors import UserError


class Augmentation(nn.Module, ABC):
    """Changes each example at random, by torch's default generator on its device; differentiable, twice too.

    The discriminator sees real and fake samples through it, and the generator learns through it: what the fakes get
    must let gradients pass (Zhao et al., arXiv 2006.10738, section 3). Its state is in buffers.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """(N, *shape) -> (N, *shape) of the same number format."""

    def update(self, real_logits: Tensor) -> dict[str, Tensor]:
        """Learn from the discriminator's logits of a batch of (augmented) real samples, (N, ...) without gradient.

        Returns:
            Numbers to report, by name; read without waiting for the device.
        """
        return {}

    def advance(self, step: int) -> None:
        """Told the step's number before each step."""


def image_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W); UserError that names the augmentation's `kind` where samples are no images."""
    if len(shape) != 3:
        raise UserError(
            f"augmentation '{kind}' is for images, not for points of {shape[0]} numbers; use kind 'instance-noise'"
        )
    return shape[0], shape[1], shape[2]


def uniform(x: Tensor, low: float, high: float) -> Tensor:
    """A number from [low, high) for each example of x: (N, 1, 1, 1) float32."""
    return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low


def exact(x: Tensor) -> Tensor:
    """x in float32, if its format has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
