"""How near an output is to its target, image by image."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def l1(fake: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of images (N, C, H, W) in [-1, 1], on the scale of 0 to 1: (N,)."""
    fake, target = _unit(fake, target)
    return (fake - target).abs().mean(dim=(1, 2, 3))


@torch.no_grad()
def psnr(fake: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images (N, C, H, W) in [-1, 1], in dB: (N,).

    10 log10(1 / MSE) on the scale of 0 to 1. At most 100 dB (MSE 1e-10, less than a 16-bit level), so that
    an exact copy leaves an average finite.
    """
    fake, target = _unit(fake, target)
    mse = (fake - target).square().mean(dim=(1, 2, 3))
    return -10 * torch.log10(mse.clamp(min=1e-10))


@torch.no_grad()
def ssim(fake: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of images (N, C, H, W) in [-1, 1]: (N,), 1 for equal images.

    Wang et al. 2004: Gaussian window 11x11, sigma 1.5, constants 0.01² and 0.03², over the pixels whose
    window lies inside the image; the mean of all channels. The window of an image smaller than 11 pixels is
    the largest odd one that fits.
    """
    from kornia.metrics import ssim as ssim_map  # here: it takes half a second that a conversion does not need

    fake, target = _unit(fake, target)
    shorter = min(fake.shape[2:])
    window = min(11, shorter - (shorter + 1) % 2)  # odd
    return ssim_map(fake, target, window, max_val=1.0, eps=0.0, padding="valid").mean(dim=(1, 2, 3))


def _unit(fake: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 in [0, 1]; what lies beyond [-1, 1] could not be written to a file and is clamped."""
    if fake.shape != target.shape or fake.ndim != 4:
        raise ValueError(
            f"expected two batches (N, C, H, W) of one shape, not {tuple(fake.shape)}, {tuple(target.shape)}"
        )
    return (fake.float().clamp(-1, 1) + 1) / 2, (target.float().clamp(-1, 1) + 1) / 2
