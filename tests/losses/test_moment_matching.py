from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from translate.losses.moment_matching import mmd

BANDWIDTHS = [0.5, 2.0, 8.0]


def naive(x: Tensor, y: Tensor, bandwidths: Sequence[float], unbiased: bool) -> Tensor:
    """The definition, pair by pair, in float64."""

    def mean(a: Tensor, b: Tensor, same: bool) -> Tensor:
        pairs = [
            sum(torch.exp(-(p - q).square().sum() / (2 * s)) for s in bandwidths)
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (same and unbiased and i == j)
        ]
        return torch.stack([torch.as_tensor(value) for value in pairs]).mean()

    x, y = x.double(), y.double()
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def expected_kernel(distance: float, variance: float, dimensions: int, bandwidths: Sequence[float]) -> float:
    """E k(a, b), where a - b ~ N(delta, variance I) and |delta| = distance."""
    return sum(
        (s / (s + variance)) ** (dimensions / 2) * math.exp(-(distance**2) / (2 * (s + variance))) for s in bandwidths
    )


def closed_form(distance: float, scale: float, dimensions: int, bandwidths: Sequence[float]) -> float:
    """Squared MMD of N(0, I) and N(mu, scale² I), |mu| = distance."""
    within = expected_kernel(0, 2, dimensions, bandwidths) + expected_kernel(0, 2 * scale**2, dimensions, bandwidths)
    return within - 2 * expected_kernel(distance, 1 + scale**2, dimensions, bandwidths)


@pytest.mark.parametrize("unbiased", [False, True])
def test_definition(unbiased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, requires_grad=True)
    y = (2 * torch.randn(4, 3) + 1).requires_grad_()
    found, expected = (f(x, y, BANDWIDTHS, unbiased=unbiased) for f in (mmd, naive))
    assert found.dtype is torch.float32
    assert found.shape == ()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    found_gradients, wanted = (torch.autograd.grad(value, (x, y)) for value in (found, expected))
    torch.testing.assert_close(found_gradients, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("mu", "scale"), [(0.0, 1.5), (1.0, 1.0), (2.0, 0.5)])
def test_gaussians_in_one_dimension(mu: float, scale: float) -> None:
    # Quantiles instead of chance: 1000 of them have the kernel's expectations to some 1e-4.
    normal = torch.special.ndtri((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)[:, None]
    found = mmd(normal, mu + scale * normal, BANDWIDTHS)
    assert found.item() == pytest.approx(closed_form(mu, scale, 1, BANDWIDTHS), abs=1e-3)


@pytest.mark.parametrize(("distance", "scale"), [(0.0, 1.0), (1.0, 1.5)])
def test_gaussians_in_three_dimensions(distance: float, scale: float) -> None:
    # 60 estimates by themselves: their mean lies within 4 standard errors of the truth if they have no bias. The bias
    # of the other estimate is known, too: within one sample its diagonal stands for (k(a, a) - E k(a, b)) / N.
    torch.manual_seed(0)
    count, trials = 40, 60
    mu = torch.tensor([distance, 0.0, 0.0])
    pairs = [(torch.randn(count, 3), mu + scale * torch.randn(count, 3)) for _ in range(trials)]
    truth = closed_form(distance, scale, 3, BANDWIDTHS)
    within = [expected_kernel(0, 2 * s**2, 3, BANDWIDTHS) for s in (1.0, scale)]
    bias = sum(len(BANDWIDTHS) - kernel for kernel in within) / count
    for unbiased, expected in ((True, truth), (False, truth + bias)):
        found = torch.stack([mmd(x, y, BANDWIDTHS, unbiased=unbiased) for x, y in pairs])
        error = found.std().item() / math.sqrt(trials)
        assert error < bias / 8  # fine enough to tell the two apart
        assert found.mean().item() == pytest.approx(expected, abs=4 * error)


def test_biased_estimate_is_never_below_zero_and_zero_for_the_same_sample() -> None:
    torch.manual_seed(0)
    for _ in range(20):
        assert mmd(torch.randn(5, 2), torch.randn(7, 2), BANDWIDTHS) > 0
    x = torch.randn(9, 2)
    assert mmd(x, x.flip(0), BANDWIDTHS).item() == pytest.approx(0, abs=1e-6)
    assert mmd(x, x, BANDWIDTHS, unbiased=True) < 0


def test_samples_far_from_the_origin() -> None:
    # Products of numbers near 1000 would leave nothing of float32's digits.
    torch.manual_seed(0)
    x, y = torch.randn(2, 20, 3).unbind()
    torch.testing.assert_close(mmd(x + 1000, y + 1000, BANDWIDTHS), mmd(x, y, BANDWIDTHS), rtol=1e-3, atol=1e-4)


def test_autocast_changes_nothing() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 20, 30).unbind()
    plain = mmd(x, y, BANDWIDTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mmd(x, y, BANDWIDTHS), plain)
        assert mmd(x.bfloat16(), y.bfloat16(), BANDWIDTHS).dtype is torch.float32


def test_descent_finds_the_mean_and_the_spread() -> None:
    torch.manual_seed(0)
    noise, data = torch.randn(2, 200, 1).unbind()
    data = 2 + 0.5 * data
    mean, scale = torch.zeros((), requires_grad=True), torch.ones((), requires_grad=True)
    optimiser = torch.optim.Adam([mean, scale], lr=0.1)
    for _ in range(80):
        optimiser.zero_grad()
        mmd(data, mean + scale * noise, BANDWIDTHS).backward()
        optimiser.step()
    # What the two samples of 200 leave: their means deviate by 0.5 sqrt(2 / 200) = 0.05, their spreads by 0.035.
    assert mean.item() == pytest.approx(2, abs=0.15)
    assert abs(scale.item()) == pytest.approx(0.5, abs=0.1)


def test_shapes() -> None:
    for x, y in (((4, 2), (4, 3)), ((4,), (4,)), ((4, 1, 2), (4, 1, 2))):
        with pytest.raises(ValueError, match="expected samples"):
            mmd(torch.zeros(x), torch.zeros(y), BANDWIDTHS)
    with pytest.raises(ValueError, match="too few"):
        mmd(torch.zeros(1, 2), torch.zeros(5, 2), BANDWIDTHS, unbiased=True)
    with pytest.raises(ValueError, match="too few"):
        mmd(torch.zeros(0, 2), torch.zeros(5, 2), BANDWIDTHS)
