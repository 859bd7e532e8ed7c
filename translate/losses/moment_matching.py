"""Maximum mean discrepancy: all moments of two samples compared at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mmd(x: Tensor, y: Tensor, bandwidths: Sequence[float], *, unbiased: bool = False) -> Tensor:
    """Squared MMD of two samples (N, D) and (M, D) under a sum of Gaussian kernels, float32 scalar.

    k(a, b) = sum over the bandwidths s of exp(-|a - b|² / (2 s)): as GMMN writes it (Li et al., arXiv 1502.02761,
    section 2), so that s is a squared length; GMMN takes [2, 5, 10, 20, 40, 80] for 784 pixels in [0, 1], and pixels
    in [-1, 1] are twice as far apart: four times those are the same kernels.

    By default the biased estimate (Gretton et al. 2012, JMLR 13, eq. 5; GMMN, eq. 3), never below zero. The unbiased
    one (Gretton, eq. 3) leaves each sample's product with itself out and can be negative.

    Memory goes by the pairs and the bandwidths, not by D. Raises ValueError for other shapes, and for less than two
    samples of a side where `unbiased`.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected samples (N, D) and (M, D), not {tuple(x.shape)} and {tuple(y.shape)}")
    if min(len(x), len(y)) < (2 if unbiased else 1):
        raise ValueError(f"too few samples for this estimate: {len(x)} and {len(y)}")
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        centre = y.detach().mean(0)  # distances do not change; products of smaller numbers round less
        x, y = x - centre, y - centre
        within = [_mean_within(_distances(z, z), bandwidths, unbiased) for z in (x, y)]
        return within[0] + within[1] - 2 * _kernel(_distances(x, y), bandwidths).mean()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|²: (N, D), (M, D) -> (N, M)."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    return (squares - 2 * x @ y.T).clamp(min=0)


def _kernel(distances: Tensor, bandwidths: Sequence[float]) -> Tensor:
    return torch.stack([torch.exp(distances / (-2 * bandwidth)) for bandwidth in bandwidths]).sum(0)


def _mean_within(distances: Tensor, bandwidths: Sequence[float], unbiased: bool) -> Tensor:
    """Mean of the kernel over the pairs of one sample (N, N); the diagonal is exactly one a kernel."""
    count = len(distances)
    kernel = _kernel(distances, bandwidths)
    others = kernel.sum() - kernel.diagonal().sum()
    return others / (count * (count - 1)) if unbiased else (others + count * len(bandwidths)) / count**2
