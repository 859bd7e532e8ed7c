from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn import functional as F
from vector_quantize_pytorch import LFQ

from translate.quantisers import LookupFreeSettings
from translate.quantisers.lookup_free import entropies


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_entropies_are_those_of_all_codes(bits: int, temperature: float) -> None:
    """Against the definition, with a distance to each code, in float64."""
    z = torch.randn(50, bits, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = torch.tensor(list(product([-1.0, 1.0], repeat=bits)), dtype=torch.float64)
    q = torch.softmax(-(z[:, None] - codes).square().sum(-1) / temperature, dim=1)
    each, of_mean = entropies(z, temperature)
    torch.testing.assert_close(each, torch.special.entr(q).sum(1).mean())
    torch.testing.assert_close(of_mean, torch.special.entr(q.mean(0)).sum())


def test_choices_and_loss_are_those_of_vector_quantize_pytorch() -> None:
    torch.manual_seed(0)
    temperature = 2.0
    theirs = LFQ(codebook_size=64, dim=6, entropy_loss_weight=0.1, diversity_gamma=1.5, commitment_loss_weight=0.25)
    ours = LookupFreeSettings(bits=6, diversity=1.5, temperature=temperature).build(6)
    z, upstream = torch.randn(2, 6, 5, 5, requires_grad=True), torch.randn(2, 6, 5, 5)
    (codes, indices, loss), parts = theirs(z, inv_temperature=1 / temperature, return_loss_breakdown=True)
    made = ours(z)
    assert torch.equal(made.indices, indices.long())
    torch.testing.assert_close(made.quantised, codes)
    torch.testing.assert_close(torch.autograd.grad(made.quantised, z, upstream)[0], upstream)
    # They cut probabilities at 1e-5 inside the logarithm: 64 codes err by 64 * 1e-5 * ln(1e5) at most, mostly far less.
    each, of_mean = entropies(z.permute(0, 2, 3, 1).reshape(-1, 6), temperature)
    torch.testing.assert_close(each, parts.per_sample_entropy, rtol=0, atol=1e-3)
    torch.testing.assert_close(of_mean, parts.batch_entropy, rtol=0, atol=1e-3)
    torch.testing.assert_close(made.loss, loss, rtol=0, atol=3e-4)
    # Of that cut, also the gradients differ.
    mine, other = (torch.autograd.grad(one, z, retain_graph=True)[0] for one in (made.loss, loss))
    assert F.cosine_similarity(mine.flatten(), other.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_gradients_are_numbers_however_sure_a_bit_is(scale: float) -> None:
    z = (scale * torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    made = LookupFreeSettings(bits=16).build(16)(z)
    made.loss.backward()
    assert made.loss.isfinite()
    assert z.grad is not None and z.grad.isfinite().all()


def test_the_penalty_makes_signs_sure_and_codes_many() -> None:
    def penalty(z: torch.Tensor) -> float:
        each, of_mean = entropies(z, 0.5)
        return float(each - of_mean)

    signs = torch.tensor(list(product([-1.0, 1.0], repeat=4)))
    assert penalty(signs) == pytest.approx(-4 * torch.tensor(2.0).log().item(), abs=0.02)  # sure, and all 16
    assert penalty(torch.zeros(16, 4)) == pytest.approx(0, abs=1e-6)  # unsure
    assert penalty(torch.ones(16, 4)) == pytest.approx(0, abs=1e-6)  # always one code


def test_zero_is_negative_and_the_first_sign_the_highest_bit() -> None:
    quantiser = LookupFreeSettings(bits=3).build(3)
    made = quantiser(torch.tensor([0.5, 0.0, -2.0]).view(1, 3, 1, 1))
    assert made.indices.item() == 4
    assert made.quantised.flatten().tolist() == [1, -1, -1]


def test_weight_zero_leaves_the_commitment() -> None:
    z = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    made = LookupFreeSettings(bits=4, entropy_weight=0, beta=2).build(4)(z)
    torch.testing.assert_close(made.loss, 2 * (z.abs() - 1).square().mean())
