"""Blur kernels of the second-order degradation (Wang et al. 2021, arXiv 2107.10833, sections 3.1 and 3.3).

All are (N, size, size) of an odd size, float64, centred, and add up to 1; each has a support of its own, an odd number
of pixels, outside of which it is 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def mahalanobis(size: int, deviations: Tensor, angle: Tensor) -> Tensor:
    """x^T S^-1 x of each pixel x = (across, down) from the centre: (N, size, size).

    S has `deviations` (N, 2) along its axes, which are turned by `angle` (N,), in radians.
    """
    line = torch.arange(size, dtype=torch.float64) - size // 2
    down, across = torch.meshgrid(line, line, indexing="ij")
    cosine, sine = angle.double().cos()[:, None, None], angle.double().sin()[:, None, None]
    along = (cosine * across + sine * down) / deviations[:, 0, None, None]
    beside = (cosine * down - sine * across) / deviations[:, 1, None, None]
    return along.square() + beside.square()


def generalised_gaussian(distance: Tensor, shape: Tensor, support: Tensor) -> Tensor:
    """exp(-d^shape / 2) of `mahalanobis` distances d; with a shape of 1 it is the Gaussian (section 3.1)."""
    return _kept((-0.5 * distance ** shape[:, None, None]).exp(), support)


def plateau(distance: Tensor, shape: Tensor, support: Tensor) -> Tensor:
    """1 / (1 + d^shape) of `mahalanobis` distances d (section 3.1)."""
    return _kept(1 / (1 + distance ** shape[:, None, None]), support)


def sinc(size: int, cutoff: Tensor, support: Tensor) -> Tensor:
    """The circular low-pass filter of `cutoff` (N,), from 0 to pi: w J1(w r) / (2 pi r) (section 3.3)."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    radius = (line[:, None].square() + line.square()).sqrt()
    w = cutoff.double()[:, None, None]
    ring = w * torch.special.bessel_j1(w * radius) / (2 * math.pi * radius)
    return _kept(torch.where(radius == 0, w.square() / (4 * math.pi), ring), support)  # J1(x) / x -> 1/2


def pulse(count: int, size: int) -> Tensor:
    """Kernels that change nothing."""
    kernel = torch.zeros(count, size, size, dtype=torch.float64)
    kernel[:, size // 2, size // 2] = 1
    return kernel


def _kept(kernel: Tensor, support: Tensor) -> Tensor:
    """The square of `support` (N,) pixels in the middle, scaled to add up to 1."""
    size = kernel.shape[-1]
    inside = (torch.arange(size) - size // 2).abs() <= support[:, None] // 2  # (N, size)
    kernel = kernel * (inside[:, None, :] & inside[:, :, None])
    return kernel / kernel.sum(dim=(1, 2), keepdim=True)
