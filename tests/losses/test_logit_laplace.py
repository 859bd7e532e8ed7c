"""The logit-Laplace loss against torch's own distributions, and what a density and a median are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, SigmoidTransform, TransformedDistribution

from translate.losses.logit_laplace import logit_laplace
from translate.networks.tokenizer import TokenizerSettings

torch.set_num_threads(1)


def raw_of(mean: Tensor, log_scale: Tensor) -> Tensor:
    return torch.cat([mean, log_scale], dim=1)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean, log_scale, target = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3))
    return mean, 0.5 * log_scale, (target / 2).clamp(-1, 1)


def test_it_is_minus_the_log_density_of_a_squashed_laplace() -> None:
    mean, log_scale, target = drawn()
    distribution = TransformedDistribution(Laplace(mean.double(), log_scale.double().exp()), [SigmoidTransform()])
    wanted = -distribution.log_prob(0.5 + 0.4 * target.double()).mean()
    assert target.abs().max() == 1  # the borders, 0.1 and 0.9, have a density too
    found = logit_laplace(raw_of(mean, log_scale), target)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = logit_laplace(raw_of(mean, log_scale), target)
    assert torch.equal(inside, found) and found.dtype == torch.float32 and found.ndim == 0


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 0.15), (0.7, 0.1), (-0.3, 1.0)])
def test_the_density_has_the_area_one(mean: float, scale: float) -> None:
    """By trapezia over the colours in (0.1, 0.9). What lies outside is the Laplace distribution's two tails: nothing
    for the narrow ones, a known share for the wide one. The step of 1/500 leaves an error below 2e-3 at the kink."""
    step = 2e-3
    raw = raw_of(torch.full((1, 1, 1, 1), mean), torch.full((1, 1, 1, 1), math.log(scale)))
    colours = torch.arange(-1, 1 + 1e-6, step / 0.4).reshape(-1, 1, 1, 1)
    density = torch.stack([(-logit_laplace(raw, colour[None])).exp() for colour in colours])
    area = torch.trapezoid(density, dx=step).item()
    end = math.log(9)  # logit(0.9)
    inside = 1 - 0.5 * math.exp(-(end - mean) / scale) - 0.5 * math.exp(-(end + mean) / scale)
    assert area == pytest.approx(inside, abs=2e-3)
    assert scale == 1.0 or area == pytest.approx(1, abs=2e-3)


def test_the_picture_is_the_median_which_gives_the_target_back() -> None:
    """At mu = logit(x), whatever the width: half of the probability lies below."""
    network = {"kind": "convolutional", "width": 4, "multipliers": [1, 2], "blocks": 1, "latent": 4, "attention": []}
    tokenizer = TokenizerSettings.model_validate({"network": network}).build(3, spread=True)
    _, log_scale, target = drawn()
    x = 0.5 + 0.4 * target.double()
    mean = torch.logit(x).float()
    torch.testing.assert_close(tokenizer.picture(raw_of(mean, log_scale)), target, rtol=0, atol=1e-5)
    distribution = TransformedDistribution(Laplace(mean.double(), log_scale.double().exp()), [SigmoidTransform()])
    torch.testing.assert_close(distribution.cdf(x), torch.full_like(x, 0.5), rtol=0, atol=1e-5)


def test_it_is_least_where_the_width_is_the_mean_distance() -> None:
    """d/d ln b of |l - mu| / b + ln b is 0 at b = mean |l - mu|: the closed form of the likeliest width."""
    _, _, target = drawn()
    logits = torch.logit(0.5 + 0.4 * target.double())
    best = logits.abs().mean().log().float().reshape(1, 1, 1, 1).expand_as(target).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(logit_laplace(raw_of(torch.zeros_like(target), best), target), best)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-5)
    assert gradient.abs().max() > 1e-4  # each value for itself would have another width
