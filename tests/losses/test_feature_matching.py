from __future__ import annotations

import pytest
import torch

from translate.losses.feature_matching import feature_matching
from translate.networks import PatchSettings


def test_value_by_hand_leaves_the_logits_out() -> None:
    real = [torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 1, 1), torch.zeros(1, 1, 1, 1)]
    fake = [torch.full((1, 2, 2, 2), 3.0), torch.full((1, 4, 1, 1), -1.0), torch.full((1, 1, 1, 1), 1e6)]
    assert feature_matching(real, fake).item() == (3 + 1) / 2


def test_gradient_reaches_the_fake_alone() -> None:
    torch.manual_seed(0)
    discriminator = PatchSettings(layers=1, width=4, norm="none").build(3)
    real, fake = (torch.randn(1, 3, 16, 16, requires_grad=True) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_matching(discriminator.features(real), discriminator.features(fake))
    assert loss.dtype is torch.float32
    loss.backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.any()


def test_nothing_to_compare_is_an_error() -> None:
    logits = [torch.zeros(1, 1, 1, 1)]
    with pytest.raises(ValueError, match="below the logits"):
        feature_matching(logits, logits)
