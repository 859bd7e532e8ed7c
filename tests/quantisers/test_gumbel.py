from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from translate.quantisers import GumbelSettings
from translate.quantisers.gumbel import GumbelQuantiser


def build(**settings: Any) -> GumbelQuantiser:
    torch.manual_seed(0)
    return GumbelSettings(**{"size": 12, "width": 3, **settings}).build(4)


def latents(*, seed: int = 1) -> Tensor:
    return torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


def gradients(quantiser: GumbelQuantiser, quantised: Tensor) -> dict[str, Tensor]:
    quantiser.zero_grad()
    (quantised * latents(seed=2)).sum().backward()
    return {name: p.grad.clone() for name, p in quantiser.named_parameters() if p.grad is not None}


def plain(quantiser: GumbelQuantiser, z: Tensor, *, hard: bool) -> Tensor:
    """By torch's own relaxation and a matrix of N * size numbers."""
    relaxed = F.gumbel_softmax(quantiser.logits(z).permute(0, 2, 3, 1), quantiser.temperature, hard=hard, dim=-1)
    codes: Tensor = quantiser.project_out((relaxed @ quantiser.codebook).permute(0, 3, 1, 2))
    return codes


def check_against_torch(*, hard: bool) -> None:
    quantiser, z = build(straight_through=hard), latents()
    quantiser.advance(0.5)
    torch.manual_seed(3)
    ours = quantiser(z)
    torch.manual_seed(3)
    theirs = plain(quantiser, z, hard=hard)
    torch.testing.assert_close(ours.quantised, theirs)
    found, expected = gradients(quantiser, ours.quantised), gradients(quantiser, theirs)
    assert found.keys() == expected.keys() == dict(quantiser.named_parameters()).keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(ours.quantised, quantiser.codes(ours.indices)) == hard


def test_straight_through_is_the_one_hot_matrix_without_the_matrix() -> None:
    check_against_torch(hard=True)


def test_relaxed_codes_are_the_mean_of_codes() -> None:
    check_against_torch(hard=False)


def test_evaluation_takes_the_likeliest_code() -> None:
    quantiser = build().eval()
    z = latents()
    made = quantiser(z)
    assert torch.equal(made.indices, quantiser.logits(z).argmax(1))
    assert torch.equal(made.quantised, quantiser(z).quantised)
    assert not torch.equal(quantiser.train()(z).indices, quantiser(z).indices)


def test_training_draws_by_the_probabilities() -> None:
    quantiser = build(size=3)
    with torch.no_grad():
        quantiser.logits.weight.zero_()
        quantiser.logits.bias.copy_(torch.tensor([0.2, 0.3, 0.5]).log())
    torch.manual_seed(4)
    shares = torch.bincount(quantiser(torch.zeros(1, 4, 100, 100)).indices.flatten()).double() / 1e4
    # Four standard deviations of a share of 10,000 draws are 0.02 at most.
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.3, 0.5]).double(), rtol=0, atol=0.02)


def test_the_loss_is_the_divergence_from_equal_probabilities() -> None:
    quantiser, z = build(kl_weight=0.5), latents()
    q = torch.distributions.Categorical(logits=quantiser.logits(z).permute(0, 2, 3, 1).double())
    uniform = torch.distributions.Categorical(logits=torch.zeros_like(q.logits))
    expected = 0.5 * torch.distributions.kl_divergence(q, uniform).mean()
    torch.testing.assert_close(quantiser(z).loss.double(), expected, rtol=1e-5, atol=0)
    with torch.no_grad():
        quantiser.logits.weight.mul_(1e6)  # sure of one code each: ln of their number
    torch.testing.assert_close(quantiser(z).loss, torch.tensor(0.5 * math.log(12)))


def test_the_temperature_falls_exponentially() -> None:
    quantiser = build()
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0, 1.5):
        quantiser.advance(progress)
        found.append(quantiser.temperature)
    assert found == [1.0, 0.5, 0.25, 0.0625, 0.0625]


def test_indices_to_codes_and_back() -> None:
    """Logits that are each code's own score, z·e - |e|²/2, lead from codes to their indices."""
    quantiser = GumbelSettings(size=12).build(4).eval()
    with torch.no_grad():
        quantiser.logits.weight.copy_(quantiser.codebook[:, :, None, None])
        quantiser.logits.bias.copy_(quantiser.codebook.square().sum(1) / -2)
    indices = torch.arange(12)[None, None]
    assert torch.equal(quantiser(quantiser.codes(indices)).indices, indices)
