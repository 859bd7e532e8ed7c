"""Parzen estimates against SciPy's kernel density and the closed form of Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from translate.errors import UserError
from translate.metrics.parzen import choose_bandwidth, parzen


def draws(count: int, dimension: int, seed: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, dimension, generator=generator, dtype=torch.float64)


def normal(distance_squared: float, variance: float, dimension: int) -> float:
    """log N(x; 0, variance I) in nats."""
    return -distance_squared / (2 * variance) - dimension / 2 * math.log(2 * math.pi * variance)


def test_one_sample_is_one_gaussian() -> None:
    found = parzen(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 2.0]]), 0.5)
    assert found == pytest.approx(normal(9, 0.25, 3), rel=1e-12)
    # So far off that the density is 0 in float64; its logarithm is not.
    assert parzen(torch.zeros(4, 1), torch.full((2, 1), 100.0), 0.1) == pytest.approx(normal(1e4, 0.01, 1), rel=1e-12)


@pytest.mark.parametrize(("dimension", "bandwidth"), [(1, 0.1), (2, 0.3), (5, 1.0)])
def test_equals_the_kernel_density_of_scipy(dimension: int, bandwidth: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    samples, points = draws(60, dimension, 1), draws(40, dimension, 2, 0.5)
    # SciPy's kernel has the samples' covariance times a factor squared: whitened samples make it isotropic.
    mixing = np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(samples.numpy().T)))).T
    white, seen = (torch.from_numpy(x.numpy() @ mixing) for x in (samples, points))
    density = stats.gaussian_kde(white.numpy().T, bw_method=bandwidth)
    assert parzen(white, seen, bandwidth) == pytest.approx(float(density.logpdf(seen.numpy().T).mean()), rel=1e-9)


@pytest.mark.parametrize(("dimension", "mean"), [(1, 0.0), (1, 1.5), (3, 0.5)])
def test_many_samples_of_a_gaussian_are_a_wider_gaussian(dimension: int, mean: float) -> None:
    # The kernel density of N(0, I) tends to N(0, (1 + h²) I); its logarithm is linear in |x|², whose mean over points
    # of N(mean, I) is D (1 + mean²). Chance: of 8,000 samples, some 1/90 of the density, less for the mean over points.
    h = 0.5
    points = draws(1_000, dimension, 4, mean)
    found = parzen(draws(8_000, dimension, 3), points, h)
    exact = float(points.square().sum(1).mean())  # these points' own, so that just the samples' chance is left
    assert found == pytest.approx(normal(exact, 1 + h * h, dimension), abs=0.02)
    assert normal(exact, 1 + h * h, dimension) == pytest.approx(
        normal(dimension * (1 + mean**2), 1 + h * h, dimension), abs=0.2
    )


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_and_order_change_no_more_than_rounding(block: int) -> None:
    samples, points = draws(50, 2, 5), draws(30, 2, 6)
    expected = parzen(samples, points, 0.2)
    assert parzen(samples.flip(0), points.flip(0), 0.2, block=block) == pytest.approx(expected, rel=1e-12)
    assert parzen(samples.float(), points.float(), 0.2) == pytest.approx(expected, rel=1e-5)


def test_the_bandwidth_is_the_likeliest_of_those_tried() -> None:
    samples, held_out = 7 * draws(300, 2, 7), 7 * draws(200, 2, 8)
    best = choose_bandwidth(samples, held_out)
    spread = float(held_out.var(0, correction=0).mean().sqrt())
    assert 0.1 < best / spread < 1  # Silverman's rule says 300^(-1/6) = 0.39
    tried = {k: parzen(samples, held_out, spread * 10 ** (k / 10)) for k in range(-30, 11)}
    assert best == pytest.approx(spread * 10 ** (max(tried, key=lambda k: tried[k]) / 10), rel=1e-9)


def test_a_generator_of_one_point_gets_a_width_of_the_data() -> None:
    # N(0, s² I) at its best for N(0, I) data is s = 1.
    assert choose_bandwidth(torch.zeros(50, 2), draws(500, 2, 9)) == pytest.approx(1, rel=0.15)


def test_what_can_not_be_measured() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="bandwidth above 0"):
            parzen(torch.zeros(2, 2), torch.zeros(2, 2), wrong)
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        parzen(torch.zeros(2, 2), torch.zeros(2, 3), 1.0)
    with pytest.raises(ValueError, match="at least one"):
        parzen(torch.zeros(0, 2), torch.zeros(2, 2), 1.0)
    with pytest.raises(UserError, match="all equal"):
        choose_bandwidth(torch.zeros(2, 2), torch.ones(5, 2))
