from __future__ import annotations

import pytest
import torch

from translate.augment import InstanceNoiseSettings


@pytest.mark.parametrize("shape", [(2,), (3, 8, 8)])
def test_deviation(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.full((2000, *shape), 3.0)
    noise = InstanceNoiseSettings(deviation=0.2).build(shape)(x) - x
    # Of 4000 numbers and more, known to 1 / sqrt(2 * 4000) = 1.1 %.
    assert noise.std().item() == pytest.approx(0.2, rel=0.04)
    assert noise.mean().abs() < 0.01
    assert noise[0].unique().numel() == noise[0].numel()


def test_it_falls_in_a_straight_line_to_nothing() -> None:
    augment = InstanceNoiseSettings(deviation=0.4, steps=10).build((2,))
    x = torch.zeros(4000, 2)
    torch.manual_seed(0)
    for step, wanted in ((0, 0.4), (5, 0.2), (9, 0.04), (0, 0.4)):
        augment.advance(step)
        assert augment(x).std().item() == pytest.approx(wanted, rel=0.05)
    for step in (10, 11):
        augment.advance(step)
        assert torch.equal(augment(x), x)


def test_it_stays_without_steps() -> None:
    augment = InstanceNoiseSettings().build((2,))
    augment.advance(10**9)
    assert augment(torch.zeros(4000, 2)).std().item() == pytest.approx(0.1, rel=0.05)


def test_gradient_passes_and_logits_change_nothing() -> None:
    augment = InstanceNoiseSettings().build((2,))
    x = torch.zeros(3, 2, requires_grad=True)
    augment(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones(3, 2))
    assert augment.update(torch.ones(3, 1)) == {}


def test_the_seed_decides_and_the_format_stays() -> None:
    augment = InstanceNoiseSettings().build((2,))
    x = torch.zeros(3, 2, dtype=torch.bfloat16)
    torch.manual_seed(0)
    first = augment(x)
    torch.manual_seed(0)
    assert torch.equal(first, augment(x))
    assert first.dtype == torch.bfloat16
