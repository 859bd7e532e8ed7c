"""MATLAB's `imresize` with its bicubic kernel: what the low resolution images of super-resolution are made by.

There are two of it. Of doubles nothing is rounded. Of uint8 each pass (first along the side that shrinks more, of
equals the vertical one) is rounded and clipped: that is how the published test sets were made, byte for byte.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from translate.devices import exact_float32

Convention = Literal["uint8", "double"]

_FRACTION = 1 << 14
"""Weights that are multiples of 1 / 2^14 keep sums of bytes exact in float32, in whatever order: no sum reaches 2^9
(absolute weights add up to less than 2), and 9 + 14 bits are less than its 24. So it is with factors
1/4, 1/2, 2, 4 and 8; 1/8 needs 2^16 and, as all others, float64."""

_BLOCK = 16
"""Pixels that a product makes (times the scale where it enlarges). Of a photograph whole matrices are nearly all
zeros: 10 megapixels to a quarter took 12 times as long with them, and twice as long with blocks of 64."""


def cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2 (IEEE Transactions on Acoustics, Speech and Signal Processing 29, 1981, eq. 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


class Contributions(NamedTuple):
    """Which pixels of a line make each pixel of the resized one: both (out, taps), on the CPU."""

    positions: Tensor
    """int64. A pixel may stand twice in a row."""
    weights: Tensor
    """float64; rows add up to 1."""


@functools.lru_cache(maxsize=128)
def contributions(length: int, out: int, scale: float) -> Contributions:
    """What resizes a line of pixels by `scale`; beyond its ends the line is mirrored, the last pixel standing twice.

    Where it shrinks, the kernel is widened by 1 / scale against aliasing.
    """
    stretch = min(scale, 1.0)
    reach = 2 / stretch
    with torch.inference_mode(False):  # what is kept must serve training too
        centre = (torch.arange(out, dtype=torch.float64) + 0.5) / scale - 0.5  # (out,), in pixels of the line
        first = torch.floor(centre - reach).long()
        positions = first[:, None] + torch.arange(math.ceil(2 * reach) + 2)  # (out, taps)
        weights = stretch * cubic(stretch * (centre[:, None] - positions))
        weights = weights / weights.sum(1, keepdim=True)
        period = positions % (2 * length)
        return Contributions(torch.where(period < length, period, 2 * length - 1 - period), weights)


def resized_length(length: int, scale: float) -> int:
    """Pixels of a side after `imresize(image, scale)`."""
    return math.ceil(round(length * scale, 9))  # 100 * 0.07 is to be 7


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
    sides = (images.shape[2], images.shape[3])
    out = tuple(size) if size is not None else tuple(resized_length(side, scale) for side in sides)
    scales = [out[i] / sides[i] if size is not None else scale for i in (0, 1)]
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    if convention == "uint8" and not all(_exact_in_float32(sides[i], out[i], scales[i]) for i in (0, 1)):
        dtype = torch.float64
    x = images.to(dtype).contiguous()
    with exact_float32(x.device):
        for i in (0, 1) if scales[0] <= scales[1] else (1, 0):
            x = _along(2 + i, x, _blocks(sides[i], out[i], scales[i], dtype, x.device))
            if convention == "uint8":
                x = x.add_(0.5).floor_().clamp_(0, 255)
    return x.to(images.dtype) if convention == "uint8" else x


class _Block(NamedTuple):
    """Neighbours of the resized line: they are `weights` @ the line's pixels from `first` up to `end`."""

    first: int
    end: int
    weights: Tensor
    """(pixels of the resized line, end - first)"""


@functools.lru_cache(maxsize=128)
def _blocks(length: int, out: int, scale: float, dtype: torch.dtype, device: torch.device) -> list[_Block]:
    positions, weights = contributions(length, out, scale)
    count = round(_BLOCK * max(scale, 1))
    blocks: list[_Block] = []
    with torch.inference_mode(False):
        for begin in range(0, out, count):
            here, share = positions[begin : begin + count], weights[begin : begin + count]
            first, end = int(here.min()), int(here.max()) + 1
            dense = torch.zeros(len(here), end - first, dtype=torch.float64).scatter_add_(1, here - first, share)
            blocks.append(_Block(first, end, dense.to(device, dtype)))
    return blocks


def _along(axis: int, x: Tensor, blocks: list[_Block]) -> Tensor:
    """(N, C, H, W), resized along axis 2 or 3."""
    if axis == 2:
        parts = [block.weights @ x[:, :, block.first : block.end] for block in blocks]
    else:
        parts = [x[..., block.first : block.end] @ block.weights.T for block in blocks]
    return torch.cat(parts, axis)


@functools.lru_cache(maxsize=128)
def _exact_in_float32(length: int, out: int, scale: float) -> bool:
    scaled = contributions(length, out, scale).weights * _FRACTION
    return bool((scaled == scaled.round()).all())
