"""What a JPEG file makes of an image, on the device and in whole batches (ITU-T T.81; libjpeg's choices).

Kornia's `jpeg_codec_differentiable` rounds softly, so that gradients pass, which leaves a part of what a file loses:
it is three times as far from libjpeg, takes three times as long and waits for the device. Nobody needs gradients here.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
"""Steps of the luma's coefficients at quality 50 (T.81, table K.1)."""
_CHROMA = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
"""Those of the chroma (table K.2): the lowest 4 x 4, all others are 99."""


def jpeg(x: Tensor, quality: Tensor) -> Tensor:
    """Images (N, C, H, W) in [0, 1], C 1 or 3, as they come back from files of a `quality` (N,), whole numbers from 1.

    The result has their shape and stands on 256 levels. Chroma has half the resolution, which is what libjpeg does
    unless told otherwise. Two things are not libjpeg's: its transforms in whole numbers (a few coefficients fall to the
    other side), and the rows with which it fills the last blocks of the chroma where the height is no multiple of 16.
    """
    height, width = x.shape[2:]
    unit = 8 if x.shape[1] == 1 else 16
    levels = F.pad((x * 255).round(), (0, -width % unit, 0, -height % unit), mode="replicate")
    constants = _constants(x.device)
    if x.shape[1] == 1:
        return _through(levels, constants.luma, quality)[..., :height, :width] / 255
    red, green, blue = levels.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # JFIF 1.02: BT.601 over all 256 levels
    chroma = torch.stack([(blue - luma) / 1.772, (red - luma) / 1.402], dim=1).round() + 128  # (N, 2, H, W)
    luma = _through(luma[:, None].round(), constants.luma, quality)
    chroma = _through(F.avg_pool2d(chroma, 2).round(), constants.chroma, quality)
    chroma = chroma[..., : -(-height // 2), : -(-width // 2)]  # what was padded does not come into the picture
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear").round()[..., :height, :width] - 128
    luma, more_blue, more_red = luma[..., :height, :width], chroma[:, :1], chroma[:, 1:]
    green = luma - (0.114 * 1.772 * more_blue + 0.299 * 1.402 * more_red) / 0.587
    found = torch.cat([luma + 1.402 * more_red, green, luma + 1.772 * more_blue], dim=1)
    return found.round().clamp(0, 255) / 255


def steps(table: Tensor, quality: Tensor) -> Tensor:
    """A table (8, 8) of quality 50 at each `quality` (N,), as libjpeg scales it (jcparam.c): (N, 8, 8)."""
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((table * percent[:, None, None] + 50) / 100).floor().clamp(1, 255)


def _through(planes: Tensor, table: Tensor, quality: Tensor) -> Tensor:
    """Planes (N, C, H, W) of levels, H and W multiples of 8: block by block to coefficients, which are rounded to
    their steps, and back."""
    count, channels, height, width = planes.shape
    cosines = _constants(planes.device).cosines
    step = steps(table, quality)[:, None, None, None]  # (N, 1, 1, 1, 8, 8)
    blocks = planes.view(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4) - 128
    coefficients = cosines @ blocks @ cosines.T  # (N, C, H / 8, W / 8, 8, 8)
    blocks = cosines.T @ ((coefficients / step).round() * step) @ cosines
    return (blocks.transpose(3, 4).reshape(planes.shape) + 128).round().clamp(0, 255)


class _Constants(NamedTuple):
    luma: Tensor
    """(8, 8), as the others."""
    chroma: Tensor
    cosines: Tensor
    """The orthonormal DCT-II of 8 numbers (T.81, A.3.3)."""


@functools.cache
def _constants(device: torch.device) -> _Constants:
    with torch.inference_mode(False):  # what is kept must serve training too
        chroma = torch.full((8, 8), 99.0)
        chroma[:4, :4] = torch.tensor(_CHROMA)
        place = torch.arange(8, dtype=torch.float64)
        cosines = torch.cos((2 * place + 1) * place[:, None] * torch.pi / 16) / 2
        cosines[0] /= 2**0.5
        found = torch.tensor(_LUMA, dtype=torch.float32), chroma, cosines.float()
        return _Constants(*(constant.to(device) for constant in found))
