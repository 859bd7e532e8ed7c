"""Noise of the second-order degradation (Wang et al. 2021, arXiv 2107.10833, section 3.1), for images in [0, 1].

Images (N, C, H, W) of 1 or 3 channels; where `grey` (N,) is true, all channels of an image have the same noise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_noise(x: Tensor, deviation: Tensor, grey: Tensor, chance: torch.Generator | None = None) -> Tensor:
    """Normal noise of a `deviation` (N,) in levels of 255, as numbers to add: the shape of x."""
    coloured = _normal(x, x.shape[1], chance)
    noise = torch.where(_each(grey), _normal(x, 1, chance), coloured)
    return noise * _each(deviation) / 255


def poisson_noise(x: Tensor, factor: Tensor, grey: Tensor, chance: torch.Generator | None = None) -> Tensor:
    """What counting light adds, times `factor` (N,), as numbers to add: the shape of x.

    White is as many counts as an image has levels, rounded up to a power of 2 (as in the authors' code, which has it
    from scikit-image). A grey noise is that of the luma.
    """
    coloured = _counted(x, chance)
    if x.shape[1] == 1:
        return coloured * _each(factor)
    return torch.where(_each(grey), _counted(luma(x), chance), coloured) * _each(factor)


def luma(x: Tensor) -> Tensor:
    """ITU-R BT.601's luma of RGB images, as in JPEG files: (N, 3, H, W) -> (N, 1, H, W)."""
    red, green, blue = x.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def _normal(x: Tensor, channels: int, chance: torch.Generator | None) -> Tensor:
    return torch.randn(len(x), channels, *x.shape[2:], device=x.device, generator=chance)


def _counted(x: Tensor, chance: torch.Generator | None) -> Tensor:
    levels = (x * 255).round().clamp(0, 255)
    there = torch.zeros(len(x), 256, device=x.device).scatter_(1, levels.long().flatten(1), 1)
    # 2^ceil(log2(levels)), from 1 to 256: whole numbers, and nothing waits for the device.
    powers = torch.exp2(torch.arange(8, device=x.device))
    counts = _each(torch.exp2((there.sum(1, keepdim=True) > powers).sum(1).float()))
    light = levels / 255
    return torch.poisson(light * counts, generator=chance) / counts - light


def _each(numbers: Tensor) -> Tensor:
    """A number for each image: (N,) -> (N, 1, 1, 1)."""
    return numbers[:, None, None, None]
