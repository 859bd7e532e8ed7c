"""DiffAugment (Zhao et al., arXiv 2006.10738): every example is changed, by transforms that let gradients pass."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from translate.augment.base import Augmentation, exact, image_shape, uniform
from translate.settings import Settings

Transform = Literal["colour", "translation", "cutout"]


class DiffAugmentSettings(Settings):
    """Colour, translation and cutout, each always on; their strengths are the paper's (section 4)."""

    kind: Literal["diffaugment"] = "diffaugment"
    policy: list[Transform] = Field(default=["colour", "translation", "cutout"], min_length=1)
    """Which of them, in this order."""

    @field_validator("policy")
    @classmethod
    def _each_once(cls, policy: list[Transform]) -> list[Transform]:
        if len(set(policy)) < len(policy):
            raise ValueError(f"expected each transform once, not {', '.join(policy)}")
        return policy

    def build(self, shape: tuple[int, ...]) -> DiffAugment:
        """For images (C, H, W) in [-1, 1]; UserError for points."""
        image_shape(self.kind, shape)
        return DiffAugment(self)


class DiffAugment(Augmentation):
    """The transforms of the policy in its order, in float32; 0, a middle grey, comes in where pixels leave."""

    def __init__(self, settings: DiffAugmentSettings) -> None:
        super().__init__()
        self.policy = settings.policy

    def forward(self, x: Tensor) -> Tensor:
        y = exact(x)
        for name in self.policy:
            y = {"colour": colour, "translation": translation, "cutout": cutout}[name](y)
        return y.to(x.dtype)


def colour(x: Tensor) -> Tensor:
    """Brightness +-0.5, then saturation times 0 to 2 around each pixel's mean, then contrast times 0.5 to 1.5 around
    each image's mean: (N, C, H, W) -> the same."""
    x = x + uniform(x, -0.5, 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = torch.lerp(grey, x, uniform(x, 0.0, 2.0).to(x.dtype))
    average = x.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(average, x, uniform(x, 0.5, 1.5).to(x.dtype))


def translation(x: Tensor) -> Tensor:
    """Moved by whole pixels, up to an eighth of the side in each direction: (N, C, H, W) -> the same."""
    for axis in (2, 3):
        side = x.shape[axis]
        offset = torch.randint(-(side // 8), side // 8 + 1, (len(x), 1), device=x.device)
        source = torch.arange(side, device=x.device) - offset  # (N, side): where each row comes from
        inside = (source >= 0) & (source < side)
        shape = (len(x), 1, side, 1) if axis == 2 else (len(x), 1, 1, side)
        rows = source.clamp(0, side - 1).view(shape).expand(x.shape)
        x = x.gather(axis, rows) * inside.view(shape)
    return x


def cutout(x: Tensor) -> Tensor:
    """A rectangle of half the height and width is 0, its centre anywhere in the image: (N, C, H, W) -> the same."""
    within = []
    for side in x.shape[2:]:
        size = side // 2
        # From the first place that is cut out to one where it is at the far border; half may hang over.
        start = torch.randint(0, side + 1 - size % 2, (len(x), 1), device=x.device) - size // 2
        place = torch.arange(side, device=x.device)
        within.append((place >= start) & (place < start + size))  # (N, side)
    hole = within[0][:, None, :, None] & within[1][:, None, None, :]  # (N, 1, H, W)
    return x * ~hole
