from __future__ import annotations

import math

import pytest
import torch
from vector_quantize_pytorch import FSQ

from translate.quantisers import FiniteScalarSettings


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [3, 4, 5], [7]])
def test_every_code_is_its_own_latent_and_index(levels: list[int]) -> None:
    """All codes there are, by the paper's formula, and the whole way back."""
    width = len(levels)
    quantiser = FiniteScalarSettings(levels=levels).build(width).eval()
    size = math.prod(levels)
    assert quantiser.size == size
    codes = quantiser.codes(torch.arange(size).view(1, 1, size))[0, :, 0].t()
    strides = [math.prod(levels[:number]) for number in range(width)]
    expected = [[(i // s % n - n // 2) / (n // 2) for s, n in zip(strides, levels, strict=True)] for i in range(size)]
    torch.testing.assert_close(codes, torch.tensor(expected), rtol=0, atol=1e-7)
    assert len(codes.unique(dim=0)) == size
    # What is bounded to a code: tanh(z + shift) * half - offset = code * (levels // 2), solved for z.
    n = torch.tensor(levels, dtype=torch.float64)
    half, offset = (n - 1) * (1 + 1e-3) / 2, torch.where(n % 2 == 0, 0.5, 0.0)
    z = torch.atanh((codes.double() * (n // 2) + offset) / half) - torch.atanh(offset / half)
    made = quantiser(z.float().t().reshape(1, width, 1, size))
    assert torch.equal(made.indices.flatten(), torch.arange(size))


def test_choices_and_gradients_are_those_of_vector_quantize_pytorch() -> None:
    torch.manual_seed(0)
    theirs, ours = FSQ([8, 5, 5, 5]), FiniteScalarSettings().build(4)
    z, upstream = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(2, 4, 6, 6)
    codes, indices = theirs(z)
    [expected] = torch.autograd.grad(codes, z, upstream)
    made = ours(z)
    assert torch.equal(made.indices, indices.long())
    torch.testing.assert_close(made.quantised, codes)
    torch.testing.assert_close(torch.autograd.grad(made.quantised, z, upstream)[0], expected)
    assert made.loss == 0


def test_no_number_gives_some_index() -> None:
    made = FiniteScalarSettings(levels=[3, 3]).build(2)(torch.full((1, 2, 1, 1), float("nan")))
    assert 0 <= made.indices.item() < 9
