"""Precision, recall, density and coverage: written out in NumPy, closed cases, expectations, torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from translate.errors import UserError
from translate.metrics.manifold import Manifold, manifold


def draws(count: int, dimension: int, seed: int, mean: float = 0.0) -> Tensor:
    return mean + torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))


def written_out(predicted: Tensor, reference: Tensor) -> Manifold:
    """The papers' sums, with whole distance matrices in float64."""
    fake, real = predicted.double().numpy(), reference.double().numpy()

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    def radius(a: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(a, a), axis=1)[:, k]  # place 0 is the feature itself

    between = distances(fake, real)
    return Manifold(
        precision=float((between <= radius(real, 3)[None]).any(1).mean()),
        recall=float((between <= radius(fake, 3)[:, None]).any(0).mean()),
        density=float((between <= radius(real, 5)[None]).sum() / (5 * len(fake))),
        coverage=float((between <= radius(real, 5)[None]).any(0).mean()),
    )


@pytest.mark.parametrize("block", [1, 16, 61, 1000])
@pytest.mark.parametrize(("n", "m", "dimension", "mean"), [(60, 61, 2, 0.5), (30, 100, 8, 0.3), (90, 40, 3, 1.0)])
def test_equals_the_papers_sums(n: int, m: int, dimension: int, mean: float, block: int) -> None:
    predicted, reference = draws(n, dimension, n, mean), draws(m, dimension, m)
    expected = written_out(predicted, reference)
    assert all(0 < value < 2 for value in expected)
    # Shares of counts: equal unless a feature lies on a border to 1e-6, which these seeds have none of.
    assert manifold(predicted, reference, block=block) == pytest.approx(expected, rel=1e-12)


def test_features_far_from_zero_keep_their_neighbours_in_float32() -> None:
    # 2048 dimensions, none below zero, lengths (1400) many times the distances (39).
    predicted, reference = (draws(80, 2048, seed).abs() + 30 for seed in (1, 2))
    assert manifold(predicted, reference) == pytest.approx(written_out(predicted, reference), rel=1e-12)


def test_equals_torch_fidelity() -> None:
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    predicted, reference = draws(150, 6, 3, 0.4), draws(200, 6, 4)
    expected = metric.calculate_precision_recall_full(predicted, reference, neighborhood=3)
    assert manifold(predicted, reference)[:2] == pytest.approx(expected, abs=1e-7)


def test_equal_and_distant_sets() -> None:
    features = draws(50, 4, 5)
    same = manifold(features, features.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert 1 <= same.density <= 6 / 5
    assert manifold(features, features + 100) == Manifold(0, 0, 0, 0)


def test_outputs_in_the_crowd_are_dense_and_cover_little() -> None:
    # All outputs at one real feature amid a crowd of 20, 20 others far off: fidelity without variety.
    reference = torch.cat([draws(20, 2, 6), 100 + 10 * draws(20, 2, 7)])
    predicted = reference[reference[:20].norm(dim=1).argmin()] + 1e-3 * draws(40, 2, 8)
    found = manifold(predicted, reference)
    assert found.precision == 1
    assert found.density > 1.2
    assert found.recall < 0.1
    assert found.coverage <= 0.5
    # The other way about, an outlier among outputs makes recall, but no coverage (Naeem et al., figure 2).
    outlier = torch.cat([reference[:20], torch.tensor([[1000.0, 1000.0]]).expand(5, 2) + draws(5, 2, 9)])
    swapped = manifold(outlier, reference)
    assert swapped.coverage <= 0.5
    assert swapped.precision == pytest.approx(20 / 25)


def test_one_law_has_density_1_and_the_coverage_of_lemma_2() -> None:
    n, m, repeats = 40, 60, 60
    found = [manifold(draws(n, 3, seed), draws(m, 3, 1000 + seed)) for seed in range(repeats)]
    density, coverage = (torch.tensor([getattr(f, name) for f in found]) for name in ("density", "coverage"))
    expected = 1 - np.prod([(m - i) / (m + n - i) for i in range(1, 6)])
    for values, mean in ((density, 1.0), (coverage, float(expected))):
        assert float(values.mean()) == pytest.approx(mean, abs=3 * float(values.std()) / repeats**0.5)
        assert float(values.std()) / repeats**0.5 < 0.02


def test_too_few_images() -> None:
    with pytest.raises(UserError, match="at least 6 predicted images, not 5"):
        manifold(draws(5, 2, 1), draws(9, 2, 2))
    with pytest.raises(UserError, match="at least 6 reference images, not 0"):
        manifold(draws(6, 2, 1), draws(0, 2, 2))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        manifold(torch.zeros(9, 2), torch.zeros(9, 3))
