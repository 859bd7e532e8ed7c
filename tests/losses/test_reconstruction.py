from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from pydantic import ValidationError

from translate.losses.reconstruction import ReconstructionSettings

KINDS: tuple[Literal["l1", "l2", "charbonnier"], ...] = ("l1", "l2", "charbonnier")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("l1", (0 + 1 + 2 + 0.5) / 4),
        ("l2", (0 + 1 + 4 + 0.25) / 4),
        ("charbonnier", sum(math.hypot(d, 0.1) for d in (0, 1, 2, 0.5)) / 4),
    ],
)
def test_values_by_hand(kind: Literal["l1", "l2", "charbonnier"], expected: float) -> None:
    output, target = torch.tensor([[0.0, 1.0, -1.0, 0.5]]), torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    loss = ReconstructionSettings(kind=kind, epsilon=0.1).build()
    assert loss(output, target).item() == pytest.approx(expected)
    assert loss(target, output).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_under_autocast_and_finite_gradient_at_zero(kind: Literal["l1", "l2", "charbonnier"]) -> None:
    output = torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ReconstructionSettings(kind=kind).build()(output, torch.zeros(1, 3, 4, 4))
    loss.backward()
    assert loss.dtype is torch.float32
    assert loss.shape == ()
    assert output.grad is not None
    assert not output.grad.any()


def test_paper_weight_is_the_default_and_negative_ones_are_refused() -> None:
    assert ReconstructionSettings().weight == 100
    with pytest.raises(ValidationError):
        ReconstructionSettings(weight=-1)
