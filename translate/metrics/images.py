"""How near an output is to its target, image by image.

All measures take two batches (N, C, H, W) in [-1, 1] and give (N,): float64 where an image is float64, else float32.
Values beyond [-1, 1] could not be written to a file and are clamped; one that is no number makes its image's measure
none either.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from translate.errors import UserError

_PEAK = 2.0  # the range of [-1, 1]: L of Wang et al. 2004
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2  # ibid., eq. 7 and 9, K1 and K2 as in section III.C
_WINDOW, _SIGMA = 11, 1.5  # ibid., section III.C
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
_SMALLEST_MS = (_WINDOW - 1) * 2 ** (len(_SCALE_WEIGHTS) - 1) + 1  # 161: four halvings leave the window's 11


@torch.no_grad()
def l1(fake: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, on the scale of 0 to 1."""
    fake, target = _alike(fake, target)
    return (fake - target).abs().mean(dim=(1, 2, 3)) / _PEAK


@torch.no_grad()
def psnr(fake: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB: 10 log10(L² / MSE), L the whole range, the mean over all channels.

    At most 100 dB (an MSE of 1e-10 L², less than a 16-bit level), so that an exact copy leaves an average finite.
    """
    fake, target = _alike(fake, target)
    mse = (fake - target).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(_PEAK**2 / mse.clamp(min=1e-10 * _PEAK**2))


@torch.no_grad()
def ssim(fake: Tensor, target: Tensor) -> Tensor:
    """Structural similarity, 1 for equal images.

    Wang et al. 2004, eq. 13: Gaussian window 11x11, sigma 1.5, constants 0.01² and 0.03², over the pixels whose window
    lies inside the image; the mean of all channels. The window of an image smaller than 11 pixels is the largest odd
    one that fits.
    """
    fake, target = _alike(fake, target)
    shorter = min(fake.shape[2:])
    luminance, structure = _ssim_maps(fake, target, min(_WINDOW, shorter - (shorter + 1) % 2))  # odd
    return (luminance * structure).mean(dim=(1, 2, 3))


@torch.no_grad()
def ms_ssim(fake: Tensor, target: Tensor) -> Tensor:
    """Structural similarity at five scales (Wang, Simoncelli, Bovik 2003), 1 for equal images.

    Eq. 7 as its authors' program has it: the mean of contrast times structure over each of the first four scales, the
    mean SSIM (with luminance) over the fifth, each to the power of its weight. Between scales the mean of 2x2 pixels;
    an odd last row or column stands for its missing neighbour. A negative mean, which has no power, counts as 0. Each
    channel is measured by itself, then their mean is taken.

    Raises:
        UserError: an image smaller than 161 pixels, whose fifth scale could not hold the window.
    """
    fake, target = _alike(fake, target)
    height, width = fake.shape[2:]
    if min(height, width) < _SMALLEST_MS:
        raise UserError(
            f"MS-SSIM: its five scales need images of at least {_SMALLEST_MS} pixels, not {width}x{height}; "
            "measure SSIM instead"
        )
    product = fake.new_ones(fake.shape[:2])
    for scale, weight in enumerate(_SCALE_WEIGHTS):
        if scale:
            fake, target = (F.avg_pool2d(images, 2, ceil_mode=True) for images in (fake, target))
        luminance, similarity = _ssim_maps(fake, target, _WINDOW)
        if scale == len(_SCALE_WEIGHTS) - 1:
            similarity = similarity * luminance
        product = product * similarity.mean(dim=(2, 3)).relu() ** weight  # (N, C)
    return product.mean(dim=1)


def luma(images: Tensor) -> Tensor:
    """Y of RGB images (N, 3, H, W) in [-1, 1] -> (N, 1, H, W) on the same scale, as super-resolution measures it.

    ITU-R BT.601 as MATLAB's `rgb2ycbcr` has it, not rounded: Y = 16 + 65.481 R + 128.553 G + 24.966 B of R, G, B in
    [0, 1] goes from 16 to 235, and -1 and 1 still are 0 and 255, which remains the peak of PSNR. Images of one channel
    pass as they are, as in the programs of that field; a grey picture read as RGB is converted and so gains
    20 log10(255 / 219) = 1.32 dB.

    Raises:
        UserError: neither one channel nor three.
    """
    images = _exact(images)
    channels = images.shape[1]
    if channels == 1:
        return images
    if channels != 3:
        raise UserError(f"luma: expected grey or RGB images, not {channels} channels; measure with channels rgb")
    red, green, blue = ((images + 1) / 2).unbind(dim=1)  # (N, H, W) each
    return ((16 + 65.481 * red + 128.553 * green + 24.966 * blue) / 127.5 - 1).unsqueeze(1)


def inner(images: Tensor, border: int) -> Tensor:
    """Images (..., H, W) without `border` pixels at each side; UserError where nothing is left."""
    height, width = images.shape[-2:]
    if min(height, width) <= 2 * border:
        raise UserError(f"border: {border} pixels at each side leave nothing of an image of {width}x{height}")
    return images[..., border : height - border, border : width - border]


def _ssim_maps(fake: Tensor, target: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, at each pixel whose window lies inside: Wang et al. 2004, eq. 6 and 13.

    Means and variances are taken of s = (x + y) / 2 and d = (x - y) / 2, so that 2 x y = 2 (s² - d²) and x² + y² =
    2 (s² + d²): four blurred maps instead of five, and in float32 ten times as exact where images are alike, because
    the small differences are no longer differences of large products.
    """
    weights = [math.exp(-(((k - window // 2) / _SIGMA) ** 2) / 2) for k in range(window)]
    total = sum(weights)
    weights = [weight / total for weight in weights]
    s, d = (fake + target) / 2, (fake - target) / 2
    mean_s, mean_d = _blurred(s, weights), _blurred(d, weights)
    variance_s = _blurred(s * s, weights) - mean_s * mean_s
    variance_d = _blurred(d * d, weights) - mean_d * mean_d
    square_s, square_d = (mean_s + 1).square(), mean_d.square()  # luminance counts from black, which is -1
    luminance = (2 * (square_s - square_d) + _C1) / (2 * (square_s + square_d) + _C1)
    structure = (2 * (variance_s - variance_d) + _C2) / (2 * (variance_s + variance_d) + _C2)
    return luminance, structure


def _blurred(images: Tensor, weights: list[float]) -> Tensor:
    """Each pixel's weighted mean over a square window, (..., H, W) -> (..., H - n + 1, W - n + 1).

    Sums of shifted images: on a CPU several times as fast as a convolution of one channel, and no number format of
    convolutions (TF32, autocast) touches it.
    """
    for dim in (-2, -1):
        size = images.shape[dim] - len(weights) + 1
        blurred = images.narrow(dim, 0, size) * weights[0]
        for start, weight in enumerate(weights[1:], 1):
            blurred.add_(images.narrow(dim, start, size), alpha=weight)
        images = blurred
    return images


def _exact(images: Tensor) -> Tensor:
    """As float64 where it is, else as float32; within [-1, 1]."""
    return (images if images.dtype == torch.float64 else images.float()).clamp(-1, 1)


def _alike(fake: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `_exact` has them, if they are of one shape."""
    if fake.shape != target.shape or fake.ndim != 4:
        raise ValueError(
            f"expected two batches (N, C, H, W) of one shape, not {tuple(fake.shape)}, {tuple(target.shape)}"
        )
    return _exact(fake), _exact(target)
