"""The log likelihood of real points under a kernel density of samples (a Parzen window estimate)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from translate.errors import UserError

RELIABLE = 10
"""Dimensions up to which some thousand samples may tell a density; `WARNING` is for more."""
WARNING = (
    f"Parzen estimates in more than {RELIABLE} dimensions are far from the true log likelihood and do not rank models, "
    "whatever the number of samples (Theis et al. 2016, arXiv 1511.01844, section 3.2)"
)
BANDWIDTHS = 10.0 ** (torch.arange(-30, 11, dtype=torch.float64) / 10)
"""Tried by `choose_bandwidth`, as shares of the data's standard deviation: 10 a decade, a thousandth to tenfold."""


@torch.no_grad()
def parzen(samples: Tensor, points: Tensor, bandwidth: float, *, block: int = 1024) -> float:
    """Mean over the points (M, D) of log 1/N sum_i N(point; sample_i, bandwidth² I), in nats, for samples (N, D): the
    protocol of Goodfellow et al. 2014 (arXiv 1406.2661, section 5; Breuleux et al. 2011).

    In float64; memory goes by block x N. Raises ValueError for other shapes, no rows or a bandwidth not above 0.
    """
    if not bandwidth > 0:
        raise ValueError(f"expected a bandwidth above 0, not {bandwidth}")
    return float(_log_likelihoods(samples, points, torch.tensor([bandwidth], dtype=torch.float64), block)[0])


@torch.no_grad()
def choose_bandwidth(samples: Tensor, held_out: Tensor, *, block: int = 1024) -> float:
    """The bandwidth under which held-out real points (M, D) are likeliest, out of 41 from 0.001 to 10 of their standard
    deviations (root of the mean variance over the dimensions).

    The points must not be those that are measured then: the bandwidth has seen them. UserError for points that are all
    equal.
    """
    spread = float(held_out.double().var(0, correction=0).mean().sqrt())
    if not spread > 0:
        raise UserError("Parzen bandwidth: the held-out points are all equal; expected at least two that differ")
    tried = spread * BANDWIDTHS
    return float(tried[int(_log_likelihoods(samples, held_out, tried, block).argmax())])


def _log_likelihoods(samples: Tensor, points: Tensor, bandwidths: Tensor, block: int) -> Tensor:
    """The mean log density of the points under each bandwidth: (N, D), (M, D), (B,) -> (B,)."""
    if samples.ndim != 2 or points.ndim != 2 or samples.shape[1] != points.shape[1]:
        raise ValueError(f"expected points (N, D) and (M, D), not {tuple(samples.shape)} and {tuple(points.shape)}")
    if not len(samples) or not len(points):
        raise ValueError(f"expected at least one of each, not {len(samples)} samples and {len(points)} points")
    samples, points = samples.double(), points.to(samples.device).double()
    centre = points.mean(0)  # distances do not change; products of smaller numbers round less
    samples, points = samples - centre, points - centre
    bandwidths = bandwidths.to(samples.device)
    total = torch.zeros_like(bandwidths)
    for some in torch.split(points, block):
        squares = torch.cdist(some, samples).square_()  # (block, N)
        for i, bandwidth in enumerate(bandwidths):
            total[i] += torch.logsumexp(squares / (-2 * bandwidth.square()), 1).sum()
    dimension = samples.shape[1]
    normaliser = math.log(len(samples)) + dimension / 2 * torch.log(2 * math.pi * bandwidths.square())
    return total / len(points) - normaliser
