"""Total variation: how much an image changes from pixel to pixel."""

from __future__ import annotations

from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Images (N, C, H, W) -> the mean absolute difference of vertical neighbours plus that of horizontal ones, a
    float32 scalar; 0 along a side of one pixel.

    Rudin et al. (Physica D 60, 1992), anisotropic; a mean, so that a weight does not depend on the images' size.
    """
    images = images.float()
    return sum(
        ((images.narrow(dim, 1, size - 1) - images.narrow(dim, 0, size - 1)).abs().mean())
        for dim in (2, 3)
        if (size := images.shape[dim]) > 1
    ) + images.new_zeros(())
