"""Each objective against the closed forms of its optimal discriminator between N(0, 1) and N(mu, 1)."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from translate.losses.adversarial import OBJECTIVES, ObjectiveName

# Quantiles of N(0, 1) at evenly spaced levels: the mean of f over them is its expectation, without chance.
NORMAL = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
TEST_FUNCTIONS = [torch.sin, torch.cos, torch.ones_like, torch.tanh, lambda x: torch.exp(-x.square())]


def log_ratio(x: Tensor, mu: float) -> Tensor:
    """log p(x) / q(x) of p = N(0, 1), q = N(mu, 1): the logit of p / (p + q)."""
    return mu**2 / 2 - mu * x


def slope(name: ObjectiveName, optimal: list[Tensor], bend: list[Tensor]) -> float:
    """Derivative of the discriminator's loss at `optimal` (on real, on fake) in the direction `bend`."""
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss = OBJECTIVES[name].discriminator(optimal[0] + t * bend[0], optimal[1] + t * bend[1])
    return torch.autograd.grad(loss, t)[0].item()


def test_every_name_has_its_row() -> None:
    assert set(OBJECTIVES) == set(get_args(ObjectiveName))


@pytest.mark.parametrize(("mu", "value"), [(0.0, -1.3863), (1.0, -1.1635), (2.0, -0.7126)])
def test_vanilla_value_at_the_optimal_discriminator(mu: float, value: float) -> None:
    loss = OBJECTIVES["vanilla"].discriminator(log_ratio(NORMAL, mu), log_ratio(NORMAL + mu, mu))
    assert -loss.item() == pytest.approx(value, abs=2e-4)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", ["vanilla", "lsgan"])
def test_optimal_discriminator_is_stationary(name: ObjectiveName, mu: float) -> None:
    optimal = [log_ratio(x, mu) for x in (NORMAL, NORMAL + mu)]
    if name == "lsgan":
        optimal = [logit.sigmoid() for logit in optimal]  # D itself is p / (p + q)
    wrong = [0.5 * values for values in optimal]
    for function in TEST_FUNCTIONS:
        bend = [function(x) for x in (NORMAL, NORMAL + mu)]
        assert slope(name, optimal, bend) == pytest.approx(0, abs=1e-4)
    assert abs(slope(name, wrong, wrong)) > 1e-2


def test_lsgan_value_at_the_optimal_discriminator() -> None:
    # min L_D is the integral of p q / (p + q), here on a grid.
    x = torch.linspace(-10, 12, 20_001, dtype=torch.float64)
    p, q = (torch.exp(-(x - mu).square() / 2) / math.sqrt(2 * math.pi) for mu in (0.0, 2.0))
    integral = torch.trapezoid(p * q / (p + q), x).item()
    real, fake = (log_ratio(x, 2.0).sigmoid() for x in (NORMAL, NORMAL + 2))
    assert OBJECTIVES["lsgan"].discriminator(real, fake).item() == pytest.approx(integral, abs=1e-4)


@pytest.mark.parametrize(("mu", "value"), [(0.0, 2.0), (2.0, 0.6346)])
def test_hinge_minimum_is_twice_the_overlap(mu: float, value: float) -> None:
    hinge = OBJECTIVES["hinge"].discriminator
    real, fake = (log_ratio(x, mu).sign() for x in (NORMAL, NORMAL + mu))
    assert hinge(real, fake).item() == pytest.approx(value, abs=2e-4)
    for scale in (0.5, 2.0):  # neither a meeker nor a bolder one does better
        assert hinge(scale * real, scale * fake).item() >= hinge(real, fake).item() - 1e-6


def test_values_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0])
    ones, zeros = torch.ones(2), torch.zeros(2)
    bce = binary_cross_entropy_with_logits
    vanilla, lsgan, hinge = (OBJECTIVES[name] for name in ("vanilla", "lsgan", "hinge"))
    torch.testing.assert_close(vanilla.discriminator(real, fake), bce(real, ones) + bce(fake, zeros))
    torch.testing.assert_close(vanilla.generator(fake), bce(fake, ones))
    torch.testing.assert_close(lsgan.discriminator(real, fake), mse_loss(real, ones) + mse_loss(fake, zeros))
    torch.testing.assert_close(lsgan.generator(fake), mse_loss(fake, ones))
    assert hinge.discriminator(real, fake).item() == (0 + 1) / 2 + (0 + 4) / 2
    assert hinge.generator(fake).item() == -1


@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_real_logits_change_no_unpaired_generator_loss(name: ObjectiveName) -> None:
    fake = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    generator = OBJECTIVES[name].generator
    assert generator(fake, fake + 1) == generator(fake)


def test_vanilla_generator_does_not_saturate() -> None:
    fake = torch.tensor([-50.0], requires_grad=True)
    OBJECTIVES["vanilla"].generator(fake).backward()
    assert fake.grad is not None
    assert fake.grad.item() == pytest.approx(-1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", get_args(ObjectiveName))
def test_losses_are_finite_float32_for_wild_logits(name: ObjectiveName, dtype: torch.dtype) -> None:
    real = torch.tensor([[-3e4, 0.0, 3e4]], dtype=dtype, requires_grad=True)
    fake = torch.tensor([[3e4, 0.0, -3e4]], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [OBJECTIVES[name].discriminator(real, fake), OBJECTIVES[name].generator(fake)]
    for loss in losses:
        assert loss.dtype is torch.float32
        assert loss.shape == ()
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, fake, retain_graph=True))
