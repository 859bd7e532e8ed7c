"""MATLAB's `imresize` with its bicubic kernel: what the low resolution images of super-resolution are made by.

There are two of it. Of doubles nothing is rounded. Of uint8 each pass (first along the side that shrinks more, of
equals the vertical one) is rounded and clipped: that is how the published test sets were made, byte for byte.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from translate.devices import exact_float32

Convention = Literal["uint8", "double"]

_FRACTION = 1 << 14
"""Weights that are multiples of 1 / 2^14 keep sums of bytes exact in float32: 8 + 14 + 1 bits of its 24."""


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 (IEEE Transactions on Acoustics, Speech and Signal Processing 29, 1981, eq. 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


@functools.lru_cache(maxsize=64)
def contributions(length: int, out: int, scale: float) -> Tensor:
    """The matrix (out, length), float64, that resizes a line of pixels by `scale`; beyond its ends the line is mirrored.

    Where it shrinks, the kernel is widened by 1 / scale against aliasing.
    """
    stretch = min(scale, 1.0)
    reach = 2 / stretch
    centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5  # (out,), in pixels of the line
    first = torch.floor(centre - reach).long()
    positions = first[:, None] + torch.arange(math.ceil(2 * reach) + 2)  # (out, taps)
    weights = stretch * cubic(stretch * (centre[:, None] - positions))
    weights = weights / weights.sum(1, keepdim=True)
    period = positions % (2 * length)
    mirrored = torch.where(period < length, period, 2 * length - 1 - period)
    return torch.zeros(out, length, dtype=torch.float64).scatter_add_(1, mirrored, weights)


def resized_length(length: int, scale: float) -> int:
    """Pixels of a side after `imresize(image, scale)`."""
    return math.ceil(round(length * scale, 9))  # 3 * (1 / 3) is to be 1


def imresize(
    images: Tensor, scale: float, *, convention: Convention = "double", size: Sequence[int] | None = None
) -> Tensor:
    """Images (N, C, H, W), resized as MATLAB's `imresize(image, scale)` or, with a size, `imresize(image, size)` does.

    Args:
        images: floats of any range; with `uint8` whole numbers from 0 to 255, or a uint8 tensor.
        scale: not used where `size` is given.
        convention: `double` rounds nothing and can be differentiated; float16 and bfloat16 are computed in float32.
            `uint8` rounds halves up and clips after each pass.
        size: height and width of the result.

    Returns:
        (N, C, ceil(scale * H), ceil(scale * W)); float32, or float64 where that came in. With `uint8`: the type
        that came in.
    """
    height, width = images.shape[2:]
    sides = (height, width)
    out = tuple(size) if size is not None else tuple(resized_length(side, scale) for side in sides)
    scales = [out[i] / sides[i] if size is not None else scale for i in (0, 1)]
    matrices = [contributions(sides[i], out[i], scales[i]) for i in (0, 1)]
    with torch.autocast(images.device.type, enabled=False), exact_float32(images.device):
        x = images.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
        if convention == "uint8" and not all(_exact_in_float32(matrix) for matrix in matrices):
            x = x.double()
        rows, columns = (matrix.to(x.device, x.dtype) for matrix in matrices)
        for vertical in (True, False) if scales[0] <= scales[1] else (False, True):
            x = rows @ x if vertical else x @ columns.T
            if convention == "uint8":
                x = (x + 0.5).floor().clamp(0, 255)
    return x.to(images.dtype) if convention == "uint8" else x


def _exact_in_float32(matrix: Tensor) -> bool:
    scaled = matrix * _FRACTION
    return bool((scaled == scaled.round()).all())
