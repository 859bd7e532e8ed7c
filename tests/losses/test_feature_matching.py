from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from translate.losses.feature_matching import feature_matching, mean_feature_matching, pulling_away
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


def test_mean_feature_matching_by_hand() -> None:
    real = torch.tensor([[1.0, 0.0], [3.0, 2.0]], requires_grad=True)  # mean (2, 1)
    fake = torch.tensor([[0.0, 5.0], [0.0, 1.0], [3.0, 3.0]], requires_grad=True)  # mean (1, 3)
    loss = mean_feature_matching(real, fake)
    assert loss.item() == pytest.approx(1 + 4)
    loss.backward()
    assert real.grad is None
    assert fake.grad is not None
    # 2 (mean fake - mean real) / 3 for each of the three fakes.
    torch.testing.assert_close(fake.grad, torch.tensor([[-2.0, 4.0]]).expand(3, 2) / 3)


def test_mean_feature_matching_compares_means_alone() -> None:
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    assert mean_feature_matching(features, features.flip(0)).item() == pytest.approx(0, abs=1e-10)
    loss = mean_feature_matching(features.bfloat16(), features.bfloat16())
    assert loss.dtype is torch.float32


def test_pulling_away_is_the_mean_squared_cosine() -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    pairs = [cosine_similarity(features[i], features[j], dim=0) ** 2 for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(pulling_away(features), torch.stack(pairs).mean())
    lengths = torch.arange(1.0, 7.0)[:, None] * torch.tensor([[1.0], [-1.0]]).repeat(3, 1)
    torch.testing.assert_close(pulling_away(lengths * features), pulling_away(features))


def test_pulling_away_closed_forms() -> None:
    assert pulling_away(3 * torch.eye(4)).item() == 0
    assert pulling_away(torch.tensor([[1.0, 2.0], [-2.0, -4.0], [0.5, 1.0]])).item() == pytest.approx(1)
    # Directions drawn evenly on a sphere in F dimensions have an expected squared cosine of 1 / F; 1/2 n (n - 1) pairs
    # of a deviation near sqrt(2) / F: 0.0005 on 0.05.
    features = torch.randn(200, 20, generator=torch.Generator().manual_seed(0))
    assert pulling_away(features).item() == pytest.approx(1 / 20, abs=0.002)


def test_pulling_away_is_float32_finite_and_needs_two() -> None:
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    features[0] = 0
    features.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = pulling_away(features)
    assert torch.equal(lowered, pulling_away(features))
    (gradient,) = torch.autograd.grad(lowered, features)
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="at least two"):
        pulling_away(features[:1])
